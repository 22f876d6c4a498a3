//! Nodes that come with a startup taint.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, eventually, get, kubectl, nodes, pod};

use crate::away::{with_agents, without_agents};
use crate::installed::{CONTROLLER, Installed, NAMESPACE};

const TAINT: &str = "keelson.io/agent-not-ready";

/// The keys of a node's taints.
fn taints(node: &str) -> Result<Vec<String>> {
    let node = get(&["node", node])?;
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let key = |taint: &Value| taint["key"].as_str().unwrap_or_default().to_owned();
    Ok(taints.map(key).collect())
}

/// A node that is made with taints, ours and another's.
struct Tainted(String);

impl Tainted {
    fn new(node: &str) -> Result<Self> {
        let (ours, other) = (
            format!("{TAINT}=:NoSchedule"),
            "example.org/other=:PreferNoSchedule",
        );
        kubectl(&["taint", "node", node, "--overwrite", &ours, other])?;
        Ok(Self(node.to_owned()))
    }

    fn remove(&self) {
        for key in taints(&self.0).unwrap_or_default() {
            drop(kubectl(&["taint", "node", &self.0, &format!("{key}-")]));
        }
    }
}

impl Drop for Tainted {
    fn drop(&mut self) {
        self.remove();
    }
}

fn may_patch_nodes() -> Result<bool> {
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:{CONTROLLER}");
    // Its exit code says no too.
    let said = kubectl(&["auth", "can-i", "patch", "nodes", &account]);
    match said {
        Ok(text) => Ok(text.trim() == "yes"),
        Err(error) if format!("{error:#}").contains("exit status: 1") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Issue 9: what starts on a new node before its agent would be outside of the mesh for a while.
#[test]
#[ignore = "nightly"]
fn a_new_node_takes_pods_when_its_agent_is_ready_and_not_before() -> Result<()> {
    let mesh = Installed::install_with(json!({"agent": {"startupTaint": true}}))?;
    ensure!(may_patch_nodes()?);
    let all = nodes()?;
    let Some(node) = all.last() else {
        bail!("there is no node");
    };
    let namespace = Namespace::create("taint")?;
    without_agents(&mesh, &["--wait=true"])?;
    let tainted = Tainted::new(node)?;
    namespace.apply(&[pod("early", Some(node), CLIENT)])?;
    eventually("the pod has no place", || {
        let early = namespace.get(&["pod", "early"])?;
        let conditions = early["status"]["conditions"].to_string();
        ensure!(conditions.contains("untolerated taint"), "{early}");
        Ok(())
    })?;
    ensure!(
        taints(node)?.contains(&TAINT.to_owned()),
        "no agent is ready"
    );

    with_agents()?;
    namespace.wait_ready("early")?;
    ensure!(
        taints(node)? == ["example.org/other"],
        "{:?}",
        taints(node)?
    );

    // Where the value is not set nothing is taken off, and nobody may.
    drop(tainted);
    drop(mesh);
    let _mesh = Installed::install()?;
    ensure!(!may_patch_nodes()?);
    Ok(())
}
