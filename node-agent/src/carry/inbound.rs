//! What reaches a captured pod from outside: tunnels of peers and plaintext, both under policy,
//! both handed to the application with the client's own address.

mod asked;

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use http::StatusCode;
use model::{
    Identity, MeshState, Reason, Workload,
    policy::{Connection, Verdict},
    service::ServiceKey,
};
use telemetry::TcpLabels;
use tokio::{net::TcpStream, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tunnel::{
    ErrorType, Line, Lined, ProxyStatus, TunnelStream, copy,
    server::{AcceptError, Incoming, NextError, ServerTunnel},
};

use self::asked::{Asked, Proof, asked, describe};
use crate::{
    carry::{
        identity,
        outbound::{baggage, flow, no_certificate, own_workload},
        silence::Watched,
        waypoint,
        worker::{TURN, Track, Worker, aborted},
    },
    host::{canonical, is_exhausted},
    pod::{
        Pod,
        budget::{Full, Permit},
        sock, translation,
    },
    telemetry::record::{self, Description, Direction, Refusal},
};

/// Serves a plaintext connection: policy sees no identity.
pub(crate) async fn serve_plaintext(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) {
    let client = canonical(peer);
    let Ok(application) = stream.local_addr().map(canonical) else {
        return copy::reset(stream);
    };
    if worker.shared.translations.answer(&pod, client, application) {
        return copy::reset(stream);
    }
    let dialled = translation::dialled(&worker.shared.walks, &pod, &stream, client, application);
    let target = match Box::pin(dialled).await {
        Ok(target) => target,
        Err(error) => {
            refuse_untold(&worker, &pod, (client, application), &error);
            return copy::reset(stream);
        }
    };
    // Dialled by a process in the pod.
    if target.ip().is_loopback() {
        return copy::reset(stream);
    }
    if target != application && target.port() == abi::HBONE_PORT {
        drop(permit);
        let stop = worker.tunnels_of(&pod);
        return Box::pin(serve_tunnel(worker, pod, stream, peer, stop)).await;
    }
    // The kernel half knows its direct connections by the port that was dialled.
    let source = (target != application)
        .then(|| worker.caller(&pod, client, target))
        .flatten();
    let asked = Asked {
        client,
        keep_port: false,
        target,
        application,
        proof: source.as_ref().map_or(Proof::Nothing, |_| Proof::Socket),
        source,
        service: None,
        handed: None,
    };
    // On the heap for as long as it takes: a connection's task is as large as its largest part.
    let Ok(admitted) = Box::pin(admit(&worker, &pod, &asked)).await else {
        return copy::reset(stream);
    };
    let stream = Lined::new(stream);
    let (leg, track, abort) = open(&worker, &pod, &asked, *admitted, stream.line());
    let end = copy::tcp(leg, stream, track.counters(), aborted(abort)).await;
    track.close(&end);
}

/// Puts a connection that was admitted on the worker's list.
fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    asked: &Asked,
    admitted: Admitted,
    line: &Arc<Line>,
) -> (TcpStream, Track, oneshot::Receiver<copy::Abort>) {
    let Admitted {
        leg,
        description,
        labels,
        ..
    } = admitted;
    let recorder = &worker.shared.recorder;
    // What a waypoint takes over is its own to judge, request by request.
    let authority = asked.handed.is_none().then(|| asked.authority());
    let (live, abort) = record::open(recorder, description, &labels, authority);
    let own = leg.local_addr().map_or(asked.client, canonical);
    let watched = Watched::new(flow((asked.application, own)), Arc::clone(line));
    (leg, worker.track(pod, live, watched), abort)
}

/// Serves a tunnel until it ends or `stop` asks the peer to open no more connections in it.
pub(crate) async fn serve_tunnel(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    let client = canonical(peer);
    let own = stream.local_addr().map_or(client, canonical);
    let shown = Box::pin(accept_tunnel(&worker, &pod, stream));
    let mut tunnel = match worker.wait_for_proof(pod.id, client.ip(), shown).await {
        Ok(tunnel) => tunnel,
        Err(refusal) => return refuse_tunnel(&worker, &pod, client, refusal),
    };
    let Ok(_permit) = worker.admit(&pod, Direction::Inbound, (client, own)) else {
        return;
    };
    let mut stopping = false;
    let mut turn = 0;
    loop {
        let next = tokio::select! {
            next = tunnel.next() => next,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                tunnel.graceful_shutdown();
                continue;
            }
        };
        match next {
            Some(Ok(incoming)) => {
                let identity = tunnel.peer().cloned();
                tokio::task::spawn_local(serve_stream(
                    Rc::clone(&worker),
                    Arc::clone(&pod),
                    client,
                    identity,
                    incoming,
                ));
                turn = (turn + 1) % TURN;
                if turn == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Some(Err(error @ (NextError::NotConnect { .. } | NextError::Authority { .. }))) => {
                let text = crate::host::describe(&error);
                refuse_tunnel(
                    &worker,
                    &pod,
                    client,
                    Refusal {
                        reason: Reason::BadRequest,
                        text,
                    },
                );
            }
            Some(Err(error @ NextError::Expired)) => {
                let refusal = Refusal {
                    reason: Reason::CertificateEnded,
                    text: error.to_string(),
                };
                refuse_tunnel(&worker, &pod, client, refusal);
            }
            Some(Err(error)) => {
                tracing::debug!(pod = %pod.name, %client, error = crate::host::describe(&error), "a tunnel ended");
            }
            None => return,
        }
    }
}

async fn accept_tunnel(
    worker: &Worker,
    pod: &Pod,
    stream: TcpStream,
) -> Result<ServerTunnel, Refusal> {
    let cert = identity::current(&pod.cert)
        .await
        .ok_or_else(|| no_certificate(pod))?;
    tunnel::server::accept(stream, &cert, worker.shared.tunnel)
        .await
        .map_err(|error| {
            let reason = match &error {
                AcceptError::Secure(error) => error.reason(),
                AcceptError::H2(_) => Reason::H2HandshakeFailed,
                _ => Reason::HandshakeTimeout,
            };
            Refusal {
                reason,
                text: crate::host::describe(&error),
            }
        })
}

async fn serve_stream(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    client: SocketAddr,
    peer: Option<Identity>,
    incoming: Incoming,
) {
    let established = Box::pin(establish(&worker, &pod, client, peer, incoming)).await;
    let Some((leg, stream, track, abort, _permit)) = established else {
        return;
    };
    let end = copy::bidirectional(leg, stream, track.counters(), aborted(abort)).await;
    track.close(&end);
}

/// Takes a request of a peer to the application, or refuses it.
async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: SocketAddr,
    peer: Option<Identity>,
    mut incoming: Incoming,
) -> Option<(
    TcpStream,
    TunnelStream,
    Track,
    oneshot::Receiver<copy::Abort>,
    Permit,
)> {
    let state = worker.shared.mesh.state();
    let asked = match asked(&state, pod, client, peer, &incoming) {
        Ok(asked) => asked,
        Err(text) => {
            incoming.refuse(
                StatusCode::BAD_REQUEST,
                &ProxyStatus::new(ErrorType::HttpRequestError, text.clone()),
            );
            let refusal = Refusal {
                reason: Reason::BadRequest,
                text,
            };
            refuse_tunnel(worker, pod, client, refusal);
            return None;
        }
    };
    let room = worker.admit(pod, Direction::Inbound, (asked.client, asked.target));
    let permit = match room {
        Ok(permit) => permit,
        Err(full) => {
            let reason = ProxyStatus::new(ErrorType::ConnectionLimitReached, full.to_string());
            incoming.refuse(StatusCode::SERVICE_UNAVAILABLE, &reason);
            return None;
        }
    };
    let admitted = tokio::select! {
        admitted = admit(worker, pod, &asked) => admitted,
        // The peer has given the request up.
        () = incoming.cancelled() => return None,
    };
    match admitted {
        Ok(mut admitted) => {
            let answer = admitted
                .baggage
                .take()
                .and_then(|text| http::HeaderValue::from_str(&text).ok());
            let Ok(stream) = incoming.accept(answer) else {
                copy::reset(admitted.leg);
                return None;
            };
            let (leg, track, abort) = open(worker, pod, &asked, *admitted, stream.line());
            Some((leg, stream, track, abort, permit))
        }
        Err((status, reason)) => {
            incoming.refuse(status, &reason);
            None
        }
    }
}

struct Admitted {
    leg: TcpStream,
    description: Description,
    labels: TcpLabels,
    baggage: Option<String>,
}

/// Asks policy, then connects to the application.
async fn admit(
    worker: &Worker,
    pod: &Arc<Pod>,
    asked: &Asked,
) -> Result<Box<Admitted>, (StatusCode, ProxyStatus)> {
    let state = worker.shared.mesh.state();
    let workload = state.workload(pod.workload.as_ref());
    let from = workload.and_then(|own| state.workload_by_ip(&own.network, asked.client.ip()));
    // An address is a hint: where an identity was proved, a workload that has another is not the one.
    let from = from.filter(|from| {
        asked
            .source
            .as_ref()
            .is_none_or(|proved| from.identity() == *proved)
    });
    let service = asked
        .service
        .as_deref()
        .and_then(|host| find_service(workload.map(|w| &**w), host));
    let service = service.and_then(|key| state.service(&key));
    let (description, labels) = describe(
        pod,
        asked,
        from.map(|w| &**w),
        workload.map(|w| &**w),
        service.map(|s| &**s),
    );
    let refuse = |status, kind, refusal: Refusal| {
        let reason = ProxyStatus::new(kind, refusal.text.clone());
        worker
            .shared
            .recorder
            .refuse(&description, &labels, refusal);
        Err((status, reason))
    };
    let workload = match authorize(&state, pod, asked) {
        Ok(workload) => workload,
        Err((status, kind, refusal)) => return refuse(status, kind, refusal),
    };
    match leg(worker, pod, asked).await {
        Ok(leg) => {
            // A change of policy concerns connections that are on the worker's list. This one is put on
            // it before anything else is waited for; what changed until now is asked about here.
            if let Err((status, kind, refusal)) = authorize(&worker.shared.mesh.state(), pod, asked)
            {
                copy::reset(leg);
                return refuse(status, kind, refusal);
            }
            Ok(Box::new(Admitted {
                leg,
                baggage: Some(baggage(workload)),
                description,
                labels,
            }))
        }
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused && asked.source.is_none() {
                (worker.shared.not_listening)(pod.id);
            }
            if is_exhausted(&error) {
                let full = Full::Descriptors;
                return refuse(
                    StatusCode::SERVICE_UNAVAILABLE,
                    ErrorType::ConnectionLimitReached,
                    Refusal {
                        reason: full.reason(),
                        text: full.to_string(),
                    },
                );
            }
            let (kind, reason) = application_failure(error.kind());
            let refusal = match asked.handed {
                Some(port) => waypoint::down(pod, port, &error),
                None => Refusal {
                    reason,
                    text: format!(
                        "the application of pod {} does not take connections on {}: {error}",
                        pod.name, asked.application
                    ),
                },
            };
            refuse(StatusCode::SERVICE_UNAVAILABLE, kind, refusal)
        }
    }
}

/// Connects to the application. Where nobody listens on the port that a peer asked for, it may be one that the pod
/// translates.
async fn leg(worker: &Worker, pod: &Pod, asked: &Asked) -> io::Result<TcpStream> {
    let shared = &worker.shared;
    if let Some(port) = asked.handed {
        return waypoint::hand_over(pod, port, &asked.header(), shared.connect_timeout).await;
    }
    let to = |application| {
        let timeout = shared.connect_timeout;
        sock::leg(pod, asked.client, asked.keep_port, application, timeout)
    };
    let refused = match to(asked.application).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
        connected => return connected,
    };
    if asked.proof != Proof::Certificate {
        return Err(refused);
    }
    match shared.translations.ask(pod, asked.target).await {
        Some(application) if !is_guarded(worker, pod, application) => to(application).await,
        _ => Err(refused),
    }
}

fn is_guarded(worker: &Worker, pod: &Pod, application: SocketAddr) -> bool {
    let state = worker.shared.mesh.state();
    waypoint::guarded(&state, pod, [application; 2]).is_some()
}

/// How the application answered, for its client's agent and in a word.
fn application_failure(error: io::ErrorKind) -> (ErrorType, Reason) {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    match error {
        TimedOut => (ErrorType::ConnectionTimeout, Reason::ApplicationTimeout),
        HostUnreachable | NetworkUnreachable => (
            ErrorType::DestinationIpUnroutable,
            Reason::ApplicationUnreachable,
        ),
        _ => (ErrorType::ConnectionRefused, Reason::ApplicationRefused),
    }
}

/// What policy says of a client of the pod, that has shown an identity or none.
pub(crate) fn judge<'s>(
    state: &'s MeshState,
    pod: &Pod,
    source: Option<&Identity>,
    client: SocketAddr,
    target: SocketAddr,
) -> Result<(&'s Workload, Verdict), Refusal> {
    let workload: &Workload = own_workload(state, pod)?;
    let connection = Connection {
        source,
        source_ip: client.ip(),
        destination_ip: target.ip(),
        destination_port: target.port(),
    };
    Ok((workload, state.authorize(workload, &connection)))
}

/// Why a port is none of an application's, if it is not.
pub(crate) fn reserved(target: SocketAddr) -> Option<String> {
    matches!(target.port(), 0 | 15001 | 15006 | 15008).then(|| {
        format!(
            "port {} belongs to the mesh and is not for applications",
            target.port()
        )
    })
}

/// The workload that is asked, if policy lets it be.
fn authorize<'s>(
    state: &'s MeshState,
    pod: &Pod,
    asked: &Asked,
) -> Result<&'s Workload, (StatusCode, ErrorType, Refusal)> {
    if asked.handed.is_some() {
        return waypoint::admit(state, pod, asked.source.as_ref()).map_err(|refusal| {
            let denied = ErrorType::HttpRequestDenied;
            (StatusCode::UNAUTHORIZED, denied, refusal)
        });
    }
    if let Some(refusal) = waypoint::guarded(state, pod, [asked.target, asked.application]) {
        let (status, kind) = (StatusCode::BAD_REQUEST, ErrorType::HttpRequestError);
        return Err((status, kind, refusal));
    }
    let judged = judge(
        state,
        pod,
        asked.source.as_ref(),
        asked.client,
        asked.target,
    );
    let (workload, verdict) = judged.map_err(|refusal| {
        let (status, kind) = (
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorType::DestinationUnavailable,
        );
        (status, kind, refusal)
    })?;
    match verdict {
        Verdict::Allow(_) => Ok(workload),
        Verdict::Deny(reason) => {
            let refusal = Refusal {
                reason: reason.reason(),
                text: reason.to_string(),
            };
            Err((
                StatusCode::UNAUTHORIZED,
                ErrorType::HttpRequestDenied,
                refusal,
            ))
        }
    }
}

/// The service of the pod that goes by a host name, its own namespace's first.
fn find_service(workload: Option<&Workload>, host: &str) -> Option<ServiceKey> {
    let workload = workload?;
    let of_host = || {
        workload
            .services
            .keys()
            .filter(|key| &*key.hostname == host)
    };
    of_host()
        .find(|key| key.namespace == workload.namespace)
        .or_else(|| of_host().next())
        .cloned()
}

/// Refuses a connection of which it is not known what its client dialled.
fn refuse_untold(
    worker: &Worker,
    pod: &Arc<Pod>,
    (client, application): (SocketAddr, SocketAddr),
    error: &io::Error,
) {
    let refusal = Refusal {
        reason: Reason::TranslationUnknown,
        text: format!(
            "connection tracking in pod {} does not say what {client} dialled that arrived on {application}: {error}",
            pod.name
        ),
    };
    refuse(worker, pod, &Asked::by_nobody(client, application), refusal);
}

fn refuse_tunnel(worker: &Worker, pod: &Arc<Pod>, client: SocketAddr, refusal: Refusal) {
    let target = SocketAddr::new(
        pod.addresses
            .first()
            .copied()
            .unwrap_or_else(|| client.ip()),
        abi::HBONE_PORT,
    );
    refuse(worker, pod, &Asked::by_nobody(client, target), refusal);
}

/// Tells of a connection that policy was not asked about.
fn refuse(worker: &Worker, pod: &Arc<Pod>, asked: &Asked, refusal: Refusal) {
    let state = worker.shared.mesh.state();
    let workload = state.workload(pod.workload.as_ref());
    let from = workload.and_then(|own| state.workload_by_ip(&own.network, asked.client.ip()));
    let (description, labels) =
        describe(pod, asked, from.map(|w| &**w), workload.map(|w| &**w), None);
    worker
        .shared
        .recorder
        .refuse(&description, &labels, refusal);
}
