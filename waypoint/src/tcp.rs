//! What is not HTTP passes as TCP, to an endpoint that policy lets the client reach: where a rule for connections says, or
//! to the service that was dialled.

mod hello;

pub(crate) use self::hello::server_name;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use admin_api::{ConnectionEnd, Description, Direction};
use bytes::BytesMut;
use http::{HeaderMap, Method};
use l7::backend::Member;
use l7::route::{Action, Backend};
use l7::{ClusterKey, Decision, NoRoute, Path};
use model::service::AppProtocol;
use model::{Ending, Reason};
use telemetry::{Closed, Party, Refusal, TcpLabels};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::io::InspectReader;

use crate::active::Active;
use crate::authorize::authorize;
use crate::balance::choose::{self, Asked};
use crate::balance::count::Held;
use crate::balance::state::Outcome;
use crate::balance::{Candidate, Resolved};
use crate::caller::{Caller, Dialled, Known};
use crate::serve;
use crate::telemetry::{Flag, labels_of, security_of};
use crate::upstream::{self, Inside, Upstream};
use crate::worker::Worker;

/// Carries a connection to an endpoint and back.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    caller: &Caller,
    mut client: TcpStream,
    mut before: BytesMut,
) {
    let name = asked_name(worker, caller, &mut client, &mut before).await;
    let active = worker.shared.newest.load();
    let known = caller.known(&active);
    let opened = match open(worker, &active, caller, &known, name.as_deref()).await {
        Ok(opened) => opened,
        Err(refused) => return refuse(worker, caller, &known, refused),
    };
    let Opened {
        mut endpoint,
        candidate,
        served,
        _held,
    } = opened;
    let recorder = &worker.shared.telemetry.recorder;
    let asked = asked_of(caller, &known, served.as_ref());
    let labels = TcpLabels::from(labels_of(&known.party, &candidate.party, &asked));
    let began = Instant::now();
    let flow = recorder.metrics.open(&labels);
    let _active = candidate.state.begin();
    let (request, response) = (Cell::new(before.len() as u64), Cell::new(0));
    let count = |sum: &Cell<u64>, bytes: &[u8]| sum.set(sum.get() + bytes.len() as u64);
    let copied = async {
        endpoint.write_all(&before).await?;
        // What TLS has not written yet.
        endpoint.flush().await?;
        let mut client = InspectReader::new(&mut client, |bytes| count(&request, bytes));
        let mut endpoint = InspectReader::new(&mut endpoint, |bytes| count(&response, bytes));
        tokio::io::copy_bidirectional(&mut client, &mut endpoint).await
    };
    let cut = tokio::select! {
        copied = copied => copied.err().map(|error| (None, error.to_string())),
        refusal = until_refused(worker, caller, &candidate) => {
            Some((Some(Ending::Policy), refusal.text))
        }
        () = worker.shared.drain.cut() => {
            Some((Some(Ending::Drain), "the waypoint stops".to_owned()))
        }
    };
    let (ending, error) = match cut {
        None => (Some(Ending::Clean), None),
        Some((ending, error)) => {
            // Neither side shall take what it has got for the whole.
            reset_when_dropped(&client);
            reset_when_dropped(endpoint.socket());
            ending.inspect(|ending| recorder.metrics.cut(*ending, 1));
            (ending, Some(error))
        }
    };
    flow.moved(request.get(), response.get());
    flow.close();
    let closed = Closed {
        request: request.get(),
        response: response.get(),
        age: began.elapsed(),
        ending,
        error,
    };
    let described = describe(worker, caller, &known, Some(&candidate), &asked);
    recorder.closed(&described, closed);
}

/// What TLS asks for on a connection, where a rule may ask for it.
async fn asked_name(
    worker: &Worker,
    caller: &Caller,
    client: &mut TcpStream,
    before: &mut BytesMut,
) -> Option<String> {
    let active = worker.shared.newest.load();
    let known = caller.known(&active);
    let destination = known.dialled.as_destination();
    let matters = active
        .l7
        .asks_for_names(caller.as_client(&known), destination);
    drop(active);
    if !matters {
        return None;
    }
    server_name(client, before, worker.shared.limits.detect_timeout).await
}

fn reset_when_dropped(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection that was cut is closed in order");
    }
}

/// A connection to an endpoint.
struct Opened {
    endpoint: Upstream,
    candidate: Candidate,
    /// The service whose endpoint it is.
    served: Option<Rc<telemetry::Asked>>,
    /// Its place among those that the service may have.
    _held: Held,
}

/// Why there is none, with the flag that users know from Envoy.
struct Refused(Option<Flag>, Refusal);

impl Refused {
    fn new(flag: Flag, reason: Reason, text: impl Into<String>) -> Self {
        let text = text.into();
        Self(Some(flag), Refusal { reason, text })
    }
}

/// Opens a connection to an endpoint that policy lets the client reach, or to another if that cannot be reached.
async fn open(
    worker: &Rc<Worker>,
    active: &Active,
    caller: &Caller,
    known: &Known,
    name: Option<&str>,
) -> Result<Opened, Refused> {
    let (resolved, mut tries) = find(worker, active, caller, known, name)?;
    let served = Some(Rc::clone(&resolved.asked));
    let mut tried = Vec::new();
    loop {
        let asked = Asked {
            hash: None,
            tried: &tried,
            dialled: Some(caller.dialled),
            own: &active.own,
        };
        let candidate = choose::choose(&resolved, asked, &mut rand::rng()).cloned();
        let candidate = candidate.ok_or_else(|| {
            let text = format!("{} has no endpoint that is ready", resolved.name);
            Refused::new(Flag::NoHealthy, Reason::EndpointUnhealthy, text)
        })?;
        allowed(active, caller, known, &candidate).map_err(|refusal| Refused(None, refusal))?;
        let address = candidate.member.address;
        let limits = resolved.cluster.policy.limits.clone().unwrap_or_default();
        let within = limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let most = limits.connections.unwrap_or(u32::MAX);
        let held = resolved.state.connections.take(most).ok_or_else(|| {
            let text = format!(
                "{} has {most} connections, as many as it may",
                resolved.name
            );
            Refused::new(Flag::Overflow, Reason::ServiceConnectionLimit, text)
        })?;
        let connecting = upstream::connect(address, &resolved.secured, Inside::Opaque);
        let failed = match tokio::time::timeout(within, connecting).await {
            Ok(Ok(endpoint)) => {
                return Ok(Opened {
                    endpoint,
                    candidate,
                    served,
                    _held: held,
                });
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                (Reason::ConnectionRefused, format!("{address}: {error}"))
            }
            Ok(Err(error)) => (Reason::ConnectFailed, format!("{address}: {error}")),
            Err(_elapsed) => {
                let text = format!("{address} has not answered within {within:?}");
                (Reason::ConnectTimeout, text)
            }
        };
        let members = resolved.candidates.len();
        resolved
            .state
            .note(&candidate.state, Outcome::Unreachable, None, members);
        tried.push(address);
        tries -= 1;
        if tries == 0 {
            return Err(Refused::new(Flag::ConnectFailure, failed.0, failed.1));
        }
    }
}

fn find(
    worker: &Worker,
    active: &Active,
    caller: &Caller,
    known: &Known,
    name: Option<&str>,
) -> Result<(Rc<Resolved>, u32), Refused> {
    match &known.dialled {
        Dialled::Service { key, port } => {
            let key = match by_rule(active, caller, known, name)? {
                Some(key) => key,
                None => ClusterKey {
                    service: key.clone(),
                    port: *port,
                    subset: None,
                },
            };
            let resolved = worker
                .clusters
                .find(active, (&key, *port), &worker.shared.registry);
            let resolved = resolved.ok_or_else(|| {
                let text = format!("{} has no port {port}", key.service);
                Refused::new(Flag::NoRoute, Reason::NoSuchPort, text)
            })?;
            Ok((resolved, TRIES))
        }
        // What was dialled is the gateway itself: it would call itself without end.
        Dialled::Workload(_) if caller.edge.is_some() => {
            let text = format!("no listener has the name {:?}", name.unwrap_or_default());
            Err(Refused::new(Flag::NoRoute, Reason::NoEndpoint, text))
        }
        Dialled::Workload(address) => {
            let endpoint = active.l7.endpoint_at(address.ip()).ok_or_else(|| {
                let text = format!("{address} is nothing that is served here");
                Refused::new(Flag::NoRoute, Reason::NoEndpoint, text)
            })?;
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

/// Where a rule for connections leads, if there are such rules for what was dialled.
fn by_rule(
    active: &Active,
    caller: &Caller,
    known: &Known,
    name: Option<&str>,
) -> Result<Option<ClusterKey>, Refused> {
    let (client, destination) = (caller.as_client(known), known.dialled.as_destination());
    let address = caller.dialled.ip();
    let refused = |text: String| Err(Refused::new(Flag::NoRoute, Reason::NoEndpoint, text));
    let rule = match active
        .l7
        .decide_connection(client, destination, address, name)
    {
        Decision::Rule { rule, .. } => rule,
        Decision::None(NoRoute::NoMatch) => return refused("no rule matches".to_owned()),
        _ => return Ok(None),
    };
    let Action::Forward(to) = &rule.action else {
        return refused(format!("{} leads nowhere", rule.origin));
    };
    match serve::draw(to).map(|drawn| &drawn.backend) {
        Some(Backend::Cluster(key)) => Ok(Some(key.clone())),
        Some(Backend::Invalid { reason, .. }) => refused(reason.to_string()),
        None => refused(format!("{} has no backend with a weight", rule.origin)),
    }
}

/// Whether the client may. What a rule says of requests does not hold for a connection that has none: an ALLOW that needs
/// it does not match, and a DENY does, as if only what it says of the connection was written.
fn allowed(
    active: &Active,
    caller: &Caller,
    known: &Known,
    candidate: &Candidate,
) -> Result<(), Refusal> {
    let path = Path::new("*").map_err(|error| Refusal {
        reason: Reason::PolicyUnenforceable,
        text: error.to_string(),
    })?;
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
    authorize(active, &request, candidate)
}

async fn until_refused(worker: &Rc<Worker>, caller: &Caller, candidate: &Candidate) -> Refusal {
    let mut changes = worker.shared.newest.changes();
    while changes.changed().await.is_ok() {
        let active = worker.shared.newest.load();
        let known = caller.known(&active);
        if let Err(refusal) = allowed(&active, caller, &known, candidate) {
            return refusal;
        }
    }
    std::future::pending().await
}

fn refuse(worker: &Worker, caller: &Caller, known: &Known, Refused(flag, refusal): Refused) {
    let asked = asked_of(caller, known, None);
    let mut labels = TcpLabels::from(labels_of(&known.party, &Party::default(), &asked));
    if let Some(flag) = flag {
        labels.response_flags = flag.as_str().into();
    }
    let described = describe(worker, caller, known, None, &asked);
    let recorder = &worker.shared.telemetry.recorder;
    recorder.refuse(&described, &labels, refusal);
}

/// The service that is told of: what was dialled, or, since that is a gateway itself at the edge, what it leads to.
fn asked_of(
    caller: &Caller,
    known: &Known,
    served: Option<&Rc<telemetry::Asked>>,
) -> Rc<telemetry::Asked> {
    match (&caller.edge, served) {
        (None, _) => Rc::clone(&known.asked),
        (Some(_), None) => Rc::default(),
        (Some(_), Some(served)) => Rc::clone(served),
    }
}

/// The connection, for the log and the page of refusals. Its destination is the endpoint, if one was chosen.
fn describe(
    worker: &Worker,
    caller: &Caller,
    known: &Known,
    candidate: Option<&Candidate>,
    asked: &telemetry::Asked,
) -> Description {
    let end = |addr: SocketAddr, party: Option<&Party>| ConnectionEnd {
        addr: Some(addr),
        workload: party.and_then(|party| party.workload.shared()),
        namespace: party.and_then(|party| party.namespace.shared()),
        identity: party.and_then(|party| party.principal.known().map(str::to_owned)),
    };
    let destination = candidate.map_or_else(
        || end(caller.dialled, None),
        |one| end(one.member.address, Some(&one.party)),
    );
    Description {
        direction: Direction::Waypoint,
        pod: worker.shared.pod.to_string(),
        source: end(caller.client, Some(&known.party)),
        destination,
        service: asked.hostname.known().map(str::to_owned),
        security: security_of(&known.party),
        tunnel: None,
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
