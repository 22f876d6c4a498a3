//! The admin pages, on loopback: what the agent knows, holds, carries and has refused.

use std::sync::Arc;

use runtime::admin::{Query, Reply, Server};
use serde_json::json;
use tls::SvidStore;
use tokio::sync::oneshot;

use crate::{
    direct::DirectHandle,
    enrol::{Command, EnrolHandle},
    mesh::Mesh,
    worker::{Shared, WorkerHandle},
};

/// Adds the agent's pages.
#[must_use]
pub fn pages(
    server: Server,
    shared: &Arc<Shared>,
    workers: &[WorkerHandle],
    certs: &SvidStore,
    enrol: &EnrolHandle,
    direct: &DirectHandle,
    abi_version: u32,
) -> Server {
    let server = config_dump(server, &shared.mesh, enrol, abi_version);
    let store = certs.clone();
    let server = server.page(
        "/certs",
        "certificates: identity, SANs, validity, state, last error (JSON)",
        move |_| certs_page(&store),
    );
    let refusals = Arc::clone(shared);
    let server = server.page(
        "/refusals",
        "the last refused connections with their reasons (JSON)",
        move |_| Reply::json(&refusals.recorder.refusals.list()),
    );
    connections(server, workers, direct)
}

fn config_dump(server: Server, mesh: &Arc<Mesh>, enrol: &EnrolHandle, abi_version: u32) -> Server {
    let (mesh, enrol) = (Arc::clone(mesh), enrol.clone());
    server.route(
        "/config_dump",
        &[http::Method::GET],
        "workloads, services, policies and pods of this node (JSON)",
        move |_: Query| {
            let (mesh, enrol) = (Arc::clone(&mesh), enrol.clone());
            async move {
                let (reply, answer) = oneshot::channel();
                enrol.send(Command::List(reply));
                let pods = answer.await.unwrap_or_default();
                let state = mesh.state();
                let workloads: Vec<_> = state.workloads().collect();
                let services: Vec<_> = state.services().collect();
                let policies: Vec<_> = state.policies().collect();
                Reply::json(&json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "abi": abi_version,
                    "pid": std::process::id(),
                    "pods": pods,
                    "workloads": workloads,
                    "services": services,
                    "policies": policies,
                }))
            }
        },
    )
}

fn certs_page(store: &SvidStore) -> Reply {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let certs: Vec<_> = store
        .snapshot()
        .into_iter()
        .map(|status| {
            json!({
                "identity": status.identity.to_string(),
                "state": status.state.as_str(),
                "sans": status.cert.as_ref().map(|cert| cert.sans.clone()),
                "serial": status.cert.as_ref().map(|cert| cert.serial.clone()),
                "not_before": status.cert.as_ref().map(|cert| seconds(cert.not_before)),
                "not_after": status.cert.as_ref().map(|cert| seconds(cert.not_after)),
                "renewal": status.renewal.map(seconds),
                "failures": status.failures,
                "last_error": status.last_error.as_ref().map(|error| crate::enrol::describe(error)),
            })
        })
        .collect();
    Reply::json(&certs)
}

fn connections(server: Server, workers: &[WorkerHandle], direct: &DirectHandle) -> Server {
    let workers: Arc<[WorkerHandle]> = workers.into();
    let direct = direct.clone();
    server.route(
        "/connections",
        &[http::Method::GET],
        "live connections (JSON)",
        move |_: Query| {
            let (workers, direct) = (Arc::clone(&workers), direct.clone());
            async move {
                let mut all = direct.connections().await;
                for worker in workers.iter() {
                    all.extend(worker.connections().await);
                }
                Reply::json(&all)
            }
        },
    )
}
