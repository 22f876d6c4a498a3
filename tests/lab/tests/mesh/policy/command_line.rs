//! `keelson` asks the agents of a mesh, and what it says of a connection is what the connection then does.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod};
use serde_json::{Value, json};
use testkit::{Behaviour, Peer};
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{Ended, at, echo, wait_configured, wait_for};

/// Runs the program against a lab.
fn keelson(lab: &Lab, args: &[&str]) -> Result<Output> {
    let at = format!("--lab={}", lab.id());
    let mut program = Command::new(lab::find_program("keelson")?);
    Ok(program.args(args).arg(at).output()?)
}

/// The same, with its exit code and its answer for programs.
fn asked(lab: &Lab, args: &[&str]) -> Result<(i32, Value)> {
    let output = keelson(lab, &[args, &["-o", "json"]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().context("it was killed")?;
    let value = serde_json::from_slice(&output.stdout);
    Ok((
        code,
        value.with_context(|| format!("{args:?}: {code} {said}"))?,
    ))
}

/// One connection, what is said of it, and with what the sentence must have to do.
struct Case<'a> {
    from: &'a Pod,
    to: String,
    dials: SocketAddr,
    /// Verdict, path, reason, object, rule.
    said: [Value; 5],
}

impl Case<'_> {
    /// Compares what is said with what happens.
    fn check(&self, mesh: &Mesh) -> Result<()> {
        let source = self.from.key();
        let [verdict, ..] = &self.said;
        let ended = if *verdict == json!("allowed") {
            Ended::Answered
        } else {
            Ended::Refused
        };
        let what = format!("{source} -> {}", self.to);
        wait_for(self.from, self.dials, ended).with_context(|| what.clone())?;
        let (code, said) = asked(mesh.lab, &["explain", &source, &self.to])?;
        let way = &said["ways"][0];
        let found = [
            said["verdict"].clone(),
            way["path"].clone(),
            way["reason"].clone(),
            way["object"].clone(),
            way["rule"].clone(),
        ];
        ensure!(found == self.said, "{what}: {said:#}");
        ensure!(
            code == i32::from(ended != Ended::Answered),
            "{what}: {code}"
        );
        ensure!(
            way["reason"].is_null() == way["remedy"].is_null(),
            "{what}: {said:#}"
        );
        Ok(())
    }
}

/// These policies, and none of those before.
fn only(mesh: &Mesh, policies: &str, marker: &str) -> Result<()> {
    mesh.clear()?;
    mesh.apply(policies, marker)
}

fn case<'a>(from: &'a Pod, to: &Pod, port: u16, said: [Value; 5]) -> Result<Case<'a>> {
    Ok(Case {
        from,
        to: format!("{}:{port}", to.key()),
        dials: at(to.v4()?, port),
        said,
    })
}

fn allowed(path: &str) -> [Value; 5] {
    [
        json!("allowed"),
        json!(path),
        Value::Null,
        Value::Null,
        Value::Null,
    ]
}

fn refused(reason: &str, object: Value, rule: Value) -> [Value; 5] {
    [
        json!("refused"),
        json!("refused"),
        json!(reason),
        object,
        rule,
    ]
}

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: guard, namespace: shop}\n\
    spec: {action: DENY, rules: [{from: [{source: {namespaces: [nowhere]}}]}, {from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}\n";
const ALLOW: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: readers, namespace: shop}\n\
    spec: {action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n";
const L7: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: paths, namespace: shop}\n\
    spec: {action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: only-mtls, namespace: shop}\n\
    spec: {mtls: {mode: STRICT}}\n";
const CHECKED: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: checked, namespace: shop}\n\
    spec: {clusterIP: 10.96.7.8, clusterIPs: [10.96.7.8], selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n";
const NOBODY: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: nobody, namespace: shop}\n\
    spec: {clusterIP: 10.96.7.7, selector: {app: nobody}, ports: [{port: 80}]}\n";

#[test]
fn what_is_explained_is_what_a_connection_then_does() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let Mesh {
        cart,
        web,
        stranger,
        server,
        near,
        ..
    } = &mesh;
    let outside = echo(stranger, 9090)?;
    let node = mesh.lab.node("n2")?;
    let listener = node.run(|| TcpListener::bind(("0.0.0.0", 9191)))??;
    let host = Peer::serve(listener, Behaviour::Echo)?;
    let object = |name: &str| json!(name);
    let by_nobody = allowed("plain");
    let unknown = Case {
        from: cart,
        to: format!("{}:9191", node.v4()),
        dials: at(node.v4(), 9191),
        said: by_nobody.clone(),
    };
    for case in [
        case(cart, server, 8080, allowed("tunnel"))?,
        case(cart, near, 8080, allowed("direct"))?,
        case(stranger, server, 8080, allowed("plain"))?,
        case(cart, stranger, 9090, by_nobody)?,
        unknown,
    ] {
        case.check(&mesh).context("without policies")?;
    }
    let guard = refused(
        "policy_deny",
        object("AuthorizationPolicy shop/guard"),
        json!(1),
    );
    only(&mesh, DENY, "guard")?;
    for case in [
        case(cart, server, 8080, guard.clone())?,
        case(cart, near, 8080, guard)?,
        case(web, server, 8080, allowed("tunnel"))?,
        case(web, near, 8080, allowed("direct"))?,
    ] {
        case.check(&mesh).context("DENY")?;
    }
    let readers = object("AuthorizationPolicy shop/readers");
    let others = refused("policy_no_allow", readers.clone(), Value::Null);
    let rule = |path: &str| {
        [
            json!("allowed"),
            json!(path),
            Value::Null,
            readers.clone(),
            json!(0),
        ]
    };
    only(&mesh, ALLOW, "readers")?;
    for case in [
        case(cart, server, 8080, others.clone())?,
        case(cart, near, 8080, others.clone())?,
        case(stranger, server, 8080, others)?,
        case(web, server, 8080, rule("tunnel"))?,
        case(web, near, 8080, rule("direct"))?,
    ] {
        case.check(&mesh).context("ALLOW")?;
    }
    let strict = refused(
        "policy_deny",
        object("PeerAuthentication shop/only-mtls"),
        Value::Null,
    );
    only(&mesh, STRICT, "only-mtls")?;
    for case in [
        case(stranger, server, 8080, strict.clone())?,
        case(stranger, near, 8080, strict)?,
        case(cart, server, 8080, allowed("tunnel"))?,
    ] {
        case.check(&mesh).context("STRICT")?;
    }
    only(&mesh, L7, "paths")?;
    let paths = refused(
        "policy_unenforceable",
        object("AuthorizationPolicy shop/paths"),
        json!(0),
    );
    case(cart, server, 8080, paths)?.check(&mesh)?;
    mesh.clear()?;
    mesh.lab.apply("nobody.yaml", NOBODY)?;
    wait_configured(mesh.lab, "n1", "nobody", true)?;
    let nobody = Case {
        from: cart,
        to: "nobody".to_owned(),
        dials: at([10, 96, 7, 7], 80),
        said: refused("no_endpoint", Value::Null, Value::Null),
    };
    let checked = nobody.check(&mesh);
    mesh.lab.delete("nobody.yaml")?;
    drop((outside, host));
    checked
}

/// F75, A34: what pods of a service take, what is sent to them, and the object that says so; then it is what a client outside
/// of the mesh gets.
#[test]
fn tls_check_says_what_is_taken_and_by_whose_word() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab.apply("checked.yaml", CHECKED)?;
    let row = |status: &str, server: &str, object: Value| {
        testkit::eventually("the row says it", crate::fixture::APPLIES, || {
            let (code, said) = asked(mesh.lab, &["tls-check", "shop/checked"])?;
            let row = &said[0];
            ensure!(row["status"] == status && row["port"] == 80, "{said:#}");
            ensure!(row["server"] == server, "{said:#}");
            ensure!(row["client"] == "mTLS", "{said:#}");
            ensure!(row["objects"] == object, "{said:#}");
            ensure!(code == 0, "{code}: {said:#}");
            Ok(())
        })
    };
    let far = mesh.far()?;
    let checked = (|| {
        row("OK", "mTLS or plain (PERMISSIVE)", json!([]))?;
        wait_for(&mesh.stranger, far, Ended::Answered)?;
        mesh.apply(STRICT, "only-mtls")?;
        let object = json!(["PeerAuthentication shop/only-mtls"]);
        row("OK", "mTLS (STRICT)", object)?;
        wait_for(&mesh.stranger, far, Ended::Refused)?;
        let table = keelson(mesh.lab, &["tls-check", "-n", "shop"])?.stdout;
        let table = String::from_utf8(table)?;
        ensure!(table.starts_with("HOST:PORT"), "{table}");
        let wrong = keelson(mesh.lab, &["tls-check", "shop/nothing"])?;
        ensure!(wrong.status.code() == Some(2), "{wrong:?}");
        Ok(())
    })();
    mesh.lab.delete("checked.yaml")?;
    checked
}

#[test]
fn status_is_good_while_all_agents_are_in_step_and_names_what_is_not() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let look = || asked(mesh.lab, &["status"]);
    testkit::eventually("the status is good", crate::fixture::APPLIES, || {
        let (code, said) = look()?;
        ensure!(code == 0, "{said:#}");
        Ok(())
    })?;
    let (_, said) = look()?;
    let nodes = said["nodes"].as_array().context("a list")?;
    ensure!(nodes.len() == 2, "{said:#}");
    for node in nodes {
        ensure!(
            node["in_step"] == "synced" && node["agent"] == "ready",
            "{node:#}"
        );
        ensure!(node["pods_wanted"] == node["pods_captured"], "{node:#}");
        ensure!(node["certificates"].as_u64() > Some(0), "{node:#}");
    }
    let table = keelson(mesh.lab, &["status"])?.stdout;
    let table = String::from_utf8(table)?;
    ensure!(table.starts_with("NODE   AGENT   VERSION"), "{table}");
    let (code, said) = asked(mesh.lab, &["check"])?;
    ensure!(code == 0, "{said:#}");
    let (code, said) = asked(mesh.lab, &["status", "n1"])?;
    ensure!(
        code == 0 && said["nodes"].as_array().is_some_and(|all| all.len() == 1),
        "{said:#}"
    );
    let wrong = keelson(mesh.lab, &["status", "n9"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    Ok(())
}

#[test]
fn the_command_line_shows_what_agents_know_and_carry() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.apply(&format!("{STRICT}---\n{ALLOW}"), "readers")?;
    let open = crate::fixture::connect(&mesh.web, mesh.far()?)?;
    ensure!(crate::fixture::exchange(&open, b"hello") == Ended::Answered);
    for (what, texts) in [
        (
            &["workload", "-n", "shop"][..],
            &[
                "server",
                "PeerAuthentication shop/only-mtls",
                "tunnel (mutual TLS)",
            ][..],
        ),
        (&["workload", "-n", "out"], &["stranger", "plain TCP"]),
        (
            &["policy"],
            &[
                "AuthorizationPolicy shop/readers",
                "ALLOW",
                "every STRICT PeerAuthentication",
            ],
        ),
        (
            &["certificate", "--node", "n2"],
            &["spiffe://cluster.local/ns/shop/sa/server"],
        ),
        (
            &["connections"],
            &["shop/web", "outbound", "mutual_tls", "inbound"],
        ),
        (&["log"], &["n1", "n2"]),
    ] {
        let output = keelson(mesh.lab, &[&["proxy-config"], what].concat())?;
        let shown = String::from_utf8(output.stdout)?;
        let failed = String::from_utf8_lossy(&output.stderr);
        for text in texts {
            ensure!(
                shown.contains(text),
                "{what:?}: {text:?}\n{shown}\n{failed}"
            );
        }
        ensure!(output.status.code() == Some(0), "{what:?}: {failed}");
    }
    drop(open);
    mesh.clear()
}

#[test]
fn validate_says_what_the_controller_says() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let broken = DENY.replace("principals", "principal");
    mesh.lab.apply(
        "policies.yaml",
        &format!("{L7}---\n{broken}---\n{ALLOW}---\n{ALLOW}"),
    )?;
    let page = || -> Result<Value> {
        Ok(serde_json::from_str(
            &mesh.lab.controller_get("/debug/diagnostics")?,
        )?)
    };
    lab::wait_until(
        "the controller has read it",
        crate::fixture::APPLIES,
        || Ok(page()?.to_string().contains("is defined again")),
    )?;
    let said = page()?;
    let folder = mesh.lab.manifests_dir();
    let folder = folder.to_str().context("a path in UTF-8")?;
    let output = Command::new(lab::find_program("keelson")?)
        .args(["validate", "-o", "json", "-f", folder])
        .output()?;
    let text = String::from_utf8(output.stdout)?.replace(&format!("{folder}/"), "");
    let offline: Value = serde_json::from_str(&text)?;
    let cleared = mesh.clear();
    ensure!(output.status.code() == Some(1), "{text}");
    ensure!(
        offline == said,
        "offline {offline:#}\nthe controller {said:#}"
    );
    cleared
}

#[test]
fn a_bug_report_has_no_key_and_no_token_inside() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("report.tar");
    let file = path.to_str().context("a path in UTF-8")?;
    let output = keelson(mesh.lab, &["bug-report", "--file", file])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let report = std::fs::read(&path)?;
    let has = |text: &[u8]| report.windows(text.len()).any(|window| window == text);
    for there in [
        "nodes/n1/config_dump.json",
        "nodes/n2/certificates.json",
        "controllers/controller/sync.json",
        "shop/sa/server",
    ] {
        ensure!(has(there.as_bytes()), "{there}");
    }
    for node in ["n1", "n2"] {
        let token = std::fs::read_to_string(mesh.lab.token_file(node)?)?;
        ensure!(!has(token.trim().as_bytes()), "the token of {node}");
    }
    ensure!(!has(b"PRIVATE KEY"), "a private key");
    let again = keelson(mesh.lab, &["bug-report", "--file", file])?;
    ensure!(
        again.status.code() == Some(2),
        "an existing file is not written over"
    );
    Ok(())
}
