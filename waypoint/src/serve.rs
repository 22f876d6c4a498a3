//! One request from its head to its answer: routed, then answered here or forwarded.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use l7::backend::{Endpoint, Member};
use l7::rewrite::{self, Taken};
use l7::route::{
    Action, Backend, DirectResponse, Forward, HeaderOperations, Redirect, Retries, WeightedBackend,
};
use l7::{ClusterKey, Decision, NoRoute, Path, Rule};
use rand::RngExt as _;
use runtime::busy::{self, MESSAGE, Way};

use crate::accept::{Answering, Watch};
use crate::active::Active;
use crate::balance::Resolved;
use crate::caller::{Caller, Known};
use crate::forward::body::Answer;
use crate::forward::{self, Plan, headers};
use crate::live::Judged;
use crate::reply::{self, Reply};
use crate::telemetry::Record;
use crate::worker::Worker;
use crate::{authority, cors, fault, websocket};

/// A request, and what it is decided with.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) caller: &'a Rc<Caller>,
    pub(crate) active: &'a Arc<Active>,
    pub(crate) known: &'a Known,
    pub(crate) head: &'a http::request::Parts,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a Path<'a>,
    /// The client's connection, if 1xx may be written there.
    pub(crate) early: Option<&'a Watch>,
}

impl Exchange<'_> {
    /// As routes and policies see it.
    pub(crate) fn request(&self) -> l7::Request<'_> {
        l7::Request {
            client: self.caller.as_client(self.known),
            destination: self.known.dialled.as_destination(),
            protocol: l7::Protocol::Http,
            scheme: self.caller.scheme(),
            method: &self.head.method,
            authority: self.authority,
            path: self.path,
            headers: &self.head.headers,
        }
    }
}

/// Answers a request.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    caller: Rc<Caller>,
    request: Request<Incoming>,
    answering: Answering,
) -> Response<Answer> {
    let version = request.version();
    busy::moved(Way::Outward, MESSAGE);
    // Who speaks HTTP/1.0 does not know 1xx, and of HTTP/2 hyper sends none.
    let early = (version == Version::HTTP_11).then(|| answering.watch().clone());
    let mut response = answer(&worker, &caller, request, early.as_ref()).await;
    busy::moved(Way::Inward, MESSAGE);
    let takes_over = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if worker.shared.drain.is_draining() && version < Version::HTTP_2 && !takes_over {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response.map(|body| body.holding(answering, &worker.answers))
}

async fn answer(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    mut request: Request<Incoming>,
    early: Option<&Watch>,
) -> Response<Answer> {
    let takes_over =
        *request.method() == Method::CONNECT || headers::wants_upgrade(request.headers());
    let upgrade = takes_over.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let was_connect = websocket::as_get(&mut head);
    if !head.headers.contains_key(headers::X_REQUEST_ID)
        && let Ok(id) = HeaderValue::try_from(headers::request_id())
    {
        head.headers.insert(headers::X_REQUEST_ID, id);
    }
    let span = worker.shared.tracer.as_ref();
    let span = span.map(|tracer| tracer.begin(&mut head.headers));
    let authority = authority::settle(&mut head);
    let shown = authority.as_deref().unwrap_or_default();
    let telemetry = &worker.shared.telemetry;
    let mut record = Box::new(Record::new(telemetry, caller, &head, shown, span));
    let active = worker.shared.newest.load();
    let mut known = caller.known(&active);
    record.parties.source = Rc::clone(&known.party);
    record.parties.asked = Rc::clone(&known.asked);
    let authority = match authority {
        Ok(authority) => authority,
        Err(text) => return Reply::bad_request(text).answer(record),
    };
    let was_connect = match was_connect {
        Ok(was_connect) => was_connect,
        Err(text) => return Reply::bad_request(text).answer(record),
    };
    if let Some(edge) = &caller.edge {
        match edge.dialled(&active, &authority) {
            Some(dialled) => known.dialled = dialled,
            None => return Reply::no_route("no listener serves this host").answer(record),
        }
    }
    let mut response = decide(
        worker,
        caller,
        (&active, &known),
        (&head, &authority, early),
        body,
        upgrade,
        record,
    )
    .await;
    if let Some(endpoint) = response.body().endpoint_address() {
        let judged = Judged {
            caller: Rc::clone(caller),
            known,
            head,
            authority,
            endpoint: Some(endpoint),
        };
        response.body_mut().watch(worker, judged);
    }
    if was_connect {
        websocket::answer(&mut response);
    }
    response
}

async fn decide(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    (active, known): (&Arc<Active>, &Known),
    (head, authority, early): (&http::request::Parts, &str, Option<&Watch>),
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    record: Box<Record>,
) -> Response<Answer> {
    // The target of CONNECT is an authority; the rules about paths judge it as `*`.
    let target = head
        .uri
        .path_and_query()
        .map_or("*", |target| target.as_str());
    let path = match Path::new(target) {
        Ok(path) => path,
        Err(error) => return Reply::bad_request(error.to_string()).answer(record),
    };
    let exchange = Exchange {
        worker,
        caller,
        active,
        known,
        head,
        authority,
        path: &path,
        early,
    };
    route(&exchange, body, upgrade, record).await
}

async fn route(
    exchange: &Exchange<'_>,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let standard = Retries::standard();
    match exchange.active.l7.decide(&exchange.request()) {
        Decision::None(why) => {
            let text = match why {
                NoRoute::NoMatch => "no rule matches",
                NoRoute::UnknownDestination => "nothing that is served here was dialled",
            };
            forward::unless_denied(exchange, Reply::no_route(text)).answer(record)
        }
        Decision::Workload(endpoint) => {
            let resolved = workload(exchange, endpoint);
            let plan = Plan::plain(resolved, &standard);
            forward::forward(exchange, &plan, body, upgrade, record).await
        }
        Decision::Service(cluster) => {
            let Some(resolved) = find(exchange, &cluster.key) else {
                let reply = Reply::no_cluster("the service has gone");
                return forward::unless_denied(exchange, reply).answer(record);
            };
            let plan = Plan::plain(resolved, &standard);
            forward::forward(exchange, &plan, body, upgrade, record).await
        }
        Decision::Rule { rule, taken } => {
            record.rule = Some(rule.origin.clone());
            by_rule(exchange, (rule, taken), body, upgrade, record).await
        }
    }
}

async fn by_rule(
    exchange: &Exchange<'_>,
    (rule, taken): (&Rule, Taken),
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let request = exchange.request();
    let origin = request.headers.get(http::header::ORIGIN).cloned();
    if let Some(cors) = &rule.cors
        && let Some(allowed) = cors::preflight(cors, &request)
    {
        let mut response = reply::plain(StatusCode::OK, bytes::Bytes::new(), record);
        cors::allow(response.headers_mut(), allowed);
        return response;
    }
    let mut response = match &rule.action {
        Action::Forward(to) => {
            let plan = match plan(exchange, rule, to, taken) {
                Ok(plan) => plan,
                Err(reply) => {
                    return forward::unless_denied(exchange, reply).answer(record);
                }
            };
            if exchange.caller.edge.is_some() {
                // What was dialled is the gateway itself.
                record.parties.asked = Rc::clone(&plan.resolved.asked);
            }
            forward::forward(exchange, &plan, body, upgrade, record).await
        }
        // What needs no endpoint is asked about with the first that the service has.
        action => match forward::allowed_anywhere(exchange) {
            Err(reply) => reply.answer(record),
            Ok(()) => match fault::inject(rule, record).await {
                Err(aborted) => aborted,
                Ok(record) => at_once(exchange, rule, action, taken, record),
            },
        },
    };
    if let Some(cors) = &rule.cors {
        cors::expose(cors, origin.as_ref(), response.headers_mut());
    }
    response
}

fn at_once(
    exchange: &Exchange<'_>,
    rule: &Rule,
    action: &Action,
    taken: Taken,
    record: Box<Record>,
) -> Response<Answer> {
    let mut response = match action {
        Action::Redirect(to) => redirect(exchange, to, taken, record),
        Action::Respond(DirectResponse { status, body }) => {
            reply::plain(*status, bytes::Bytes::copy_from_slice(body), record)
        }
        Action::Fail(reason) => {
            Reply::failed(StatusCode::INTERNAL_SERVER_ERROR, &**reason).answer(record)
        }
        Action::Forward(_) => Reply::no_route("the rule forwards").answer(record),
    };
    rule.response_headers.apply(response.headers_mut());
    response
}

fn redirect(
    exchange: &Exchange<'_>,
    to: &Redirect,
    taken: Taken,
    record: Box<Record>,
) -> Response<Answer> {
    let location = rewrite::location(to, &exchange.request(), taken);
    match HeaderValue::try_from(location) {
        Ok(location) => {
            let mut response = reply::plain(to.status, bytes::Bytes::new(), record);
            response.headers_mut().insert(LOCATION, location);
            response
        }
        Err(error) => Reply::bad_request(error.to_string()).answer(record),
    }
}

/// One of the backends, in proportion to their weights; `None` if none has one.
pub(crate) fn draw(to: &Forward) -> Option<&WeightedBackend> {
    let total: u64 = to.backends.iter().map(|one| u64::from(one.weight)).sum();
    let mut ticket = (total > 0).then(|| rand::rng().random_range(0..total))?;
    to.backends.iter().find(|one| {
        let weight = u64::from(one.weight);
        let here = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        here
    })
}

/// Where a rule sends this request.
fn plan<'c>(
    exchange: &Exchange<'_>,
    rule: &'c Rule,
    to: &'c Forward,
    taken: Taken,
) -> Result<Plan<'c>, Reply> {
    let Some(drawn) = draw(to) else {
        let text = format!("{} has no backend with a weight", rule.origin);
        return Err(Reply::failed(StatusCode::INTERNAL_SERVER_ERROR, text));
    };
    let key = match &drawn.backend {
        Backend::Cluster(key) => key,
        Backend::Invalid { status, reason } => return Err(Reply::failed(*status, &**reason)),
    };
    let Some(resolved) = find(exchange, key) else {
        let name = crate::balance::state::name(key);
        return Err(Reply::no_cluster(format!(
            "{} names {name}, which does not exist",
            rule.origin
        )));
    };
    Ok(Plan {
        resolved,
        retries: &to.retries,
        timeout: rule.timeout,
        attempt_timeout: to.attempt_timeout,
        path: to.rewrite.path.as_ref(),
        taken,
        authority: drawn.authority.as_ref().or(to.rewrite.authority.as_ref()),
        request_headers: [&rule.request_headers, &drawn.request_headers],
        response_headers: [&drawn.response_headers, &rule.response_headers],
        mirrors: &to.mirrors,
        rule: Some(rule),
    })
}

pub(crate) fn find(exchange: &Exchange<'_>, key: &ClusterKey) -> Option<Rc<Resolved>> {
    let worker = exchange.worker;
    {
        let dialled = exchange.known.dialled.as_destination().port();
        worker
            .clusters
            .find(exchange.active, (key, dialled), &worker.shared.registry)
    }
}

fn workload(exchange: &Exchange<'_>, endpoint: &Arc<Endpoint>) -> Rc<Resolved> {
    let destination = exchange.known.dialled.as_destination();
    let member = Member {
        endpoint: Arc::clone(endpoint),
        address: exchange.caller.dialled,
        // Whoever dials its address reaches it, ready or not.
        ready: true,
    };
    let (active, registry) = (exchange.active, &exchange.worker.shared.registry);
    let protocol = active.l7.protocol(destination);
    Rc::new(Resolved::alone(member, protocol, &active.mesh, registry))
}

impl<'c> Plan<'c> {
    /// To the endpoints of a service or a workload, as no rule says.
    fn plain(resolved: Rc<Resolved>, retries: &'c Retries) -> Self {
        Self {
            resolved,
            retries,
            timeout: None,
            attempt_timeout: None,
            path: None,
            taken: Taken::default(),
            authority: None,
            request_headers: [&NO_CHANGE, &NO_CHANGE],
            response_headers: [&NO_CHANGE, &NO_CHANGE],
            mirrors: &[],
            rule: None,
        }
    }
}

static NO_CHANGE: HeaderOperations = HeaderOperations::NONE;
