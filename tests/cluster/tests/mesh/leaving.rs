//! Roads out of a cluster that nobody of ours was asked about.

use anyhow::{Result, ensure};
use serde_json::json;
use tests_cluster::{Namespace, eventually, kubectl, nodes};

use crate::installed::{AGENT, Installed, NAMESPACE};
use crate::lifecycle::talks_on_and_nothing_is_on_the_nodes;
use crate::pair::Pair;

/// Issue 11, B11, A66: whoever deletes the namespace has removed the mesh, and the cluster takes policies again.
#[test]
#[ignore = "nightly"]
fn a_namespace_that_is_deleted_lets_pods_go_and_leaves_nothing_that_refuses() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "deleted")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    kubectl(&["delete", "namespace", NAMESPACE, "--timeout=120s"])?;
    talks_on_and_nothing_is_on_the_nodes(&mesh, &pair)?;
    eventually("policies are taken", || a_policy(&pair.namespace))?;
    let ours = |verb: &str, kind: &str| {
        let words = [verb, kind, "-l", "app.kubernetes.io/part-of=keelson"];
        let said = kubectl(&[&words[..], &["-o", "name"]].concat());
        said.map(|said| said.trim().to_owned())
    };
    // What would refuse policies goes with the namespace. Roles that nobody has any more do nothing, and are to be deleted.
    eventually("no webhook is left", || {
        let left = ours("get", "validatingwebhookconfigurations")?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    let roles = "clusterroles,clusterrolebindings";
    ours("delete", roles)?;
    let left = ours("get", roles)?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// Issue 11, B11: without the DaemonSet there is no mesh on any node; what is left of the installation goes on, and brings it back.
#[test]
#[ignore = "nightly"]
fn a_daemon_set_that_is_deleted_lets_pods_go_and_an_installation_takes_them_again() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "bare")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    kubectl(&[
        "-n",
        NAMESPACE,
        "delete",
        "daemonset",
        AGENT,
        "--timeout=120s",
    ])?;
    for node in nodes()? {
        eventually("the agent is gone", || {
            let running = mesh.on(&node, "pgrep -x keelson-node-ag || true")?;
            ensure!(running.is_empty(), "{running}");
            Ok(())
        })?;
    }
    talks_on_and_nothing_is_on_the_nodes(&mesh, &pair)?;
    a_policy(&pair.namespace)?;
    mesh.apply()?;
    let again = Pair::create(&mesh, "again")?;
    again.label("keelson.io/mesh=enabled")?;
    again.until_readable(false)
}

/// One that is applied, changed and deleted.
fn a_policy(namespace: &Namespace) -> Result<()> {
    for mode in ["PERMISSIVE", "STRICT"] {
        namespace.apply(&[json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "written"}, "spec": {"mtls": {"mode": mode}},
        })])?;
    }
    let words = ["delete", "peerauthentication", "written", "--timeout=30s"];
    namespace.kubectl(&words).map(drop)
}
