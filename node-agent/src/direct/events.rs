//! What the kernel tells of direct connections, and of those that it leaves alone, turned into metrics,
//! log lines and a list.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{Addr, Event, EventKind, Flow, NOBODY};
use model::{
    MeshState, Reason, Security,
    policy::{Connection, Verdict},
};
use telemetry::{Asked, Party, PartyLabels, Reporter, TcpLabels, Text};

use super::denials::Sink;
use crate::{
    host::sock_diag,
    pod::Pod,
    telemetry::record::{
        Closed, ConnectionEnd, Description, Direction, LiveView, Recorder, Refusal, milliseconds,
    },
};

/// Direct connections that are listed. Those beyond it are counted and logged at their end.
const LISTED: usize = 65_536;
/// A listed connection that the kernel has not had for this long is over: its end was lost.
const LOST: Duration = Duration::from_secs(10);
/// Pairs of pods and services that are kept prepared.
const PREPARED: usize = 4096;

/// The direct connections that are open, as far as events tell.
#[derive(Default)]
pub(super) struct Ledger {
    open: HashMap<(u32, Flow), Open>,
    prepared: HashMap<Who, Arc<Prepared>>,
    missed: bool,
}

/// Client, server, and what was dialled.
type Who = (u32, u32, (Addr, u16));

/// What all connections of one client to one server have in common.
struct Prepared {
    description: Description,
    /// As source, and as destination where that is a captured pod of this node.
    flows: Vec<telemetry::Flow>,
}

struct Open {
    of: Arc<Prepared>,
    server: u32,
    since: Instant,
    /// Bytes from the client and from the server that are in the metrics already.
    counted: (u64, u64),
    seen: Instant,
}

impl Ledger {
    /// Takes one event. Gives server, and addresses of client and server, of a direct connection that is
    /// new.
    pub(super) fn take(
        &mut self,
        event: &Event,
        state: &MeshState,
        pods: &[Arc<Pod>],
        recorder: &Recorder,
    ) -> Option<(u32, (SocketAddr, SocketAddr))> {
        let key = (event.source, event.flow);
        match event.kind {
            kind if kind == EventKind::Opened as u32 => {
                if self.open.len() < LISTED
                    && let Some(open) = self.opened(event, state, pods, recorder)
                {
                    self.open.insert(key, open);
                } else {
                    self.missed = true;
                }
                let (Some(client), Some(server)) = ends(&event.flow) else {
                    return None;
                };
                return (event.destination != NOBODY)
                    .then_some((event.destination, (client, server)));
            }
            kind if kind == EventKind::Closed as u32 => {
                // The opening of one that is not listed was lost, or an earlier agent's.
                let known = self.open.remove(&key);
                let open = known.or_else(|| self.opened(event, state, pods, recorder));
                if let Some(open) = open {
                    let age = Duration::from_nanos(event.duration);
                    open.close(&event.flow, event.sent, event.received, age, recorder);
                }
            }
            _ => {}
        }
        None
    }

    /// Whether a connection was opened that could not be listed.
    pub(super) fn has_missed(&self) -> bool {
        self.missed
    }

    /// Forgets what was prepared: the mesh or the pods have changed.
    pub(super) fn changed(&mut self) {
        self.prepared.clear();
    }

    /// Counts an opened connection.
    fn opened(
        &mut self,
        event: &Event,
        state: &MeshState,
        pods: &[Arc<Pod>],
        recorder: &Recorder,
    ) -> Option<Open> {
        let dialled = (event.dialled.addr, event.dialled.port);
        let who = (event.source, event.destination, dialled);
        let of = match self.prepared.get(&who) {
            Some(of) => Arc::clone(of),
            None => {
                let (description, labels) = match event.destination {
                    NOBODY => describe_native(event, state, pods)?,
                    _ => describe(event, state, pods)?,
                };
                let flows = labels.iter().map(|labels| recorder.metrics.flow(labels));
                let flows = flows.collect();
                let of = Arc::new(Prepared { description, flows });
                if self.prepared.len() >= PREPARED {
                    self.prepared.clear();
                }
                self.prepared.insert(who, Arc::clone(&of));
                of
            }
        };
        of.flows.iter().for_each(telemetry::Flow::open);
        let now = Instant::now();
        Some(Open {
            of,
            server: event.destination,
            since: now,
            counted: (0, 0),
            seen: now,
        })
    }

    /// Brings the bytes of open connections up to date with the kernel, and ends those that the
    /// kernel does not have.
    pub(super) fn sample(&mut self, pods: &[Arc<Pod>], recorder: &Recorder) {
        let clients: BTreeSet<u32> = self.open.keys().map(|(client, _)| *client).collect();
        let now = Instant::now();
        // What a pod that left the mesh has open is told of at its end.
        for pod in pods.iter().filter(|pod| clients.contains(&pod.id)) {
            let sockets = match pod.netns.with(sock_diag::connected_with_bytes) {
                Ok(Ok(sockets)) => sockets,
                Ok(Err(error)) | Err(error) => {
                    tracing::debug!(pod = %pod.name, %error, "cannot read the bytes of direct connections");
                    continue;
                }
            };
            for (found, moved) in sockets
                .iter()
                .filter_map(|found| Some((found, found.moved?)))
            {
                let flow = Flow {
                    source: Addr::from(found.local.ip()),
                    destination: Addr::from(found.remote.ip()),
                    source_port: found.local.port(),
                    destination_port: found.remote.port(),
                };
                if let Some(open) = self.open.get_mut(&(pod.id, flow)) {
                    open.seen = now;
                    let (request, response) = payload(moved);
                    open.count(request, response);
                }
            }
            let lost = |key: &(u32, Flow), open: &mut Open| {
                key.0 == pod.id && now.duration_since(open.seen) >= LOST
            };
            for ((_, flow), open) in self.open.extract_if(lost) {
                let (request, response) = open.counted;
                let age = open.since.elapsed();
                open.close(&flow, request, response, age, recorder);
            }
        }
    }

    /// The open connections to these pods, by pod: client, server.
    pub(super) fn to(
        &self,
        servers: &HashSet<u32>,
    ) -> BTreeMap<u32, Vec<(SocketAddr, SocketAddr)>> {
        let mut found: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for ((_, flow), open) in &self.open {
            if servers.contains(&open.server)
                && let (Some(client), Some(server)) = ends(flow)
            {
                found.entry(open.server).or_default().push((client, server));
            }
        }
        found
    }

    /// Whether a direct connection is listed, as either end sees it.
    pub(super) fn has(&self, flow: &Flow) -> bool {
        let back = Flow {
            source: flow.destination,
            destination: flow.source,
            source_port: flow.destination_port,
            destination_port: flow.source_port,
        };
        let mut all = self.open.keys();
        all.any(|(_, open)| open == flow || *open == back)
    }

    /// Which of these clients have connections open.
    pub(super) fn of_clients(&self, clients: &HashSet<u32>) -> HashSet<u32> {
        let all = self.open.keys().map(|(client, _)| *client);
        all.filter(|client| clients.contains(client)).collect()
    }

    /// The servers of these clients' connections.
    pub(super) fn servers_of(&self, clients: &HashSet<u32>) -> HashSet<u32> {
        let theirs = self
            .open
            .iter()
            .filter(|((client, _), _)| clients.contains(client));
        theirs.map(|(_, open)| open.server).collect()
    }

    /// The connections that are open, with their bytes as of the last sample.
    pub(super) fn views(&self) -> Vec<LiveView> {
        let view = |((_, flow), open): (&(u32, Flow), &Open)| LiveView {
            connection: open.described(flow),
            older_than_capture: false,
            request_bytes: open.counted.0,
            response_bytes: open.counted.1,
            age_ms: milliseconds(open.since.elapsed()),
        };
        self.open.iter().map(view).collect()
    }
}

impl Open {
    fn count(&mut self, request: u64, response: u64) {
        let (before_request, before_response) = self.counted;
        // A count never goes back.
        self.counted = (request.max(before_request), response.max(before_response));
        for flow in &self.of.flows {
            flow.moved(
                request.saturating_sub(before_request),
                response.saturating_sub(before_response),
            );
        }
    }

    fn close(
        mut self,
        flow: &Flow,
        request: u64,
        response: u64,
        age: Duration,
        recorder: &Recorder,
    ) {
        self.count(request, response);
        self.of.flows.iter().for_each(telemetry::Flow::close);
        let closed = Closed {
            request,
            response,
            age,
            ..Closed::default()
        };
        recorder.closed(&self.described(flow), closed);
    }

    fn described(&self, flow: &Flow) -> Description {
        let mut description = self.of.description.clone();
        let (source, destination) = ends(flow);
        description.source.addr = source;
        description.destination.addr = destination;
        description
    }
}

/// The application's bytes of an open socket, without the sequence numbers of SYN and FIN.
pub(super) fn payload(moved: sock_diag::Moved) -> (u64, u64) {
    const FIN_WAIT2: u8 = 5;
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    let ours = u64::from(moved.state == FIN_WAIT2);
    let theirs = u64::from(matches!(moved.state, CLOSE_WAIT | LAST_ACK | CLOSING));
    (
        moved.acked.saturating_sub(1 + ours),
        moved.received.saturating_sub(theirs),
    )
}

/// Both ends of a connection. One that was refused before it had a port has no source.
fn ends(flow: &Flow) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let source = SocketAddr::new(flow.source.into(), flow.source_port);
    let destination = SocketAddr::new(flow.destination.into(), flow.destination_port);
    ((source.port() != 0).then_some(source), Some(destination))
}

/// Tells of `count` connections like this that were refused.
pub(super) fn denied(event: &Event, count: u64, to: &Sink<'_>) {
    let Sink {
        state,
        pods,
        recorder,
    } = *to;
    let Some((description, labels)) = describe(event, state, pods) else {
        return;
    };
    let Some(labels) = labels.first() else {
        return;
    };
    let (Some(client), Some(server)) = (find(pods, event.source), find(pods, event.destination))
    else {
        return;
    };
    let destination = SocketAddr::new(event.flow.destination.into(), event.flow.destination_port);
    let same_family = |ip: &&std::net::IpAddr| ip.is_ipv4() == destination.is_ipv4();
    let source_ip = client
        .addresses
        .iter()
        .find(same_family)
        .copied()
        .unwrap_or(destination.ip());
    let connection = Connection {
        source: Some(&client.identity),
        source_ip,
        destination_ip: destination.ip(),
        destination_port: destination.port(),
    };
    let verdict = state
        .workload(server.workload.as_ref())
        .map(|workload| state.authorize(workload, &connection));
    let (reason, text) = match verdict {
        Some(Verdict::Deny(reason)) => (reason.reason(), reason.to_string()),
        // Policy has changed since the kernel refused.
        _ => (
            Reason::PolicyChanged,
            "refused by policy, which has changed since".to_owned(),
        ),
    };
    let refusal = Refusal { reason, text };
    recorder.refuse_many(&description, labels, refusal, count);
}

fn find(pods: &[Arc<Pod>], id: u32) -> Option<&Arc<Pod>> {
    pods.iter().find(|pod| pod.id == id)
}

/// The connection, and its labels as source and as destination.
fn describe(
    event: &Event,
    state: &MeshState,
    pods: &[Arc<Pod>],
) -> Option<(Description, Vec<TcpLabels>)> {
    let (client, server) = (find(pods, event.source)?, find(pods, event.destination)?);
    let from = state.workload(client.workload.as_ref());
    let to = state.workload(server.workload.as_ref());
    let dialled = SocketAddr::new(event.dialled.addr.into(), event.dialled.port);
    let service = to.and_then(|to| state.service_by_exact_vip(&to.network, dialled.ip(), None));
    let end = |pod: &Pod, addr: Option<SocketAddr>, workload: Option<&Arc<model::Workload>>| {
        ConnectionEnd {
            addr,
            workload: workload.map(|w| Arc::clone(&w.name)),
            namespace: workload.map(|w| Arc::clone(&w.namespace)),
            identity: Some(pod.identity.to_string()),
        }
    };
    let (source, destination) = ends(&event.flow);
    let description = Description {
        direction: Direction::Direct,
        pod: client.name.to_string(),
        source: end(client, source, from),
        destination: end(server, destination, to),
        service: service.map(|service| service.hostname.to_string()),
        security: Security::SameNode,
        tunnel: None,
    };
    let party = |pod: &Pod, workload: Option<&Arc<model::Workload>>| {
        let principal = Text::principal(Some(&pod.identity));
        Party::new(workload.map(|w| &**w), principal)
    };
    let labels = [Reporter::Source, Reporter::Destination].map(|reporter| {
        PartyLabels::new(
            reporter,
            party(client, from),
            party(server, to),
            service.map(|service| &**service).into(),
            Security::SameNode,
        )
        .into()
    });
    Some((description, labels.into()))
}

/// A connection that was left alone, and its labels.
fn describe_native(
    event: &Event,
    state: &MeshState,
    pods: &[Arc<Pod>],
) -> Option<(Description, Vec<TcpLabels>)> {
    let client = find(pods, event.source)?;
    let from = state.workload(client.workload.as_ref());
    let (source, destination) = ends(&event.flow);
    let to = from
        .zip(destination)
        .and_then(|(from, to)| state.workload_by_ip(&from.network, to.ip()));
    let description = Description {
        direction: Direction::Outbound,
        pod: client.name.to_string(),
        source: ConnectionEnd {
            addr: source,
            workload: from.map(|w| Arc::clone(&w.name)),
            namespace: from.map(|w| Arc::clone(&w.namespace)),
            identity: Some(client.identity.to_string()),
        },
        destination: ConnectionEnd {
            addr: destination,
            workload: to.map(|w| Arc::clone(&w.name)),
            namespace: to.map(|w| Arc::clone(&w.namespace)),
            identity: None,
        },
        service: None,
        security: Security::None,
        tunnel: None,
    };
    let principal = Text::principal(Some(&client.identity));
    let labels = PartyLabels::new(
        Reporter::Source,
        Party::new(from.map(|w| &**w), principal),
        Party::new(to.map(|w| &**w), Text::unknown()),
        Asked::default(),
        // As of what the agent carries plain.
        Security::Unknown,
    );
    Some((description, vec![labels.into()]))
}
