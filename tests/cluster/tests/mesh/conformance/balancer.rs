//! Gives Services of type LoadBalancer an address, which the nodes' kube-proxy then knows: the cluster has nobody else who does.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::{Deserializer, Value, json};
use tests_cluster::kubectl;

/// Does so until it is dropped.
pub(super) struct Balancer(Child);

impl Balancer {
    /// Follows all Services.
    pub(super) fn start() -> Result<Self> {
        let mut child = Command::new("kubectl")
            .args(["get", "services", "-A", "--watch", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let output = child.stdout.take().context("its output is a pipe")?;
        thread::spawn(move || {
            let mut given: BTreeMap<String, u8> = BTreeMap::new();
            for service in Deserializer::from_reader(output).into_iter::<Value>() {
                let Ok(service) = service else { break };
                drop(give(&service, &mut given));
            }
        });
        Ok(Self(child))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An address for a Service that waits for one.
fn give(service: &Value, given: &mut BTreeMap<String, u8>) -> Result<()> {
    let has = service["status"]["loadBalancer"]["ingress"].is_array();
    if service["spec"]["type"] != "LoadBalancer" || has {
        return Ok(());
    }
    let text = |field: &str| service["metadata"][field].as_str().context("a text");
    let next = u8::try_from(given.len() + 1)?;
    let number = *given.entry(text("uid")?.to_owned()).or_insert(next);
    let patch =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": format!("{POOL}.{number}")}]}}});
    kubectl(&[
        "-n",
        text("namespace")?,
        "patch",
        "service",
        text("name")?,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch.to_string(),
    ])
    .map(drop)
}

/// Nobody else's; packets for it leave a node by its default route unless kube-proxy knows better.
const POOL: &str = "172.30.254";
