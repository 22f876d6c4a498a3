//! The controller's own admin pages: what it found, what it serves, who took it.

use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use proto::agent::{Capture, NodePod};
use proto::convert;
use runtime::admin::{Reply, Server};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::pipeline::Published;
use crate::serve::sync::SyncStatus;
use compile::diagnostics::Diagnostics;
use compile::resource::Resource;
use compile::snapshot::Snapshot;

/// Adds the pages to `server`.
pub(crate) fn add(
    server: Server,
    published: watch::Receiver<Arc<Published>>,
    diagnostics: Arc<Mutex<Diagnostics>>,
    status: Arc<Mutex<SyncStatus>>,
) -> Server {
    server
        .page(
            "/debug/diagnostics",
            "what is wrong with the manifests, with file, line and field",
            move |_| Reply::json(&diagnostics.lock().all()),
        )
        .page(
            "/debug/synz",
            "connected nodes: what each was sent and what each took",
            move |_| Reply::json(&*status.lock()),
        )
        .page(
            "/debug/unreported",
            "pods that are to be captured and that no agent says it has captured, by node",
            {
                let published = published.clone();
                move |_| Reply::json(&unreported(&published.borrow().snapshot))
            },
        )
        .page(
            "/debug/config_dump",
            "every resource that is served",
            move |_| {
                let published = published.borrow().clone();
                Reply::json(&dump(&published.snapshot))
            },
        )
}

fn unreported(snapshot: &Snapshot) -> Value {
    let nodes = snapshot.unreported.iter().map(|(node, pods)| {
        let pods = pods.iter().map(|pod| json!(**pod));
        (node.to_string(), Value::Array(pods.collect()))
    });
    Value::Object(nodes.collect())
}

fn dump(snapshot: &Snapshot) -> Value {
    let addresses = snapshot
        .addresses
        .values()
        .map(|resource| entry(resource, address(resource)));
    let policies = snapshot
        .authorizations
        .values()
        .map(|resource| entry(resource, policy(resource)));
    let nodes = snapshot.nodes.iter().map(|(node, pods)| {
        let pods = pods
            .values()
            .map(|pod| entry(&pod.resource, node_pod(&pod.resource)));
        (node.to_string(), Value::Array(pods.collect()))
    });
    json!({
        "generation": snapshot.generation,
        "addresses": addresses.collect::<Vec<_>>(),
        "authorizations": policies.collect::<Vec<_>>(),
        "announced": snapshot.announced.keys().map(|uid| &**uid).collect::<Vec<_>>(),
        "nodes": nodes.collect::<serde_json::Map<_, _>>(),
    })
}

fn entry(resource: &Resource, content: Value) -> Value {
    json!({ "name": &*resource.name, "version": &*resource.version, "resource": content })
}

fn address(resource: &Resource) -> Value {
    match convert::address(resource.body()) {
        Ok(convert::Address::Workload(workload)) => json!({ "workload": workload }),
        Ok(convert::Address::Tombstone(tombstone)) => json!({ "tombstone": tombstone }),
        Ok(convert::Address::Service(service)) => json!({ "service": service }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn policy(resource: &Resource) -> Value {
    match convert::authorization(&resource.name, resource.body()) {
        Ok(policy) => json!(policy),
        Err(rejected) => json!({ "error": rejected.to_string() }),
    }
}

fn node_pod(resource: &Resource) -> Value {
    match NodePod::decode(resource.body()) {
        Ok(pod) => json!({
            "podUid": pod.pod_uid,
            "serviceAccount": pod.service_account,
            "capture": pod.capture() == Capture::Capture,
            "reason": pod.reason,
        }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}
