//! A request on its way to an endpoint: chosen, authorized, sent, and tried again where that is safe or asked for.

pub(crate) mod body;
pub(crate) mod headers;
mod message;
mod mirror;
pub(crate) mod pool;
pub(crate) mod received;
mod replay;
mod retry;
mod takeover;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use l7::Rule;
use l7::backend::{HashKey, LoadBalancer};
use l7::rewrite::Taken;
use l7::route::{HeaderOperations, Mirror, PathRewrite, Retries};
use tokio::time::Instant;

use self::body::{Answer, Kept, Outgoing};
use self::pool::{ConnectionLimits, Lease, SendError, Target};
use self::replay::Source;
use self::retry::{Failure, Tries};
use crate::authorize::{authorize, authorize_nowhere};
use crate::balance::choose::{self, Asked};
use crate::balance::state::{Active as ActiveRequest, Outcome};
use crate::balance::{Candidate, Resolved};
use crate::caller::Dialled;
use crate::fault;
use crate::reply::Reply;
use crate::serve::{self, Exchange};
use crate::telemetry::Record;

/// Where a request goes, and how.
pub(crate) struct Plan<'c> {
    pub(crate) resolved: Rc<Resolved>,
    pub(crate) retries: &'c Retries,
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) path: Option<&'c PathRewrite>,
    pub(crate) taken: Taken,
    pub(crate) authority: Option<&'c Arc<str>>,
    pub(crate) request_headers: [&'c HeaderOperations; 2],
    pub(crate) response_headers: [&'c HeaderOperations; 2],
    pub(crate) mirrors: &'c [Mirror],
    pub(crate) rule: Option<&'c Rule>,
}

/// An answer's head, and what it holds.
struct Answered {
    response: Response<Incoming>,
    lease: Lease,
    active: ActiveRequest,
}

/// Forwards a request and gives its answer.
pub(crate) async fn forward(
    exchange: &Exchange<'_>,
    plan: &Plan<'_>,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let shared = &exchange.worker.shared;
    let resolved = &plan.resolved;
    record.cluster = Some(Arc::clone(&resolved.name));
    let (hash, cookie) = hash(exchange, resolved);
    let mut tried = Vec::new();
    // Asked before anything goes wrong on purpose: who may not call shall not see more than that.
    let first = match choose_allowed(exchange, plan, hash, &tried) {
        Ok(first) => first.clone(),
        Err(reply) => return reply.answer(record),
    };
    if let Some(rule) = plan.rule {
        record = match fault::inject(rule, record).await {
            Ok(record) => record,
            Err(aborted) => return aborted,
        };
    }
    let limits = resolved.cluster.policy.limits.as_ref();
    let most = limits
        .and_then(|limits| limits.requests)
        .unwrap_or(u32::MAX);
    let Some(held) = resolved.state.requests.take(most) else {
        return Reply::overflow("the limit of requests is reached").answer(record);
    };
    let source = (!body.is_end_stream()).then(|| Source::new(body, shared.limits.replay_bytes));
    if let Some(source) = &source {
        record.body = source.received();
    }
    mirror::start(exchange, plan, source.as_ref());
    let deadline = Cell::new(None);
    let expired = expire(plan.timeout, source.as_ref(), &deadline);
    tokio::pin!(expired);
    let mut tries = Tries::new(plan.retries, upgrade.is_some());
    let mut candidate = first;
    loop {
        record.attempts += 1;
        record.endpoint = Some(candidate.member.address);
        record.parties.destination = Rc::clone(&candidate.party);
        let attempt = attempt(exchange, plan, &candidate, source.as_ref(), record.attempts);
        let sent = tokio::select! {
            sent = attempt => sent,
            () = expired.as_mut() => {
                note(resolved, &candidate, Some(Outcome::Failed));
                return Reply::timeout("the time for the request is over").answer(record);
            }
        };
        note(resolved, &candidate, outcome(&sent));
        let replayable = source.as_ref().is_none_or(Source::is_replayable);
        let again = tries.again(&sent, &exchange.head.method, replayable);
        let retry = again.and_then(|pause| {
            let budget = retry::budget(resolved);
            Some((pause, resolved.state.retries.take(budget)?))
        });
        let Some((pause, _retry)) = retry else {
            let answer = Answering {
                exchange,
                plan,
                held,
                deadline: deadline.get(),
                cookie,
            };
            return match sent {
                Ok(answered) => answer.finish(answered, upgrade, record),
                Err(failure) => failure.reply(tries.are_used_up()).answer(record),
            };
        };
        drop(sent);
        shared.telemetry.retries.inc();
        tried.push(candidate.member.address);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = expired.as_mut() => {
                return Reply::timeout("the time for the request is over").answer(record);
            }
        }
        candidate = match choose_allowed(exchange, plan, hash, &tried) {
            Ok(next) => next.clone(),
            Err(reply) => return reply.answer(record),
        };
    }
}

/// An endpoint that the client may reach. Policy is that of now, not of when the request came.
fn choose_allowed<'p>(
    exchange: &Exchange<'_>,
    plan: &'p Plan<'_>,
    hash: Option<u64>,
    tried: &[SocketAddr],
) -> Result<&'p Candidate, Reply> {
    let asked = Asked {
        hash,
        tried,
        dialled: Some(exchange.caller.dialled),
        own: &exchange.active.own,
    };
    let resolved = &plan.resolved;
    let Some(candidate) = choose::choose(resolved, asked, &mut rand::rng()) else {
        let text = format!("{} has no endpoint that is ready", resolved.name);
        return Err(Reply::no_healthy(text));
    };
    let newest = exchange.worker.shared.newest.load();
    authorize(&newest, &exchange.request(), candidate).map_err(Reply::denied)?;
    Ok(candidate)
}

/// Policy about a request that needs no endpoint, asked with one that the service has.
///
/// # Errors
/// Policy refuses.
pub(crate) fn allowed_anywhere(exchange: &Exchange<'_>) -> Result<(), Reply> {
    if exchange.caller.edge.is_some() {
        return authorize_nowhere(exchange.active, &exchange.request(), "").map_err(Reply::denied);
    }
    let Dialled::Service { key, port } = &exchange.known.dialled else {
        return Ok(());
    };
    let key = l7::ClusterKey {
        service: key.clone(),
        port: *port,
        subset: None,
    };
    let resolved = serve::find(exchange, &key);
    let candidate = resolved.as_ref().and_then(|one| one.candidates.first());
    let request = exchange.request();
    let allowed = match candidate {
        Some(candidate) => authorize(exchange.active, &request, candidate),
        None => authorize_nowhere(exchange.active, &request, &key.service.namespace),
    };
    allowed.map_err(Reply::denied)
}

async fn attempt(
    exchange: &Exchange<'_>,
    plan: &Plan<'_>,
    candidate: &Candidate,
    source: Option<&Source<Incoming>>,
    count: u32,
) -> Result<Answered, Failure> {
    let target = target(exchange, &plan.resolved, candidate);
    let active = candidate.state.begin();
    let body = source.map_or(Outgoing::Nothing, |source| {
        Outgoing::Client(source.attempt())
    });
    let request =
        message::request(exchange, plan, &target, count, body).map_err(Failure::Message)?;
    let sending = exchange.worker.pool.send(&target, request);
    let sent = match plan.attempt_timeout {
        None => sending.await,
        Some(within) => tokio::time::timeout(within, sending)
            .await
            .map_err(|_elapsed| Failure::AttemptTimeout(within))?,
    };
    let (response, lease) = sent.map_err(Failure::Send)?;
    active.answered();
    Ok(Answered {
        response,
        lease,
        active,
    })
}

/// Resolves when the time for the request is over: it runs from when the client has sent everything.
async fn expire(
    timeout: Option<Duration>,
    source: Option<&Source<Incoming>>,
    deadline: &Cell<Option<Instant>>,
) {
    let Some(timeout) = timeout else {
        return std::future::pending().await;
    };
    if let Some(source) = source {
        source.ended().await;
    }
    let at = Instant::now() + timeout;
    deadline.set(Some(at));
    tokio::time::sleep_until(at).await;
}

pub(crate) fn target(
    exchange: &Exchange<'_>,
    resolved: &Resolved,
    candidate: &Candidate,
) -> Target {
    let limits = resolved.cluster.policy.limits.clone().unwrap_or_default();
    let is_http2 = exchange.head.version == http::Version::HTTP_2;
    Target {
        cluster: Arc::clone(&resolved.state),
        address: candidate.member.address,
        http2: message::speaks_http2(resolved.cluster.protocol, limits.upgrade, is_http2),
        secured: resolved.secured.clone(),
        limits: ConnectionLimits {
            connect_timeout: limits.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            connections: limits.connections.unwrap_or(u32::MAX),
            pending: limits.pending.unwrap_or(PENDING),
            requests_per_connection: limits
                .requests_per_connection
                .filter(|most| *most > 0)
                .unwrap_or(u32::MAX),
            idle: limits.idle_timeout.unwrap_or(IDLE),
        },
    }
}

/// What a consistent hash is made of, and the cookie that the client is given to come back to the same endpoint.
fn hash(exchange: &Exchange<'_>, resolved: &Resolved) -> (Option<u64>, Option<String>) {
    let Some(LoadBalancer::Hash(key)) = &resolved.cluster.policy.load_balancer else {
        return (None, None);
    };
    let request = exchange.request();
    let of = |text: &[u8]| Some(choose::hash(text));
    match key {
        HashKey::Header(name) => {
            let value = request.header(name);
            (value.and_then(|value| of(value.as_bytes())), None)
        }
        HashKey::SourceIp => (of(request.client.address.to_string().as_bytes()), None),
        HashKey::QueryParameter(name) => {
            let value = request.query_parameter(name);
            (value.and_then(|value| of(value.as_bytes())), None)
        }
        HashKey::Cookie { name, path, ttl } => {
            let cookies = request.header(&http::header::COOKIE).unwrap_or_default();
            let named = cookies.split(';').find_map(|pair| {
                let (key, value) = pair.trim().split_once('=')?;
                (key == &**name).then_some(value)
            });
            if let Some(value) = named {
                return (of(value.as_bytes()), None);
            }
            let Some(ttl) = ttl else {
                return (None, None);
            };
            let value = format!("{:016x}", rand::random::<u64>());
            let mut cookie = format!("{name}={value}");
            if !ttl.is_zero() {
                cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
            }
            if let Some(path) = path {
                cookie.push_str(&format!("; Path={path}"));
            }
            cookie.push_str("; HttpOnly");
            (of(value.as_bytes()), Some(cookie))
        }
    }
}

fn note(resolved: &Resolved, candidate: &Candidate, outcome: Option<Outcome>) {
    let Some(outcome) = outcome else {
        return;
    };
    let rule = resolved.cluster.policy.outliers.as_ref();
    let members = resolved.candidates.len();
    resolved
        .state
        .note(&candidate.state, outcome, rule, members);
}

/// What an attempt says of its endpoint; nothing if the endpoint was never asked.
fn outcome(sent: &Result<Answered, Failure>) -> Option<Outcome> {
    match sent {
        Ok(answered) => Some(Outcome::Answered(answered.response.status().as_u16())),
        Err(Failure::Send(SendError::Connect { .. } | SendError::ConnectTimeout { .. })) => {
            Some(Outcome::Unreachable)
        }
        Err(Failure::Send(SendError::Overflow) | Failure::Message(_)) => None,
        Err(_) => Some(Outcome::Failed),
    }
}

/// Makes the client's answer of an endpoint's.
struct Answering<'a, 'e> {
    exchange: &'a Exchange<'e>,
    plan: &'a Plan<'a>,
    held: crate::balance::count::Held,
    deadline: Option<Instant>,
    cookie: Option<String>,
}

impl Answering<'_, '_> {
    fn finish(
        self,
        answered: Answered,
        upgrade: Option<OnUpgrade>,
        mut record: Box<Record>,
    ) -> Response<Answer> {
        let Answered {
            mut response,
            lease,
            active,
        } = answered;
        let kept = Kept {
            _lease: lease,
            _active: active,
            _request: Some(self.held),
        };
        let cookie = self.cookie.as_deref();
        message::prepare(&mut response, self.plan.response_headers, cookie);
        record.answered(response.status(), response.headers());
        let is_open = message::takes_over(&response, &self.exchange.head.method);
        if let Some(upgrade) = upgrade.filter(|_| is_open) {
            return takeover::begin(self.exchange, upgrade, response, kept, record);
        }
        let deadline = self.deadline;
        response.map(|body| Answer::endpoint(body, kept, record).until(deadline))
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that wait for a connection, where there is a limit of connections and none of this.
const PENDING: u32 = 1024;
/// An endpoint usually closes before.
const IDLE: Duration = Duration::from_secs(60);
