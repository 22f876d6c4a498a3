//! The controller's own admin pages: what it found, what it serves, who took it.

use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use proto::{agent, istio};
use runtime::admin::{Reply, Server};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::diagnostics::Diagnostics;
use crate::pipeline::Published;
use crate::resource::Resource;
use crate::serve::sync::SyncStatus;
use crate::snapshot::Snapshot;

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
            "/debug/config_dump",
            "every resource that is served",
            move |_| {
                let published = published.borrow().clone();
                Reply::json(&dump(&published.snapshot))
            },
        )
}

fn dump(snapshot: &Snapshot) -> Value {
    let addresses = snapshot
        .addresses
        .values()
        .map(|resource| entry(resource, address(resource)));
    let policies = snapshot
        .authorizations
        .values()
        .map(|r| entry(r, debug::<istio::security::Authorization>(r)));
    let nodes = snapshot.nodes.iter().map(|(node, pods)| {
        let pods = pods
            .values()
            .map(|pod| entry(&pod.resource, debug::<agent::NodePod>(&pod.resource)));
        (node.to_string(), Value::Array(pods.collect()))
    });
    json!({
        "generation": snapshot.generation,
        "addresses": addresses.collect::<Vec<_>>(),
        "authorizations": policies.collect::<Vec<_>>(),
        "nodes": nodes.collect::<serde_json::Map<_, _>>(),
    })
}

fn entry(resource: &Resource, text: String) -> Value {
    json!({ "name": &*resource.name, "version": &*resource.version, "resource": text })
}

fn address(resource: &Resource) -> String {
    use istio::workload::address::Type;
    match istio::workload::Address::decode(resource.body.clone()).map(|address| address.r#type) {
        Ok(Some(Type::Workload(workload))) => format!("{workload:?}"),
        Ok(Some(Type::Service(service))) => format!("{service:?}"),
        Ok(None) => String::new(),
        Err(error) => error.to_string(),
    }
}

fn debug<M: Message + Default + std::fmt::Debug>(resource: &Resource) -> String {
    M::decode(resource.body.clone())
        .map_or_else(|error| error.to_string(), |message| format!("{message:?}"))
}
