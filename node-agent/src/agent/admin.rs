//! The admin pages, on loopback: what the agent knows, holds, carries and has refused.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use admin_api::{Certificate, ConfigDump, Configuration, TypeState, WantedPod, page};
use http::{Method, StatusCode};
use runtime::admin::{Query, Reply, Server};
use tls::SvidStore;
use tokio::sync::{oneshot, watch};
use xds_client::Status;

use crate::{
    agent::explain,
    bpf,
    carry::{thread::WorkerHandle, worker::Shared},
    direct::DirectHandle,
    enrol::{Command, EnrolHandle, Seen},
    mesh::Mesh,
};

/// What the pages show.
pub struct Sources {
    /// The name of the node.
    pub node: String,
    /// Version of the contract with the kernel half.
    pub abi_version: u32,
    /// What workers share.
    pub shared: Arc<Shared>,
    /// Below which cgroup connections are captured.
    pub cgroup_root: PathBuf,
    /// Who carries connections.
    pub workers: Arc<[WorkerHandle]>,
    /// Certificates of the pods.
    pub certs: SvidStore,
    /// Who knows the pods.
    pub enrol: EnrolHandle,
    /// Who knows direct connections.
    pub direct: DirectHandle,
    /// How far the configuration has come.
    pub status: watch::Receiver<Status>,
}

/// Adds the agent's pages.
#[must_use]
pub fn pages(server: Server, sources: &Arc<Sources>) -> Server {
    let (certs, refusals) = (Arc::clone(sources), Arc::clone(sources));
    let server = config_dump(server, Arc::clone(sources));
    let server = server.page(
        page::CERTIFICATES,
        "certificates: identity, SANs, validity, state, last error (JSON)",
        move |_| Reply::json(&certificates(&certs.certs)),
    );
    let server = server.page(
        page::REFUSALS,
        "the last refused connections with their reasons (JSON)",
        move |_| Reply::json(&refusals.shared.recorder.refusals.list()),
    );
    let server = hooks(server, Arc::clone(sources));
    let server = connections(server, Arc::clone(sources));
    explanation(server, Arc::clone(sources))
}

fn config_dump(server: Server, sources: Arc<Sources>) -> Server {
    server.route(
        page::CONFIG_DUMP,
        &[Method::GET],
        "workloads, services, policies and pods of this node (JSON)",
        move |_: Query| {
            let sources = Arc::clone(&sources);
            async move {
                let (reply, answer) = oneshot::channel();
                sources.enrol.send(Command::List(reply));
                let pods = answer.await.unwrap_or_default();
                let state = sources.shared.mesh.state();
                Reply::json(&ConfigDump {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    abi: sources.abi_version,
                    pid: std::process::id(),
                    node: sources.node.clone(),
                    pods,
                    wanted: wanted(&sources.shared.mesh),
                    configuration: configuration(&sources.status.borrow()),
                    workloads: state.workloads().cloned().collect(),
                    services: state.services().cloned().collect(),
                    policies: state.policies().cloned().collect(),
                })
            }
        },
    )
}

fn hooks(server: Server, sources: Arc<Sources>) -> Server {
    server.page(
        page::HOOKS,
        "programs at the hooks of the node that ours are at too, in the order in which they run (JSON)",
        move |_| match bpf::attached(&sources.cgroup_root) {
            Ok(hooks) => Reply::json(&hooks),
            Err(error) => Reply::text(format!("{}: {error}\n", sources.cgroup_root.display()))
                .status(StatusCode::INTERNAL_SERVER_ERROR),
        },
    )
}

fn wanted(mesh: &Mesh) -> Vec<WantedPod> {
    let wanted = mesh.wanted().borrow().clone();
    let pods = wanted.iter().map(|(pod, wish)| WantedPod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: wish.uid.clone(),
        identity: wish.identity.to_string(),
        capture: wish.capture,
        reason: wish.reason.clone(),
    });
    pods.collect()
}

fn configuration(status: &Status) -> Configuration {
    let types = status.types.iter().map(|(url, one)| {
        let state = TypeState {
            synced: one.synced,
            resources: one.resources,
            last_nack: one.last_nack.clone(),
        };
        (url.clone(), state)
    });
    Configuration {
        connected: status.connected,
        last_error: status.last_error.clone(),
        types: types.collect(),
    }
}

fn certificates(store: &SvidStore) -> Vec<Certificate> {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let certs = store.snapshot().into_iter().map(|status| {
        let cert = status.cert.as_ref();
        Certificate {
            identity: status.identity.to_string(),
            state: status.state.as_str().to_owned(),
            sans: cert.map(|cert| cert.sans.clone()),
            serial: cert.map(|cert| cert.serial.clone()),
            not_before: cert.map(|cert| seconds(cert.not_before)),
            not_after: cert.map(|cert| seconds(cert.not_after)),
            renewal: status.renewal.map(seconds),
            failures: status.failures,
            last_error: status
                .last_error
                .as_ref()
                .map(|error| crate::host::describe(error)),
        }
    });
    certs.collect()
}

fn connections(server: Server, sources: Arc<Sources>) -> Server {
    server.route(
        page::CONNECTIONS,
        &[Method::GET],
        "live connections (JSON)",
        move |_: Query| {
            let sources = Arc::clone(&sources);
            async move {
                let mut all = sources.direct.connections().await;
                for worker in sources.workers.iter() {
                    all.extend(worker.connections().await);
                }
                Reply::json(&all)
            }
        },
    )
}

fn explanation(server: Server, sources: Arc<Sources>) -> Server {
    server.route(
        page::EXPLAIN,
        &[Method::GET],
        "what would become of a connection: ?pod=NAMESPACE/NAME&to=ADDRESS:PORT of one that a pod here opens, ?from=ADDRESS&to=ADDRESS:PORT[&identity=SPIFFE] of one to a pod here (JSON)",
        move |query: Query| {
            let sources = Arc::clone(&sources);
            async move {
                match explain(&sources, &query).await {
                    Ok(reply) => reply,
                    Err(wrong) => {
                        Reply::text(format!("{wrong}\n")).status(StatusCode::BAD_REQUEST)
                    }
                }
            }
        },
    )
}

/// Answers a question, or says what is wrong with it.
async fn explain(sources: &Sources, query: &Query) -> Result<Reply, String> {
    let to = query.get("to").ok_or("to=ADDRESS:PORT is missing")?;
    let to = to.parse().map_err(|_unreadable| {
        format!("{to:?} is not ADDRESS:PORT; write for example 10.244.2.10:8080")
    })?;
    let pods = look(&sources.enrol).await;
    if let Some(pod) = query.get("pod") {
        return Ok(Reply::json(
            &explain::outbound(sources, &pods, pod, to).await,
        ));
    }
    let from = query
        .get("from")
        .ok_or("pod=NAMESPACE/NAME or from=ADDRESS is missing")?;
    let from: IpAddr = from
        .parse()
        .map_err(|_unreadable| format!("{from:?} is not an address"))?;
    let identity = query.get("identity").map(str::parse).transpose();
    let identity = identity.map_err(|error: model::identity::IdentityError| error.to_string())?;
    let answer = explain::inbound(sources, &pods, from, identity.as_ref(), to);
    Ok(Reply::json(&answer))
}

async fn look(enrol: &EnrolHandle) -> Vec<Seen> {
    let (reply, answer) = oneshot::channel();
    enrol.send(Command::Look(reply));
    answer.await.unwrap_or_default()
}
