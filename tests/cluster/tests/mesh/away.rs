//! What happens on a node while no agent runs there: pods of the mesh wait, everything else starts.

use anyhow::{Result, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, eventually, kubectl, nodes, pod};

use crate::installed::{AGENT, Installed, NAMESPACE};
use crate::pair::Pair;

/// A selector that no node satisfies would let the pods go. So the agents are kept from running: their image is one that no
/// node has, and those that run are killed with their pods, which are deleted so.
pub(crate) fn without_agents(mesh: &Installed, how: &[&str]) -> Result<()> {
    let broken = json!({"spec": {
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
        "template": {"spec": {"containers": [{"name": "node-agent", "image": "keelson.io/absent:1"}]}},
    }});
    patch(&broken)?;
    let label = format!("app.kubernetes.io/name={AGENT}");
    let words = ["-n", NAMESPACE, "delete", "pods", "-l", &label];
    kubectl(&[&words[..], how].concat())?;
    no_agent_runs(mesh)
}

/// Lets them run again.
pub(crate) fn with_agents() -> Result<()> {
    let image = json!([{"name": "node-agent", "image": "keelson.io/node-agent:0.0.0"}]);
    patch(&json!({"spec": {"template": {"spec": {"containers": image}}}}))?;
    let label = format!("app.kubernetes.io/name={AGENT}");
    let words = [
        "-n",
        NAMESPACE,
        "delete",
        "pods",
        "-l",
        &label,
        "--wait=true",
    ];
    kubectl(&words).map(drop)
}

fn no_agent_runs(mesh: &Installed) -> Result<()> {
    for node in nodes()? {
        eventually("no agent runs", || {
            let running = mesh.on(&node, "pgrep -x keelson-node-ag || true")?;
            ensure!(running.is_empty(), "{running}");
            Ok(())
        })?;
    }
    Ok(())
}

fn patch(change: &serde_json::Value) -> Result<()> {
    let words = ["-n", NAMESPACE, "patch", "daemonset", AGENT, "--patch"];
    kubectl(&[&words[..], &[&change.to_string()]].concat()).map(drop)
}

/// F12: only those who need an agent wait for one.
#[test]
#[ignore = "nightly"]
fn while_no_agent_runs_pods_of_the_mesh_wait_with_an_event_and_all_others_start() -> Result<()> {
    let mesh = Installed::install()?;
    let (inside, outside) = (Namespace::create("inside")?, Namespace::create("beside")?);
    kubectl(&[
        "label",
        "namespace",
        inside.name(),
        "keelson.io/mesh=enabled",
    ])?;
    let nodes = nodes()?;
    inside.apply(&[pod("known", nodes.first().map(String::as_str), CLIENT)])?;
    inside.wait_ready("known")?;
    for node in &nodes {
        eventually("the agent remembers the namespace", || {
            let file = mesh.on(node, "cat /var/lib/keelson/mesh.json")?;
            ensure!(file.contains(inside.name()), "{file}");
            Ok(())
        })?;
    }
    without_agents(&mesh, &["--wait=true"])?;

    inside.apply(&[pod("waits", None, CLIENT)])?;
    outside.apply(&[pod("starts", None, CLIENT)])?;
    outside.wait_ready("starts")?;
    let in_system = [
        "-n",
        "kube-system",
        "rollout",
        "restart",
        "deployment/coredns",
    ];
    kubectl(&in_system)?;
    let words = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
    ];
    kubectl(&[&words[..], &["--timeout=120s"]].concat())?;
    eventually("an event says why", || {
        let events = inside.kubectl(&[
            "get",
            "events",
            "--field-selector=involvedObject.name=waits",
        ])?;
        ensure!(
            events.contains("the Keelson agent does not run on this node"),
            "{events}"
        );
        ensure!(events.contains("belongs to the mesh"), "{events}");
        Ok(())
    })?;
    let waiting = inside.get(&["pod", "waits"])?;
    ensure!(waiting["status"]["phase"] == "Pending", "{waiting}");
    // Deleting works all the same.
    outside.kubectl(&["delete", "pod", "starts", "--timeout=60s"])?;
    inside.kubectl(&["delete", "pod", "known", "--timeout=60s"])?;

    // The agents come back, also where a mesh pod waits for them.
    with_agents()?;
    inside.wait_ready("waits")?;
    Ok(())
}

/// The first promise, never bypassed: an agent's token ends with its pod, which another one is to replace.
#[test]
fn an_agent_whose_pod_is_deleted_by_force_leaves_its_pods_captured() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "forced")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    without_agents(&mesh, &["--force", "--grace-period=0"])?;
    for pod in ["client", "server"] {
        let rules = pair.namespace.exec(pod, "ip rule list")?;
        ensure!(rules.contains("fwmark"), "{pod} was let go: {rules}");
    }
    pair.is_readable().unwrap_err();
    Ok(())
}

/// The first promise, never bypassed: who cannot be asked has not said yes.
#[test]
#[ignore = "nightly"]
fn an_agent_that_cannot_ask_whether_it_was_removed_leaves_its_pods_captured() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "deaf")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let api = kubectl(&[
        "get",
        "service",
        "kubernetes",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    // Before kube-proxy makes it an address that the kubelet uses too.
    let deaf = |how: &str| -> Result<()> {
        let rule = format!("iptables -w -t raw {how} OUTPUT -d {api} -j DROP");
        nodes()?
            .iter()
            .try_for_each(|node| mesh.on(node, &rule).map(drop))
    };
    deaf("-I")?;
    let deleted = kubectl(&["-n", NAMESPACE, "delete", "daemonset", AGENT]);
    let gone = deleted.and_then(|_| no_agent_runs(&mesh));
    deaf("-D")?;
    gone?;
    for pod in ["client", "server"] {
        let rules = pair.namespace.exec(pod, "ip rule list")?;
        ensure!(rules.contains("fwmark"), "{pod} was let go: {rules}");
    }
    pair.is_readable().unwrap_err();

    mesh.apply()?;
    pair.until_readable(false)
}
