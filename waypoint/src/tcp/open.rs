//! Opens a connection to an endpoint for one that is not read as HTTP.

use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, Method};
use l7::backend::{HashKey, LoadBalancer, Member};
use l7::route::{Action, Backend};
use l7::{ClusterKey, Decision, NoRoute, Path};
use model::Reason;
use model::service::AppProtocol;
use telemetry::Refusal;

use crate::active::Active;
use crate::authorize::authorize;
use crate::balance::choose::{self, Asked};
use crate::balance::count::Held;
use crate::balance::state::Outcome;
use crate::balance::{Candidate, Resolved};
use crate::caller::{Caller, Dialled, Known};
use crate::serve;
use crate::telemetry::Flag;
use crate::upstream::{self, CONNECT_TIMEOUT, Inside, Upstream};
use crate::worker::Worker;

/// A connection to an endpoint.
pub(super) struct Opened {
    pub(super) endpoint: Upstream,
    pub(super) candidate: Candidate,
    /// The service whose endpoint it is.
    pub(super) served: Option<Rc<telemetry::Asked>>,
    /// For how long it may be silent.
    pub(super) idle: Option<Duration>,
    /// For how long it may last.
    pub(super) life: Option<Duration>,
    /// Its place among those that the service may have.
    pub(super) _held: Held,
}

/// Why there is none, with the flag that users know from Envoy.
pub(super) struct Refused(pub(super) Option<Flag>, pub(super) Refusal);

impl Refused {
    fn new(flag: Flag, reason: Reason, text: impl Into<String>) -> Self {
        let text = text.into();
        Self(Some(flag), Refusal { reason, text })
    }
}

/// Opens a connection to an endpoint that policy lets the client reach, or to another if that cannot be reached.
pub(super) async fn open(
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
            hash: hash(&resolved, caller),
            tried: &tried,
            dialled: Some(caller.dialled),
            ..Asked::of(active)
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
                if let Err(error) = upstream::keep_alive(endpoint.socket(), limits.keepalive) {
                    tracing::debug!(%error, %address, "a connection without keepalive");
                }
                // What is no HTTP has no status: that it was taken is all that can be said of it.
                note(&resolved, &candidate, Outcome::Answered(200));
                return Ok(Opened {
                    endpoint,
                    candidate,
                    served,
                    idle: limits.idle_timeout.filter(|time| !time.is_zero()),
                    life: limits.connection_life.filter(|time| !time.is_zero()),
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
        note(&resolved, &candidate, Outcome::Unreachable);
        tried.push(address);
        tries -= 1;
        if tries == 0 {
            return Err(Refused::new(Flag::ConnectFailure, failed.0, failed.1));
        }
    }
}

fn note(resolved: &Resolved, candidate: &Candidate, outcome: Outcome) {
    let rule = resolved.cluster.policy.outliers.as_ref();
    let members = resolved.candidates.len();
    let state = &resolved.state;
    state.note(&candidate.state, outcome, rule, members);
}

/// What a consistent hash is made of: a connection has nothing but its client's address.
fn hash(resolved: &Resolved, caller: &Caller) -> Option<u64> {
    match &resolved.cluster.policy.load_balancer {
        Some(LoadBalancer::Hash(HashKey::SourceIp)) => Some(choose::of_address(caller.client.ip())),
        _ => None,
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
pub(super) fn allowed(
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

const TRIES: u32 = 3;
