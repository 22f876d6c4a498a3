//! What a captured pod opens: found out where to, carried there encrypted, or refused with a reason.

mod failure;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use abi::Flow;
use model::{
    Identity, MeshState, Reason, Security, Workload,
    outbound::{Route, RouteKind, route_among},
};
use socket2::SockRef;
use telemetry::{Party, PartyLabels, Reporter, TcpLabels, Text};
use tls::WorkloadCert;
use tokio::{io::Interest, net::TcpStream, sync::oneshot};
use tunnel::{
    ConnectRequest, Lined, Tunnel, TunnelStream,
    client::{ConnectError, Driver},
    copy,
    forwarded::Forwarded,
    pool::Key,
    secure::ClientIo,
};

use self::failure::{answer_of, connect_reason, pool_failure};
use crate::{
    carry::{
        hold::Opened,
        identity,
        session::Session,
        silence::Watched,
        syn::Answer,
        waypoint,
        worker::{Shared, Track, Worker, aborted},
    },
    host::canonical,
    pod::{Pod, budget::Permit, sock},
    telemetry::record::{self, ConnectionEnd, Description, Direction, Recorder, Refusal},
};

/// Endpoints that are tried before a connection to a service is given up. Nothing has been sent at
/// that point, so that trying another one repeats nothing.
const ENDPOINT_ATTEMPTS: usize = 3;

/// Serves one connection that the pod opened.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    _permit: Permit,
) {
    // On the heap for as long as it takes: a connection's task is as large as its largest part.
    let established = Box::pin(establish(&worker, &pod, stream, peer)).await;
    let Some((stream, far, track, abort)) = established else {
        return;
    };
    copy_both(stream, far, track, abort).await;
}

async fn copy_both(
    stream: TcpStream,
    far: Far,
    track: Track,
    abort: oneshot::Receiver<copy::Abort>,
) {
    let end = match far {
        Far::Tunnel(tunnel) => {
            copy::bidirectional(stream, tunnel, track.counters(), aborted(abort)).await
        }
        Far::Plain(plain) => {
            Box::pin(copy::tcp(stream, plain, track.counters(), aborted(abort))).await
        }
    };
    track.close(&end);
}

/// Finds out where a connection goes and takes it there, or refuses it.
async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(TcpStream, Far, Track, oneshot::Receiver<copy::Abort>)> {
    let client = canonical(peer);
    let target = stream.local_addr().ok().map(canonical);
    // Dialled directly by a process in the pod: there is nothing behind it.
    let Some(target) = target.filter(|target| !target.ip().is_loopback()) else {
        copy::reset(stream);
        return None;
    };
    // An endpoint was drawn in the kernel, and it is none that the kernel reaches itself.
    let drawn = SockRef::from(&stream)
        .mark()
        .is_ok_and(|mark| mark & abi::DRAWN != 0);
    let connected = tokio::select! {
        connected = connect(worker, pod, client, target, drawn) => connected,
        // The client has reset it.
        _gone = stream.ready(Interest::ERROR) => return None,
    };
    match connected {
        Ok(connected) => {
            let (far, track, abort) = begin(worker, pod, (client, target), connected);
            Some((stream, far, track, abort))
        }
        Err(failure) => {
            failure.tell(&worker.shared.recorder);
            copy::reset(stream);
            None
        }
    }
}

/// Carries a connection whose other half is open.
pub(crate) async fn carry(worker: Rc<Worker>, pod: Arc<Pod>, stream: TcpStream, opened: Opened) {
    let Opened {
        connected, permit, ..
    } = opened;
    let ends = (stream.peer_addr(), stream.local_addr());
    let (Ok(client), Ok(target)) = ends else {
        // The client has gone.
        return copy::reset(stream);
    };
    let application = (canonical(client), canonical(target));
    let (far, track, abort) = begin(&worker, &pod, application, *connected);
    copy_both(stream, far, track, abort).await;
    drop(permit);
}

/// Puts a connection on the worker's list.
fn begin(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    application: (SocketAddr, SocketAddr),
    connected: Connected,
) -> (Far, Track, oneshot::Receiver<copy::Abort>) {
    let Connected {
        description,
        labels,
        far,
    } = connected;
    let (live, abort) = record::open(&worker.shared.recorder, description, &labels, None);
    let line = match &far {
        Far::Tunnel(stream) => stream.line(),
        Far::Plain(stream) => stream.line(),
    };
    let watched = Watched::new(flow(application), Arc::clone(line));
    (far, worker.track(pod, live, watched), abort)
}

/// The other half of a connection, and what is told of both.
pub(crate) struct Connected {
    description: Description,
    labels: TcpLabels,
    far: Far,
}

enum Far {
    Tunnel(TunnelStream),
    Plain(Lined),
}

/// Why a connection cannot be made, and what its client is told.
pub(crate) struct Failure {
    pub(crate) answer: Answer,
    description: Description,
    labels: TcpLabels,
    refusal: Refusal,
}

impl Failure {
    /// Tells of it.
    pub(crate) fn tell(self, recorder: &Recorder) {
        recorder.refuse(&self.description, &self.labels, self.refusal);
    }
}

/// Finds out where a connection of the pod goes, and opens it there.
pub(crate) async fn connect(
    worker: &Worker,
    pod: &Arc<Pod>,
    client: SocketAddr,
    target: SocketAddr,
    drawn: bool,
) -> Result<Connected, Box<Failure>> {
    let client = own_end(pod, client);
    let shared = &worker.shared;
    let state = shared.mesh.state();
    let source = own_workload(&state, pod)
        .map_err(|refusal| fail(pod, client, target, None, None, refusal))?;
    let session = Session::of(&shared.kernel, &state, source, pod.id, target);
    let mut kept = session.as_ref().and_then(Session::kept);
    let mut last = None;
    let mut failed = Vec::new();
    for _ in 0..ENDPOINT_ATTEMPTS {
        // One that is kept and gone leaves all to choose from; one that fails is kept no longer.
        let kept = kept.take();
        let wanted = |workload: &Workload, address: SocketAddr| match kept {
            Some(kept) => address == kept,
            None if failed.contains(&address) => false,
            None => !drawn || !shared.reached.contains(&workload.uid),
        };
        let route = draw(&state, source, target, wanted)
            .map_err(|refusal| fail(pod, client, target, Some(source), None, refusal))?;
        if let Some(session) = &session {
            session.keep(&route);
        }
        match follow(worker, pod, source, client, &route).await {
            Ok(far) => {
                let (description, labels) =
                    describe(pod, client, target, Some(source), Some(&route));
                return Ok(Connected {
                    description,
                    labels,
                    far,
                });
            }
            Err(attempt) => {
                let again = attempt.another_endpoint
                    && (route.service.is_some() || route.waypoint.is_some());
                failed.push(tried(&route));
                let (answer, refusal) = (attempt.answer, waypoint::named(attempt.refusal, &route));
                let failure = fail(pod, client, target, Some(source), Some(&route), refusal);
                last = Some(Box::new(Failure { answer, ..*failure }));
                if !again {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        let refusal = Refusal {
            reason: Reason::NoAttempt,
            text: "no endpoint was tried".to_owned(),
        };
        fail(pod, client, target, Some(source), None, refusal)
    }))
}

/// The address by which a route's endpoint, or its waypoint's pod, was drawn.
fn tried(route: &Route) -> SocketAddr {
    match &route.kind {
        RouteKind::Hbone { dial, .. } if route.waypoint.is_some() => *dial,
        RouteKind::Hbone { authority, .. } => *authority,
        RouteKind::Plain { dial } | RouteKind::ToSelf { dial } => *dial,
    }
}

/// The workload that the pod is to the mesh.
pub(crate) fn own_workload<'s>(
    state: &'s MeshState,
    pod: &Pod,
) -> Result<&'s Arc<Workload>, Refusal> {
    state
        .workload(pod.workload.as_ref())
        .ok_or_else(|| Refusal {
            reason: Reason::WorkloadUnknown,
            text: format!(
                "the controller has not told this node about workload {}",
                pod.workload
            ),
        })
}

/// Where a connection of a workload goes this time, to an endpoint that is `wanted`.
pub(crate) fn draw(
    state: &MeshState,
    source: &Workload,
    target: SocketAddr,
    wanted: impl Fn(&Workload, SocketAddr) -> bool,
) -> Result<Route, Refusal> {
    route_among(state, source, target, &mut rand::rng(), wanted).map_err(|error| Refusal {
        reason: error.reason(),
        text: error.to_string(),
    })
}

/// The pod has no certificate to show.
pub(crate) fn no_certificate(pod: &Pod) -> Refusal {
    Refusal {
        reason: Reason::CertificateMissing,
        text: format!(
            "there is no certificate for {} yet; see /certs for the CA's last answer",
            pod.identity
        ),
    }
}

struct Attempt {
    another_endpoint: bool,
    answer: Answer,
    refusal: Refusal,
}

async fn follow(
    worker: &Worker,
    pod: &Arc<Pod>,
    source: &Workload,
    client: SocketAddr,
    route: &Route,
) -> Result<Far, Attempt> {
    match &route.kind {
        RouteKind::Plain { dial } | RouteKind::ToSelf { dial } => {
            sock::dial_as(&pod.netns, client, *dial, worker.shared.connect_timeout)
                .await
                .map(|stream| Far::Plain(Lined::new(stream)))
                .map_err(|error| Attempt {
                    another_endpoint: true,
                    answer: answer_of(&error),
                    refusal: Refusal {
                        reason: connect_reason(&error),
                        text: format!("cannot connect to {dial}: {error}"),
                    },
                })
        }
        RouteKind::Hbone {
            dial,
            authority,
            expected,
        } => open_tunnel(
            worker, pod, source, client, route, *dial, *authority, expected,
        )
        .await
        .map(Far::Tunnel),
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one route, taken apart once"
)]
async fn open_tunnel(
    worker: &Worker,
    pod: &Arc<Pod>,
    source: &Workload,
    client: SocketAddr,
    route: &Route,
    dial: SocketAddr,
    authority: SocketAddr,
    expected: &[Identity],
) -> Result<TunnelStream, Attempt> {
    let cert = identity::current(&pod.cert).await.ok_or_else(|| Attempt {
        another_endpoint: false,
        answer: Answer::Refused,
        refusal: no_certificate(pod),
    })?;
    let request = request(source, client, route, authority);
    let key = Key {
        source: pod.identity.clone(),
        dial,
        expected: expected.into(),
    };
    let generation = identity::generation(&cert);
    let opened = worker
        .pool(pod)
        .open(&key, generation, &request, || {
            let (pod, cert, shared, expected) = (
                Arc::clone(pod),
                Arc::clone(&cert),
                Arc::clone(&worker.shared),
                Arc::clone(&key.expected),
            );
            let drivers = worker.tunnels.clone();
            async move {
                let made = connect_tunnel(&shared, &pod, &cert, dial, &expected).await;
                let (tunnel, driver) = made?;
                drivers.spawn_local(driver);
                Ok(tunnel)
            }
        })
        .await;
    opened.map_err(|error| pool_failure(&error))
}

async fn connect_tunnel(
    shared: &Shared,
    pod: &Pod,
    cert: &WorkloadCert,
    dial: SocketAddr,
    expected: &[Identity],
) -> Result<(Tunnel, Driver<ClientIo>), ConnectError> {
    let tcp = sock::dial(&pod.netns, dial, shared.connect_timeout)
        .await
        .map_err(|source| ConnectError::Dial {
            address: dial,
            source,
        })?;
    tunnel::client::establish(tcp, cert, expected, shared.tunnel).await
}

fn request(
    source: &Workload,
    client: SocketAddr,
    route: &Route,
    authority: SocketAddr,
) -> ConnectRequest {
    let host = route.service.as_ref().map(|service| &*service.hostname);
    let forwarded = Forwarded::new(client, host).to_value();
    ConnectRequest {
        authority: authority.to_string(),
        forwarded: forwarded.and_then(|value| value.to_str().ok().map(str::to_owned)),
        baggage: Some(baggage(source)),
        traceparent: Some(format!(
            "00-{:032x}-{:016x}-00",
            rand::random::<u128>(),
            rand::random::<u64>()
        )),
    }
}

/// What we say about our workload: telemetry of the other side, never authorization.
pub(crate) fn baggage(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        model::workload::WorkloadType::Deployment => "deployment",
        model::workload::WorkloadType::CronJob => "cronjob",
        model::workload::WorkloadType::Pod => "pod",
        model::workload::WorkloadType::Job => "job",
    };
    let mut text = String::new();
    for (key, value) in [
        ("k8s.cluster.name", &*workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (&*format!("k8s.{kind}.name"), &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ] {
        if !value.is_empty() {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            text.push_str(value);
        }
    }
    text
}

fn fail(
    pod: &Pod,
    client: SocketAddr,
    target: SocketAddr,
    source: Option<&Workload>,
    route: Option<&Route>,
    refusal: Refusal,
) -> Box<Failure> {
    let (description, labels) = describe(pod, client, target, source, route);
    Box::new(Failure {
        answer: Answer::Refused,
        description,
        labels,
        refusal,
    })
}

fn describe(
    pod: &Pod,
    client: SocketAddr,
    target: SocketAddr,
    source: Option<&Workload>,
    route: Option<&Route>,
) -> (Description, TcpLabels) {
    let destination = route.and_then(|route| route.destination.as_deref());
    let service = route.and_then(|route| route.service.as_deref());
    let (dial, tunnel, peer) = match route.map(|route| &route.kind) {
        Some(RouteKind::Hbone {
            dial,
            authority,
            expected,
        }) => (*authority, Some(*dial), expected.first()),
        Some(RouteKind::Plain { dial } | RouteKind::ToSelf { dial }) => (*dial, None, None),
        None => (target, None, None),
    };
    let description = Description {
        direction: Direction::Outbound,
        pod: pod.name.to_string(),
        source: ConnectionEnd {
            addr: Some(client),
            workload: source.map(|w| Arc::clone(&w.name)),
            namespace: source.map(|w| Arc::clone(&w.namespace)),
            identity: Some(pod.identity.to_string()),
        },
        destination: ConnectionEnd {
            addr: Some(dial),
            workload: destination.map(|w| Arc::clone(&w.name)),
            namespace: destination.map(|w| Arc::clone(&w.namespace)),
            identity: peer.map(Identity::to_string),
        },
        service: service.map(|service| service.hostname.to_string()),
        security: if tunnel.is_some() {
            Security::MutualTls
        } else {
            Security::None
        },
        tunnel,
    };
    let labels = PartyLabels::new(
        Reporter::Source,
        Party::new(source, Text::principal(Some(&pod.identity))),
        Party::new(destination, Text::principal(peer)),
        service.into(),
        // Only the destination knows (F101).
        Security::Unknown,
    );
    (description, labels.into())
}

/// The client's end of a connection. A socket can be bound to an address that is not its pod's
/// (`IP_FREEBIND`): nobody is told of that one.
fn own_end(pod: &Pod, peer: SocketAddr) -> SocketAddr {
    if pod.has_address(peer.ip()) {
        return peer;
    }
    let own = pod.addresses.iter();
    let own = own.copied().find(|ip| ip.is_ipv4() == peer.is_ipv4());
    let unknown = || match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(own.unwrap_or_else(unknown), peer.port())
}

/// A connection as one of its ends has it: its own address, then its peer's.
pub(crate) fn flow((own, peer): (SocketAddr, SocketAddr)) -> Flow {
    Flow {
        source: own.ip().into(),
        destination: peer.ip().into(),
        source_port: own.port(),
        destination_port: peer.port(),
    }
}
