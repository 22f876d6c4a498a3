//! Defective manifests, among them those of the books: each is reported with its place, none harms its
//! neighbours.

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{APPLIES, wait_configured};

fn findings(mesh: &Mesh) -> Result<Vec<Value>> {
    let page: Value = serde_json::from_str(&mesh.lab.controller_get("/debug/diagnostics")?)?;
    Ok(page.as_array().context("no list")?.clone())
}

/// Waits for a finding at this line that holds all of these words in whichever of its fields.
fn wait_finding(mesh: &Mesh, file: &str, line: usize, words: &[&str]) -> Result<Value> {
    let what = format!("a finding at {file}:{line} with {words:?}");
    testkit::eventually(&what, APPLIES, || {
        let all = findings(mesh)?;
        let found = all.iter().find(|finding| {
            let text = finding.to_string();
            finding["file"]
                .as_str()
                .is_some_and(|given| given.ends_with(file))
                && finding["line"] == line
                && words.iter().all(|word| text.contains(word))
        });
        found.cloned().with_context(|| format!("{all:#?}"))
    })
}

/// The line (from 1) at which `text` stands first.
fn line_of(manifest: &str, text: &str) -> usize {
    let mut lines = manifest.lines();
    lines
        .position(|line| line.contains(text))
        .map_or(0, |index| index + 1)
}

/// Y37b as printed: a capital `Name`, and a `route` at the wrong level.
const Y37B: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  Name: foo-bars-svc
spec:
  hosts:
  - bar.foo.svc.cluster.local
  http:
  - match:
    - uri:
        prefix: /bars/newMethod
    route:
    - destination:
        host: bar.foo.svc.cluster.local
        subset: v2
  route:
  - destination:
      host: bar.foo.svc.cluster.local
      subset: v1
";

/// Y43a as printed: an unquoted `*`, which YAML takes for an alias.
const Y43A: &str = "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata:
  name: foo-com-gateway
spec:
  selector:
    app: gateway-workloads
  servers:
  - hosts:
    - *.foo.com
    port:
      number: 80
      name: http
      protocol: HTTP
";

/// Y46 as printed: a capital `Name` again.
const Y46: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  Name: foo-bars-svc
spec:
  hosts:
  - bar.foo.svc.cluster.local
  http:
  - match:
    - uri:
        exact: /assets/static/style.css
    route:
    - destination:
        host: webserver.frontend.svc.cluster.local
  - match:
    - uri:
        regex: \"/foo/\\\\d+:myCustomMethod\"
    route:
    - destination:
        host: bar.foo.svc.cluster.local
        subset: v3
";

fn policy(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{action: DENY, rules: [{{from: [{{source: {{namespaces: [none]}}}}]}}]}}\n"
    )
}

/// P27, A64: what is wrong regardless of the kind is told, with file, line and field.
#[test]
fn the_defective_manifests_of_the_books_are_reported_with_file_line_and_field() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for (manifest, at, words) in [
        (Y37B, "Name:", &["Name"][..]),
        (Y43A, "*.foo.com", &["*"]),
        (Y46, "Name:", &["Name"]),
    ] {
        mesh.lab.apply("book.yaml", manifest)?;
        let line = line_of(manifest, at);
        let finding = wait_finding(&mesh, "book.yaml", line, words)?;
        assert_eq!(finding["severity"], "error", "{finding:#}");
        if at == "Name:" {
            assert_eq!(finding["field"], "metadata.Name", "{finding:#}");
            let message = finding["message"].as_str().unwrap_or_default();
            assert!(
                message.contains("name"),
                "says what would be right: {message}"
            );
        }
        let log = mesh.lab.controller_log();
        let mut lines = log.lines();
        let told = lines.any(|text| text.contains("book.yaml") && text.contains(&line.to_string()));
        assert!(told, "the log does not tell of book.yaml:{line}");
        mesh.lab.delete("book.yaml")?;
        lab::wait_until("the finding goes with its file", APPLIES, || {
            Ok(!findings(&mesh)?
                .iter()
                .any(|one| one.to_string().contains("book.yaml")))
        })?;
    }
    Ok(())
}

/// P27: four defects between five good documents in one file.
#[test]
fn broken_documents_between_good_ones_are_reported_and_the_good_ones_apply() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let unknown_field = policy("unknown-field").replace("action:", "acton:");
    let manifest = [
        policy("good-1"),
        Y37B.to_owned(),
        policy("good-2"),
        Y43A.to_owned(),
        policy("good-3"),
        Y46.to_owned(),
        policy("good-4"),
        unknown_field,
        policy("good-5"),
    ]
    .join("---\n");
    mesh.lab.apply("mixed.yaml", &manifest)?;
    let done = (|| {
        for index in 1..=5 {
            wait_configured(mesh.lab, "n2", &format!("shop/good-{index}"), true)?;
        }
        let capital = line_of(&manifest, "Name:");
        wait_finding(&mesh, "mixed.yaml", capital, &["metadata.Name"])?;
        wait_finding(&mesh, "mixed.yaml", line_of(&manifest, "*.foo.com"), &[])?;
        let acton = line_of(&manifest, "acton:");
        wait_finding(&mesh, "mixed.yaml", acton, &["acton", "action"])?;
        Ok(())
    })();
    mesh.lab.delete("mixed.yaml")?;
    wait_configured(mesh.lab, "n2", "shop/good-5", false)?;
    done
}

/// P27, Y12: two objects of one name do not silently replace each other.
#[test]
fn two_objects_of_one_name_are_reported() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab.apply("twin-a.yaml", &policy("twin"))?;
    wait_configured(mesh.lab, "n2", "shop/twin", true)?;
    mesh.lab
        .apply("twin-b.yaml", &policy("twin").replace("[none]", "[other]"))?;
    let told = testkit::eventually("the twins are reported", APPLIES, || {
        let all = findings(&mesh)?;
        let found = all.iter().find(|finding| finding["name"] == "twin");
        found.cloned().with_context(|| format!("{all:#?}"))
    });
    mesh.lab.delete("twin-a.yaml")?;
    mesh.lab.delete("twin-b.yaml")?;
    let told = told?.to_string();
    assert!(
        told.contains("twin-a.yaml") && told.contains("twin-b.yaml"),
        "{told}"
    );
    Ok(())
}

/// Each of these is wrong in one way; the message names the field, and the pods around go on.
#[test]
fn objects_that_cannot_be_what_they_say_are_reported_by_field() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let rows = [
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: shop}\nspec:\n  ports:\n  - port: 70000\n",
            "port: 70000",
            "port",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: shop}\nspec:\n  clusterIP: 10.96.0.300\n  ports:\n  - port: 80\n",
            "clusterIP",
            "clusterIP",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: odd, namespace: shop}\nspec:\n  mtls:\n    mode: STRICTER\n",
            "mode: STRICTER",
            "mode",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  namespace: shop\nspec: {}\n",
            "metadata",
            "name",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: odd, namespace: shop}\nspec:\n  portLevelMtls:\n    8080: {mode: STRICT}\n",
            "portLevelMtls",
            "portLevelMtls",
        ),
    ];
    for (manifest, at, field) in rows {
        mesh.lab.apply("odd.yaml", manifest)?;
        let found = wait_finding(&mesh, "odd.yaml", line_of(manifest, at), &[field]);
        let checked = mesh.check(&format!("beside\n{manifest}"));
        mesh.lab.delete("odd.yaml")?;
        found.with_context(|| manifest.to_owned())?;
        checked?;
    }
    Ok(())
}
