//! A shop behind a waypoint: `cart` in two versions on two nodes, and clients on both.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec, find_program};
use tests_lab::{Shared, namespace};

/// How long a change of a manifest may take until a request notices it.
pub(crate) const APPLIES: Duration = Duration::from_secs(15);
/// The service's address.
pub(crate) const CART: &str = "10.96.0.50";

/// The lab of these tests.
pub(crate) static SHOP: Shared = Shared::new(shop);

fn shop() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    lab.apply(
        "namespaces.yaml",
        &namespace(
            "shop",
            &[
                ("keelson.io/mesh", "enabled"),
                ("istio.io/use-waypoint", "waypoint"),
            ],
        ),
    )?;
    lab.apply("service.yaml", SERVICE)?;
    for (version, node) in [("v1", "n2"), ("v2", "n1")] {
        let server = find_program("keelson-lab-app")?;
        let server = server.to_str().context("a path in UTF-8")?;
        let spec = PodSpec::new("shop", &format!("cart-{version}"), node)
            .service_account("cart")
            .label("app", "cart")
            .label("version", version)
            .container("server", &[server, "http-server", "--text", version]);
        lab.create(&spec)?;
    }
    for (name, node) in [("front", "n1"), ("back", "n2")] {
        lab.create(&PodSpec::new("shop", name, node).service_account(name))?;
    }
    lab.apply(
        "bank.yaml",
        &namespace("bank", &[("keelson.io/mesh", "enabled")]),
    )?;
    lab.create(&PodSpec::new("bank", "teller", "n1").service_account("teller"))?;
    lab.apply("outside.yaml", &namespace("outside", &[]))?;
    lab.create(&PodSpec::new("outside", "plain", "n1"))?;
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    lab.apply("rule.yaml", RULE)?;
    testkit::eventually("the waypoint answers", 2 * APPLIES, || {
        let answer = get(&lab, "front", "/", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    Ok(lab)
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.50
  clusterIPs: [10.96.0.50]
  selector: {app: cart}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

/// The Gateway `waypoint` of a namespace, for what `istio.io/waypoint-for` says.
pub(crate) fn gateway(namespace: &str, is_for: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: {namespace}, labels: {{istio.io/waypoint-for: {is_for}}}}}
spec:
  gatewayClassName: keelson-waypoint
  listeners:
  - {{name: mesh, port: 15008, protocol: HBONE}}
"
    )
}

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec:
  host: cart
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
";

/// A VirtualService for `cart` with this list of rules.
pub(crate) fn virtual_service(http: &str) -> String {
    let mut text = String::from(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: cart, namespace: shop}\nspec:\n  hosts: [cart]\n  http:\n",
    );
    for line in http.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

/// An answer as curl saw it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) seconds: f64,
}

/// Asks `cart` from a pod of the shop, with further arguments for curl.
pub(crate) fn get(lab: &Lab, from: &str, path: &str, args: &[&str]) -> Result<Answer> {
    curl(lab, from, &format!("http://{CART}{path}"), args)
}

/// Asks anything from a pod, of the shop unless it is written with its namespace. No answer at all is status 0.
pub(crate) fn curl(lab: &Lab, from: &str, url: &str, args: &[&str]) -> Result<Answer> {
    let pod = match from.contains('/') {
        true => lab.pod(from)?,
        false => lab.pod(&format!("shop/{from}"))?,
    };
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "10"]);
    if !args.iter().any(|arg| arg.starts_with("Host: ")) {
        command.args(["--header", "Host: cart"]);
    }
    command.args(["--write-out", "\n%{http_code} %{time_total}"]);
    let output = pod.run(|| command.args(args).arg(url).output())??;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((body, last)) = text.rsplit_once('\n') else {
        bail!("curl wrote {text:?}");
    };
    let (status, seconds) = last.split_once(' ').context("curl's own line")?;
    Ok(Answer {
        status: status.parse()?,
        body: body.to_owned(),
        seconds: seconds.parse()?,
    })
}

/// Which version answered, of so many requests on one connection each.
pub(crate) fn versions(
    lab: &Lab,
    from: &str,
    path: &str,
    args: &[&str],
    count: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let answer = get(lab, from, path, args)?;
        *seen.entry(version(&answer)).or_default() += 1;
    }
    Ok(seen)
}

/// The version in an answer, or its status.
pub(crate) fn version(answer: &Answer) -> String {
    let named = ["v1", "v2"]
        .into_iter()
        .find(|name| answer.status == 200 && answer.body.contains(&format!("\"{name}\"")));
    named.map_or_else(|| answer.status.to_string(), str::to_owned)
}

/// Applies the rules and waits until `holds` does.
pub(crate) fn apply(lab: &Lab, http: &str, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
    lab.apply("virtual-service.yaml", &virtual_service(http))?;
    testkit::eventually("the rules apply", APPLIES, &mut holds)
}

/// Does `check` while a manifest is there.
pub(crate) fn with(
    lab: &Lab,
    file: &str,
    text: &str,
    check: impl FnOnce() -> Result<()>,
) -> Result<()> {
    lab.apply(file, text)?;
    let checked = check();
    lab.delete(file)?;
    checked
}

/// Asserts that `from` gets this status, at the latest when what was applied has arrived.
pub(crate) fn gets(lab: &Lab, from: &str, url: &str, args: &[&str], status: u16) -> Result<()> {
    testkit::eventually(&format!("{from} gets {status} of {url}"), APPLIES, || {
        let answer = curl(lab, from, url, args)?;
        ensure!(answer.status == status, "{from} {url} {args:?}: {answer:?}");
        Ok(())
    })
}
