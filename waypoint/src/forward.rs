//! A request on its way to an endpoint: chosen, authorized, sent, and tried again where that is safe or asked for.

mod affinity;
mod answer;
pub(crate) mod answers;
pub(crate) mod body;
pub(crate) mod headers;
mod limits;
mod message;
mod mirror;
mod outcome;
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

use http::{Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use l7::Rule;
use l7::rewrite::Taken;
use l7::route::{HeaderOperations, Mirror, PathRewrite, Retries};
use tokio::time::Instant;

use self::affinity::hash;
use self::body::{Answer, Kept, Outgoing};
use self::outcome::{note, outcome};
use self::pool::{ConnectionLimits, Lease, Target};
use self::replay::Source;
use self::retry::{Failure, Tries};
use crate::accept;
use crate::active::Active;
use crate::authorize::{authorize, authorize_nowhere};
use crate::balance::choose::{self, Asked};
use crate::balance::state::{Active as ActiveRequest, Outcome};
use crate::balance::{Candidate, Resolved};
use crate::caller::Dialled;
use crate::fault;
use crate::reply::Reply;
use crate::serve::{self, Exchange};
use crate::telemetry::{Record, is_grpc};
use crate::websocket;

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
    let by_client = record
        .is_grpc
        .then(|| limits::of_grpc(&exchange.head.headers));
    let by_client = by_client.flatten().map(|within| Instant::now() + within);
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
    let deadline = Cell::new(by_client);
    let expired = limits::expire((plan.timeout, by_client), source.as_ref(), &deadline);
    tokio::pin!(expired);
    let mut tries = Tries::new(plan.retries, upgrade.is_some());
    let mut candidate = first;
    // The place of a retry among those that there may be at once, until it is answered.
    let mut retrying = None;
    loop {
        record.attempts += 1;
        record.endpoint = Some(candidate.member.address);
        record.parties.destination = Rc::clone(&candidate.party);
        let attempt = attempt(exchange, plan, &candidate, source.as_ref(), record.attempts);
        let broken_off = limits::broken_off(exchange, source.as_ref(), candidate.member.address);
        let sent = tokio::select! {
            sent = attempt => sent,
            reply = broken_off => return reply.answer(record),
            () = expired.as_mut() => {
                // What a client allows says nothing of the endpoint, or a client could have it ejected.
                if by_client.is_none_or(|at| at > Instant::now()) {
                    note(resolved, &candidate, Some(Outcome::Failed));
                }
                return Reply::timeout("the time for the request is over").answer(record);
            }
        };
        note(resolved, &candidate, outcome(&sent));
        let replayable = source.as_ref().is_none_or(Source::is_replayable);
        let again = tries.again(&sent, &exchange.head.method, replayable);
        let retry = again.and_then(|pause| {
            // The one before is over.
            drop(retrying.take());
            retrying = resolved.state.retries.take(retry::budget(resolved));
            retrying.as_ref().map(|_place| pause)
        });
        let Some(pause) = retry else {
            let answer = Answering {
                exchange,
                plan,
                held,
                deadline: deadline.get(),
                cookie,
                source: source.clone(),
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
        elsewhere: plan.retries.other_localities,
        ..Asked::of(exchange.active)
    };
    let resolved = &plan.resolved;
    let newest = exchange.worker.shared.newest.load();
    let Some(candidate) = choose::choose(resolved, asked, &mut rand::rng()) else {
        authorize_some(&newest, &exchange.request(), resolved)?;
        let text = format!("{} has no endpoint that is ready", resolved.name);
        return Err(Reply::no_healthy(text));
    };
    authorize(&newest, &exchange.request(), candidate).map_err(Reply::denied)?;
    Ok(candidate)
}

/// Policy about a request that reaches no endpoint of a cluster: asked with one that it has, ready or not.
fn authorize_some(
    active: &Active,
    request: &l7::Request<'_>,
    resolved: &Resolved,
) -> Result<(), Reply> {
    let allowed = match resolved.candidates.first() {
        Some(candidate) => authorize(active, request, candidate),
        None => authorize_nowhere(active, request, &resolved.cluster.key.service.namespace),
    };
    allowed.map_err(Reply::denied)
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
    let request = exchange.request();
    match serve::find(exchange, &key) {
        Some(resolved) => authorize_some(exchange.active, &request, &resolved),
        None => authorize_nowhere(exchange.active, &request, &key.service.namespace)
            .map_err(Reply::denied),
    }
}

/// What a request gets that is not forwarded: this, unless policy refuses it.
pub(crate) fn unless_denied(exchange: &Exchange<'_>, reply: Reply) -> Reply {
    allowed_anywhere(exchange).err().unwrap_or(reply)
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
    let mut request =
        message::request(exchange, plan, &target, count, body).map_err(Failure::Message)?;
    // No WebSocket is asked for with a body.
    if target.http2 && source.is_none() && websocket::is_asked(exchange.head) {
        websocket::as_connect(&mut request);
    }
    let (pool, patience) = (
        &exchange.worker.pool,
        exchange.worker.shared.limits.stream_idle,
    );
    // Of HTTP/2 hyper's client tells nothing.
    let early = exchange.early.filter(|_| !target.http2);
    let sending = accept::passing(early, patience, request, |request| {
        pool.send(&target, request)
    });
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

pub(crate) fn target(
    exchange: &Exchange<'_>,
    resolved: &Resolved,
    candidate: &Candidate,
) -> Target {
    let limits = resolved.cluster.policy.limits.clone().unwrap_or_default();
    let came = message::Came {
        http2: exchange.head.version == http::Version::HTTP_2,
        agreed: exchange.caller.scheme() == "https" && !is_grpc(&exchange.head.headers),
    };
    Target {
        cluster: Arc::clone(&resolved.state),
        address: candidate.member.address,
        http2: message::speaks_http2(resolved.cluster.protocol, limits.upgrade, came),
        secured: resolved.secured.clone(),
        limits: ConnectionLimits::of(&limits),
    }
}

/// Makes the client's answer of an endpoint's.
struct Answering<'a, 'e> {
    exchange: &'a Exchange<'e>,
    plan: &'a Plan<'a>,
    held: crate::balance::count::Held,
    deadline: Option<Instant>,
    cookie: Option<String>,
    source: Option<Source<Incoming>>,
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
        let head = self.exchange.head;
        let is_http2 = response.version() == http::Version::HTTP_2;
        let is_open = response.status().is_success();
        if websocket::was_connect(head) {
            if is_http2 && is_open {
                // The same of HTTP/2.
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            } else if !is_http2
                && (is_open || response.status().is_informational())
                && let Err(wrong) = websocket::check(&head.headers, &response)
            {
                let text = format!("the endpoint's answer opens no WebSocket: {wrong}");
                return Reply::endpoint_protocol(text).answer(record);
            }
        } else if is_http2 && is_open && self.source.is_none() && websocket::is_asked(head) {
            websocket::switched(&mut response, &head.headers);
        }
        if upgrade.is_none() && response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Reply::broken("the endpoint switches protocols, which nobody asked for")
                .answer(record);
        }
        let cookie = self.cookie.as_deref();
        message::prepare(&mut response, self.plan.response_headers, cookie);
        record.answered(response.status(), response.headers());
        let is_open = message::takes_over(&response, &self.exchange.head.method);
        if let Some(upgrade) = upgrade.filter(|_| is_open) {
            return takeover::begin(self.exchange, upgrade, response, kept, record);
        }
        let deadline = self.deadline;
        let mut response =
            response.map(|body| Answer::endpoint(body, kept, record).until(deadline));
        if let Some(source) = self.source.filter(Source::is_open) {
            let idle = self.exchange.worker.shared.limits.stream_idle;
            let rest = limits::see_to_the_rest(&source, idle);
            response.body_mut().followed_by(rest);
        }
        response
    }
}
