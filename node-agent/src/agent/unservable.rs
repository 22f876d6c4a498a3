//! A node that no agent can serve: its kernel is too old, or lacks what captures pods.
//!
//! An agent that ended there would be started again and again, and say why only in its log. It stays instead, is not
//! ready, and says why: on its page of health, in a metric, and in an event of its DaemonSet. Nothing is captured.

use std::{fs, path::Path, time::SystemTime};

use prometheus_client::metrics::{family::Family, gauge::Gauge};
use runtime::{
    admin::{Exposure, Readiness, Server},
    drain::Drain,
    metrics::Metrics,
    signals::StopSignals,
};
use serde_json::json;

use super::{config::RunArgs, presence};
use crate::host::kernel_version;

/// Why no agent can serve a node.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unservable(pub(super) String);

/// What of this node keeps every agent from serving it, as far as can be seen without trying.
pub(super) fn look() -> Result<(), Unservable> {
    kernel_version::check().map_err(|error| Unservable(error.to_string()))?;
    has_btf(Path::new(BTF))
}

fn has_btf(path: &Path) -> Result<(), Unservable> {
    if fs::exists(path).unwrap_or(true) {
        return Ok(());
    }
    Err(Unservable(format!(
        "the kernel has no BTF ({BTF}), by which programs find its structures: it must be built with CONFIG_DEBUG_INFO_BTF"
    )))
}

/// Stays until it is stopped, and says why it does nothing else. Where another agent is in charge of the node it ends
/// with the reason: that one serves the node, and goes on.
pub(super) async fn stay(
    args: &RunArgs,
    log: runtime::log::LogHandle,
    mut signals: StopSignals,
    reason: Unservable,
) -> anyhow::Result<()> {
    // Alone at the address: the kubelet would take another's answer for this one's.
    if Server::bind(args.admin, Exposure::Loopback).await.is_err() {
        return Err(reason.into());
    }
    // Beside whoever comes: a successor with another version or other flags.
    let server = Server::bind_beside(args.admin, Exposure::Loopback)?;
    let node = &args.node;
    tracing::error!(%node, %reason, "wanted, cannot: this node cannot be served; nothing is captured here");
    let readiness = Readiness::new();
    readiness.cannot(reason.to_string());
    let metrics = Metrics::new();
    register(&metrics, &reason);
    let drain = Drain::new();
    let server = server
        .with_readiness(readiness)
        .with_metrics(metrics)
        .with_log(log)
        .run(drain.signal());
    let serving = tokio::task::spawn_local(server);
    if let Some(set) = args.daemon_set.clone() {
        let event = event(&set, node, &reason);
        // It waits, and nothing depends on it.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = presence::tell(&set.namespace, &event) {
                tracing::warn!(%error, "no event could be made of it");
            }
        });
    }
    let stopped = signals.next().await;
    tracing::info!(reason = %stopped, "stopped");
    serving.abort();
    Ok(())
}

fn register(metrics: &Metrics, reason: &Unservable) {
    let family = Family::<[(String, String); 1], Gauge>::default();
    family
        .get_or_create(&[("because".to_owned(), reason.to_string())])
        .set(1);
    metrics.register(|registry| {
        registry.register(
            "keelson_node_unservable",
            "1 where an agent is wanted and cannot serve its node, with the reason",
            family,
        );
    });
}

/// An event of the DaemonSet: `kubectl describe daemonset` shows it.
fn event(set: &presence::DaemonSet, node: &str, reason: &Unservable) -> serde_json::Value {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"generateName": format!("{}-unservable-", set.name), "namespace": set.namespace},
        "type": "Warning", "reason": "NodeUnservable",
        "message": format!("node {node}: wanted, cannot: {reason}"),
        "involvedObject": {
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": set.name, "namespace": set.namespace,
        },
        "source": {"component": "keelson-node-agent", "host": node},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_btf_is_named_with_what_it_lacks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vmlinux");
        let said = has_btf(&path).expect_err("it is not there").to_string();
        assert!(said.contains("CONFIG_DEBUG_INFO_BTF"), "{said}");
        fs::write(&path, "").expect("writes");
        has_btf(&path).expect("it is there");
    }

    #[test]
    fn the_event_is_of_the_daemon_set_and_names_the_node() {
        let set: presence::DaemonSet = "mesh/agents".parse().expect("a name");
        let event = event(&set, "n1", &Unservable("too old".to_owned()));
        assert_eq!(event["message"], "node n1: wanted, cannot: too old");
        assert_eq!(event["involvedObject"]["name"], "agents");
        assert_eq!(event["metadata"]["namespace"], "mesh");
    }
}
