//! What is not HTTP passes as TCP, to an endpoint that policy lets the client reach.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Method};
use l7::backend::Member;
use l7::{ClusterKey, Path};
use model::service::AppProtocol;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::active::Active;
use crate::authorize::authorize;
use crate::balance::choose::{self, Asked};
use crate::balance::state::Outcome;
use crate::balance::{Candidate, Resolved};
use crate::caller::{Caller, Dialled, Known};
use crate::telemetry::Flag;
use crate::telemetry::flags;
use crate::telemetry::labels::{Common, Party, Service, TcpLabels, Text};
use crate::worker::Worker;

/// Carries a connection to an endpoint and back.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    caller: &Caller,
    mut client: TcpStream,
    before: Bytes,
) {
    let active = worker.shared.newest.load();
    let known = caller.known(&active);
    let found = find(worker, &active, caller, &known);
    let (resolved, mut tries) = match found {
        Ok(found) => found,
        Err(text) => return refuse(worker, caller, &known, Flag::NoRoute, &text),
    };
    let mut tried = Vec::new();
    let connected = loop {
        let asked = Asked {
            hash: None,
            tried: &tried,
            dialled: Some(caller.dialled),
            own: &active.own,
        };
        let Some(candidate) = choose::choose(&resolved, asked, &mut rand::rng()).cloned() else {
            return refuse(
                worker,
                caller,
                &known,
                Flag::NoHealthy,
                "no endpoint is ready",
            );
        };
        if let Err(text) = allowed(&active, caller, &known, &candidate) {
            return refuse(worker, caller, &known, None, &text);
        }
        let address = candidate.member.address;
        let limits = resolved.cluster.policy.limits.clone().unwrap_or_default();
        let within = limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let most = limits.connections.unwrap_or(u32::MAX);
        let Some(held) = resolved.state.connections.take(most) else {
            return refuse(
                worker,
                caller,
                &known,
                Flag::Overflow,
                "the limit of connections is reached",
            );
        };
        match tokio::time::timeout(within, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => break Some((stream, candidate, held)),
            _ => {
                let members = resolved.candidates.len();
                resolved
                    .state
                    .note(&candidate.state, Outcome::Unreachable, None, members);
                tried.push(address);
                tries -= 1;
                if tries == 0 {
                    break None;
                }
            }
        }
    };
    let Some((mut endpoint, candidate, _held)) = connected else {
        let text = "no endpoint took the connection";
        return refuse(worker, caller, &known, Flag::ConnectFailure, text);
    };
    let labels = labels(&known, &candidate.party, "-");
    let flow = worker.shared.telemetry.tcp(&labels);
    let _active = candidate.state.begin();
    let first = before.len() as u64;
    let copied = async {
        endpoint.set_nodelay(true)?;
        endpoint.write_all(&before).await?;
        tokio::io::copy_bidirectional(&mut client, &mut endpoint).await
    };
    let copied = tokio::select! {
        copied = copied => copied,
        () = until_refused(worker, caller, &candidate) => Err(std::io::ErrorKind::PermissionDenied.into()),
        () = worker.shared.drain.cut() => Ok((0, 0)),
    };
    let (received, sent) = copied.unwrap_or_default();
    flow.close(received + first, sent);
    tracing::info!(
        target: "access",
        direction = "waypoint",
        src.addr = %caller.client,
        src.workload = known.party.workload.0.as_deref(),
        src.namespace = known.party.namespace.0.as_deref(),
        src.identity = known.party.principal.0.as_deref(),
        dst.addr = %caller.dialled,
        dst.endpoint = %candidate.member.address,
        dst.workload = candidate.party.workload.0.as_deref(),
        dst.namespace = candidate.party.namespace.0.as_deref(),
        dst.identity = candidate.party.principal.0.as_deref(),
        bytes_recv = received + first,
        bytes_sent = sent,
        "connection closed"
    );
}

fn find(
    worker: &Worker,
    active: &Active,
    caller: &Caller,
    known: &Known,
) -> Result<(Rc<Resolved>, u32), String> {
    match &known.dialled {
        Dialled::Service { key, port } => {
            let key = ClusterKey {
                service: key.clone(),
                port: *port,
                subset: None,
            };
            let resolved = worker
                .clusters
                .find(active, (&key, *port), &worker.shared.registry);
            let resolved = resolved.ok_or("the service has no such port")?;
            Ok((resolved, TRIES))
        }
        Dialled::Workload(address) => {
            let endpoint = active
                .l7
                .endpoint_at(address.ip())
                .ok_or("nothing that is served here was dialled")?;
            let member = Member {
                endpoint: std::sync::Arc::clone(endpoint),
                address: caller.dialled,
                ready: true,
            };
            let resolved = Resolved::alone(
                member,
                AppProtocol::Tcp,
                &active.mesh,
                &worker.shared.registry,
            );
            Ok((Rc::new(resolved), 1))
        }
    }
}

/// Whether the client may. What a rule says of requests does not hold for a connection that has none: an ALLOW that needs
/// it does not match, and a DENY does, as if only what it says of the connection was written.
fn allowed(
    active: &Active,
    caller: &Caller,
    known: &Known,
    candidate: &Candidate,
) -> Result<(), String> {
    let path = Path::new("*").map_err(|error| error.to_string())?;
    let headers = HeaderMap::new();
    let method = Method::CONNECT;
    let request = l7::Request {
        client: caller.as_client(known),
        destination: known.dialled.as_destination(),
        protocol: l7::Protocol::Tcp,
        scheme: "tcp",
        method: &method,
        authority: "",
        path: &path,
        headers: &headers,
    };
    authorize(active, &request, candidate).map_err(|reply| reply.text)
}

async fn until_refused(worker: &Rc<Worker>, caller: &Caller, candidate: &Candidate) {
    let mut changes = worker.shared.newest.changes();
    while changes.changed().await.is_ok() {
        let active = worker.shared.newest.load();
        let known = caller.known(&active);
        if allowed(&active, caller, &known, candidate).is_err() {
            return;
        }
    }
    std::future::pending().await
}

fn refuse(
    worker: &Worker,
    caller: &Caller,
    known: &Known,
    flag: impl Into<Option<Flag>>,
    text: &str,
) {
    let flag = flag.into();
    let word = flag.map_or("-", Flag::as_str);
    let labels = labels(known, &Party::default(), word);
    worker.shared.telemetry.tcp(&labels).close(0, 0);
    tracing::info!(
        target: "access",
        direction = "waypoint",
        src.addr = %caller.client,
        src.identity = known.party.principal.0.as_deref(),
        dst.addr = %caller.dialled,
        flags = word,
        error = text,
        "connection refused"
    );
}

fn labels(known: &Known, destination: &Party, word: &'static str) -> TcpLabels {
    let service = match &known.dialled {
        Dialled::Service { key, .. } => Service {
            hostname: Text::new(&key.hostname),
            name: Text(key.hostname.split('.').next().map(std::sync::Arc::from)),
            namespace: Text::new(&key.namespace),
        },
        Dialled::Workload(_) => Service::default(),
    };
    TcpLabels {
        common: Common::new(&known.party, destination, &service),
        request_protocol: "tcp",
        response_flags: if word == "-" {
            flags::join(&[])
        } else {
            word.into()
        },
    }
}

const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
const TRIES: u32 = 3;
