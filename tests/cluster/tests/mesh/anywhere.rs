//! The mesh on any cluster: what the API server and the pods themselves can show. A link is read by other tests.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::command_line::{asked, good};
use crate::installed::Installed;

/// Section A of issue 11: what a user of somebody's cluster has by a kubeconfig alone: running pods are captured and let go by a label,
/// STRICT refuses who is outside, a DENY is explained, nothing is restarted.
#[test]
fn a_label_and_policies_take_effect_by_a_kubeconfig_alone() -> Result<()> {
    let mut mesh = Installed::install()?;
    let (inside, outside) = (Namespace::create("any")?, Namespace::create("beside")?);
    let all = nodes()?;
    let (Some(here), Some(there)) = (all.first(), all.last()) else {
        bail!("no node takes pods");
    };
    inside.apply(&[
        pod("client", Some(here), CLIENT),
        pod("server", Some(there), SERVER),
    ])?;
    outside.apply(&[pod("visitor", Some(here), CLIENT)])?;
    for (namespace, name) in [
        (&inside, "client"),
        (&inside, "server"),
        (&outside, "visitor"),
    ] {
        namespace.wait_ready(name)?;
    }
    let ask = who_at(inside.pod_ip("server")?);
    inside.exec("client", &ask)?;

    let label = |value: &str| kubectl(&["label", "namespace", inside.name(), value]);
    label("keelson.io/mesh=enabled")?;
    let client = format!("{}/client", inside.name());
    let server = SocketAddr::new(inside.pod_ip("server")?, 8080).to_string();
    eventually("a tunnel leads there", || {
        let (_, said, _) = asked(&["explain", &client, &server], "")?;
        ensure!(said["verdict"] == "allowed", "{said:#}");
        ensure!(
            said["ways"][0]["path"] == path_between(here, there),
            "{said:#}"
        );
        Ok(())
    })?;
    let answer = inside.exec("client", &ask)?;
    ensure!(
        answer.trim() == format!("server {}", inside.pod_ip("client")?),
        "{answer}"
    );
    eventually("every node is in step", || good(&["status"], ""))?;

    outside.exec("visitor", &ask)?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    inside.apply(&[strict])?;
    eventually("a plain client is refused", || {
        match outside.exec("visitor", &ask) {
            Ok(answer) => bail!("it got {answer}"),
            Err(_) => Ok(()),
        }
    })?;
    inside.exec("client", &ask)?;
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny"}, "spec": {"action": "DENY", "rules": [{}]},
    });
    inside.apply(&[deny])?;
    eventually("the client is refused", || {
        match inside.exec("client", &ask) {
            Ok(answer) => bail!("it got {answer}"),
            Err(_) => Ok(()),
        }
    })?;
    let (_, said, _) = asked(&["explain", &client, &server], "")?;
    ensure!(
        said["verdict"] == "refused" && said.to_string().contains("deny"),
        "{said:#}"
    );

    label("keelson.io/mesh-")?;
    for (from, name) in [(&inside, "client"), (&outside, "visitor")] {
        eventually("it is let go", || from.exec(name, &ask))?;
    }
    for name in ["client", "server"] {
        let pod = inside.get(&["pod", name])?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{name}: {restarts}");
    }
    mesh.uninstall()?;
    inside.exec("client", &ask).map(drop).context("after it")
}

fn path_between(here: &str, there: &str) -> &'static str {
    if here == there { "direct" } else { "tunnel" }
}
