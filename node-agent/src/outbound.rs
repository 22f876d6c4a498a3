//! What a captured pod opens: found out where to, carried there encrypted, or refused with a reason.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use model::{
    Identity, Workload,
    outbound::{Route, RouteError, RouteKind, route_among},
};
use socket2::SockRef;
use tls::WorkloadCert;
use tokio::{net::TcpStream, sync::oneshot};
use tunnel::{
    ConnectRequest, Tunnel, TunnelStream,
    client::{ConnectError, Driver, Lost, OpenError},
    copy,
    forwarded::Forwarded,
    pool::{Key, PoolError},
    secure::ClientIo,
};

use crate::{
    accept::is_exhausted,
    budget::{Full, Permit},
    identity,
    metrics::{Party, TcpLabels},
    pod::Pod,
    record::{Description, Direction, End1, Refusal},
    sock,
    worker::{Shared, Track, Worker, aborted},
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
    match connect(worker, pod, client, target, drawn).await {
        Ok(Connected {
            description,
            labels,
            far,
        }) => {
            let (live, abort) = worker.shared.recorder.open(description, &labels, None);
            Some((stream, far, worker.track(pod, live), abort))
        }
        Err(failure) => {
            let Failure {
                description,
                labels,
                refusal,
            } = *failure;
            let recorder = &worker.shared.recorder;
            recorder.refuse(&description, &labels, refusal);
            copy::reset(stream);
            None
        }
    }
}

struct Connected {
    description: Description,
    labels: TcpLabels,
    far: Far,
}

enum Far {
    Tunnel(TunnelStream),
    Plain(TcpStream),
}

struct Failure {
    description: Description,
    labels: TcpLabels,
    refusal: Refusal,
}

async fn connect(
    worker: &Worker,
    pod: &Arc<Pod>,
    client: SocketAddr,
    target: SocketAddr,
    drawn: bool,
) -> Result<Connected, Box<Failure>> {
    let shared = &worker.shared;
    let state = shared.mesh.state();
    let Some(source) = state.workload(pod.workload.as_ref()) else {
        let refusal = Refusal {
            flags: "IDENTITY_ERROR",
            reason: "workload_unknown",
            text: format!(
                "the controller has not told this node about workload {}",
                pod.workload
            ),
        };
        return Err(fail(pod, client, target, None, None, refusal));
    };
    let mut last = None;
    for _ in 0..ENDPOINT_ATTEMPTS {
        let elsewhere =
            |workload: &Workload, _port| !drawn || !shared.reached.contains(&workload.uid);
        let route =
            route_among(&state, source, target, &mut rand::rng(), elsewhere).map_err(|error| {
                fail(
                    pod,
                    client,
                    target,
                    Some(source),
                    None,
                    route_refusal(&error),
                )
            })?;
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
                let again = attempt.another_endpoint && route.service.is_some();
                last = Some(fail(
                    pod,
                    client,
                    target,
                    Some(source),
                    Some(&route),
                    attempt.refusal,
                ));
                if !again {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        let refusal = Refusal {
            flags: "CONNECT",
            reason: "no_attempt",
            text: "no endpoint was tried".to_owned(),
        };
        fail(pod, client, target, Some(source), None, refusal)
    }))
}

struct Attempt {
    another_endpoint: bool,
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
            sock::dial(&pod.netns, *dial, worker.shared.connect_timeout)
                .await
                .map(Far::Plain)
                .map_err(|error| Attempt {
                    another_endpoint: true,
                    refusal: Refusal {
                        flags: "CONNECT",
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
        refusal: Refusal {
            flags: "IDENTITY_ERROR",
            reason: "no_certificate",
            text: format!(
                "there is no certificate for {} yet; see /certs for the CA's last answer",
                pod.identity
            ),
        },
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

fn pool_failure(error: &PoolError) -> Attempt {
    let (flags, reason, another_endpoint) = match error {
        PoolError::Connect(error) => connect_failure(error),
        PoolError::Open(OpenError::Refused { status, .. }) if status.as_u16() == 401 => {
            ("DENY", "denied_by_peer", false)
        }
        PoolError::Open(OpenError::Refused { .. }) => ("CONNECT", "refused_by_peer", true),
        PoolError::Open(OpenError::Lost(Lost::Tls(failure))) => {
            ("TLS_FAILURE", failure.code(), false)
        }
        PoolError::Open(_) => ("CONNECT", "tunnel_failed", true),
        _ => ("CONNECT", "agent_stopping", false),
    };
    Attempt {
        another_endpoint,
        refusal: Refusal {
            flags,
            reason,
            text: crate::enrol::describe(error),
        },
    }
}

fn connect_failure(error: &Arc<ConnectError>) -> (&'static str, &'static str, bool) {
    match &**error {
        ConnectError::Dial { source, .. } => ("CONNECT", connect_reason(source), true),
        ConnectError::Secure(error) => ("TLS_FAILURE", error.code(), false),
        ConnectError::H2(_) => ("H2_HANDSHAKE_FAILURE", "h2_handshake_failed", true),
        _ => ("CONNECT", "handshake_timeout", true),
    }
}

fn connect_reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection_refused",
        io::ErrorKind::TimedOut => "connect_timeout",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        _ if is_exhausted(error) => Full::Descriptors.code(),
        _ => "connect_failed",
    }
}

fn route_refusal(error: &RouteError) -> Refusal {
    let reason = match error {
        RouteError::NoEndpoint(_) => "no_endpoint",
        RouteError::Waypoint { .. } => "waypoint_required",
        RouteError::ReservedPort { .. } => "reserved_port",
    };
    Refusal {
        flags: "CONNECT",
        reason,
        text: error.to_string(),
    }
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
        source: End1 {
            addr: Some(client),
            workload: source.map(|w| Arc::clone(&w.name)),
            namespace: source.map(|w| Arc::clone(&w.namespace)),
            identity: Some(pod.identity.to_string()),
        },
        destination: End1 {
            addr: Some(dial),
            workload: destination.map(|w| Arc::clone(&w.name)),
            namespace: destination.map(|w| Arc::clone(&w.namespace)),
            identity: peer.map(Identity::to_string),
        },
        service: service.map(|service| service.hostname.to_string()),
        security: if tunnel.is_some() {
            "mutual_tls"
        } else {
            "none"
        },
        tunnel,
    };
    let labels = TcpLabels::new(
        "source",
        Party {
            workload: source,
            principal: Some(&pod.identity),
        },
        Party {
            workload: destination,
            principal: peer,
        },
        service,
        // Only the destination knows (F101).
        "unknown",
    );
    (description, labels)
}

/// IPv4 addresses of dual-stack sockets, as what they are.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
