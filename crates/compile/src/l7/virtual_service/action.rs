//! What happens to requests that a rule takes.

use std::sync::Arc;

use http::StatusCode;
use k8s_api::virtual_service::{
    self as written, CorsPolicy, Destination, HttpDestination, HttpRoute, Percentage,
};
use l7::route::{
    Abort, Action, Backend, Cors, DirectResponse, Fault, Forward, HeaderChanges, HeaderOperations,
    Mirror, PathRewrite, Redirect, RedirectPort, Retries, RetryOn, Rewrite, Share, Substitution,
    Treatment, WeightedBackend,
};
use l7::text::TextMatch;
use l7::{ClusterKey, Origin, Rule};
use model::ServiceKey;

use crate::l7::hosts;
use crate::l7::notes::Notes;

/// How names in an object are to be understood.
#[derive(Clone, Copy)]
pub(super) struct Names<'n> {
    pub(super) namespace: &'n str,
    pub(super) domain: &'n str,
}

/// The rule, without its conditions.
pub(super) fn rule(
    field: &str,
    http: &HttpRoute,
    origin: Origin,
    names: Names<'_>,
    notes: &mut Notes,
) -> Rule {
    let errors = notes.errors();
    let (request_headers, authority) = request_operations(field, http, notes);
    let response = http.headers.as_ref().and_then(|h| h.response.as_ref());
    let response_headers = operations(&format!("{field}.headers.response"), response, notes);
    let mut action = action(field, http, names, notes);
    if let (Action::Forward(forward), Some(authority)) = (&mut action, authority) {
        forward.rewrite.authority.get_or_insert(authority);
    }
    let timeout = notes.optional_duration(&format!("{field}.timeout"), http.timeout.as_deref());
    let fault = http
        .fault
        .as_ref()
        .map(|fault| self::fault(&format!("{field}.fault"), fault, notes));
    let cors = http
        .cors_policy
        .as_ref()
        .map(|cors| self::cors(&format!("{field}.corsPolicy"), cors, notes));
    // What could not be read is not carried out in part.
    let mut first = notes
        .0
        .iter()
        .filter(|n| n.severity == manifest::Severity::Error);
    if let Some(first) = first.nth(errors) {
        action = Action::Fail(format!("{}: {}", first.field, first.message).into());
    }
    Rule::new(
        origin,
        Treatment {
            action,
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
            fault: fault.map(Box::new),
            cors: cors.map(Box::new),
            request_headers,
            response_headers,
        },
    )
}

fn action(field: &str, http: &HttpRoute, names: Names<'_>, notes: &mut Notes) -> Action {
    let chosen = [
        http.redirect.is_some(),
        http.direct_response.is_some(),
        !http.route.is_empty(),
        http.delegate.is_some(),
    ];
    if chosen.iter().filter(|set| **set).count() != 1 {
        let message = "exactly one of route, redirect, directResponse and delegate has to be set";
        notes.error(field, message);
    }
    if let Some(to) = &http.delegate {
        // Its rules stand in the place of this one; see `delegate`.
        return Action::Fail(format!("VirtualService {} is not there", to.name).into());
    }
    if let Some(redirect) = &http.redirect {
        return Action::Redirect(self::redirect(
            &format!("{field}.redirect"),
            redirect,
            notes,
        ));
    }
    if let Some(respond) = &http.direct_response {
        return Action::Respond(direct_response(field, respond, notes));
    }
    Action::Forward(Forward {
        backends: backends(&format!("{field}.route"), &http.route, names, notes),
        rewrite: rewrite(&format!("{field}.rewrite"), http, notes),
        retries: http
            .retries
            .as_ref()
            .map_or_else(Retries::standard, |retries| {
                self::retries(&format!("{field}.retries"), retries, notes)
            })
            .into(),
        attempt_timeout: http
            .retries
            .as_ref()
            .and_then(|retries| retries.per_try_timeout.as_deref())
            .and_then(|text| notes.duration(&format!("{field}.retries.perTryTimeout"), text))
            .filter(|timeout| !timeout.is_zero()),
        mirrors: mirrors(field, http, names, notes),
    })
}

pub(super) fn backends(
    field: &str,
    route: &[HttpDestination],
    names: Names<'_>,
    notes: &mut Notes,
) -> Vec<WeightedBackend> {
    let sum: i64 = route.iter().map(|one| i64::from(one.weight)).sum();
    if sum == 0 && route.len() > 1 {
        notes.error(
            field,
            "the weights add up to 0: no request could go anywhere",
        );
    }
    let mut backends = Vec::new();
    for (index, one) in route.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Some(destination) = &one.destination else {
            notes.error(format!("{field}.destination"), "is missing");
            continue;
        };
        let weight = u32::try_from(one.weight).ok().unwrap_or_else(|| {
            notes.error(format!("{field}.weight"), "is negative");
            0
        });
        let headers = one.headers.as_ref();
        let request = headers.and_then(|h| h.request.as_ref());
        let (request_headers, authority) =
            with_authority(&format!("{field}.headers.request"), request, notes);
        let response = headers.and_then(|h| h.response.as_ref());
        backends.push(WeightedBackend {
            backend: Backend::Cluster(cluster(destination, names)),
            weight: if route.len() == 1 {
                weight.max(1)
            } else {
                weight
            },
            request_headers,
            response_headers: operations(&format!("{field}.headers.response"), response, notes),
            authority,
        });
    }
    backends
}

/// Port 0 is the service's only port, or the one that was dialled. The service of a host that is no Service's is in no
/// namespace: which `ServiceEntry` is meant is known where all are.
fn cluster(destination: &Destination, names: Names<'_>) -> ClusterKey {
    let host = hosts::full(&destination.host, names.namespace, names.domain).to_ascii_lowercase();
    ClusterKey {
        service: hosts::service(&host, names.domain).unwrap_or_else(|| ServiceKey::new("", host)),
        port: destination.port.as_ref().map_or(0, |port| port.number),
        subset: (!destination.subset.is_empty()).then(|| destination.subset.as_str().into()),
    }
}

fn mirrors(field: &str, http: &HttpRoute, names: Names<'_>, notes: &mut Notes) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    let mut add = |to: &Destination, share: Share| {
        let backend = cluster(to, names);
        mirrors.push(Mirror { backend, share });
    };
    if let Some(to) = &http.mirror {
        let share = share(
            &format!("{field}.mirrorPercentage"),
            http.mirror_percentage,
            http.mirror_percent.map(f64::from),
            notes,
        );
        add(to, share);
    }
    for (index, mirror) in http.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        let share = share(
            &format!("{field}.percentage"),
            mirror.percentage,
            None,
            notes,
        );
        match &mirror.destination {
            Some(to) => add(to, share),
            None => notes.error(format!("{field}.destination"), "is missing"),
        }
    }
    mirrors
}

/// All that is not said otherwise, in any of the three spellings (C3).
fn share(
    field: &str,
    percentage: Option<Percentage>,
    percent: Option<f64>,
    notes: &mut Notes,
) -> Share {
    match percentage.map(Percentage::value).or(percent) {
        Some(percent) => notes.percentage(field, percent),
        None => Share::ALL,
    }
}

fn rewrite(field: &str, http: &HttpRoute, notes: &mut Notes) -> Rewrite {
    let Some(rewrite) = &http.rewrite else {
        return Rewrite::default();
    };
    let path = match (&rewrite.uri_regex_rewrite, rewrite.uri.as_str()) {
        (Some(regex), "") => {
            let field = format!("{field}.uriRegexRewrite.match");
            notes.regex(&field, &regex.r#match).and_then(|pattern| {
                let pattern = Substitution::new(&pattern, &regex.rewrite).ok()?;
                let pattern = Box::new(pattern);
                Some(PathRewrite::Regex { pattern })
            })
        }
        (Some(_), _) => {
            notes.error(field, "only one of uri and uriRegexRewrite can be set");
            None
        }
        (None, "") => None,
        (None, uri) => Some(PathRewrite::Prefix(uri.into())),
    };
    Rewrite {
        path,
        authority: (!rewrite.authority.is_empty()).then(|| rewrite.authority.as_str().into()),
    }
}

fn redirect(field: &str, redirect: &written::Redirect, notes: &mut Notes) -> Redirect {
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let code = redirect.redirect_code.unwrap_or(301);
    let status = match code {
        301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(code).ok(),
        _ => None,
    };
    if status.is_none() {
        let message = format!("{code} is none of 301, 302, 303, 307 and 308");
        notes.error(format!("{field}.redirectCode"), message);
    }
    let port = match (redirect.port, redirect.derive_port.as_deref()) {
        (Some(port), None) => RedirectPort::Number(port),
        (None, None) => RedirectPort::Unsaid,
        (None, Some("FROM_PROTOCOL_DEFAULT")) => RedirectPort::FromScheme,
        (None, Some("FROM_REQUEST_PORT")) => RedirectPort::Dialled,
        _ => {
            let message =
                "is none of FROM_PROTOCOL_DEFAULT and FROM_REQUEST_PORT, or there is a port too";
            notes.error(format!("{field}.derivePort"), message);
            RedirectPort::Unsaid
        }
    };
    Redirect {
        status: status.unwrap_or(StatusCode::MOVED_PERMANENTLY),
        scheme: text(&redirect.scheme),
        host: text(&redirect.authority),
        port,
        path: text(&redirect.uri).map(PathRewrite::Full),
    }
}

fn direct_response(
    field: &str,
    respond: &written::DirectResponse,
    notes: &mut Notes,
) -> DirectResponse {
    let status = StatusCode::from_u16(respond.status).ok();
    if status.is_none() {
        let message = format!("{} is no HTTP status", respond.status);
        notes.error(format!("{field}.directResponse.status"), message);
    }
    let body = respond.body.as_ref();
    if body.is_some_and(|body| body.bytes.is_some()) {
        let field = format!("{field}.directResponse.body.bytes");
        notes.error(field, "is not supported; write string");
    }
    let text = body.and_then(|body| body.string.as_deref());
    DirectResponse {
        status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        body: Arc::from(text.unwrap_or_default().as_bytes()),
    }
}

fn retries(field: &str, written: &written::Retries, notes: &mut Notes) -> Retries {
    let Ok(attempts) = u32::try_from(written.attempts) else {
        notes.error(format!("{field}.attempts"), "is negative");
        return Retries::default();
    };
    let mut retries = Retries {
        attempts,
        other_localities: written.retry_remote_localities.unwrap_or(false),
        backoff: notes.optional_duration(&format!("{field}.backoff"), written.backoff.as_deref()),
        ..Retries::default()
    };
    if written.retry_ignore_previous_hosts == Some(false) {
        notes.warning(
            format!("{field}.retryIgnorePreviousHosts"),
            "has no effect: a retry goes to another endpoint where there is one",
        );
    }
    if written.retry_on.is_empty() {
        // Istio's default where a rule asks for retries; who limits a try wants another one after it.
        retries.on = RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset_before_request: true,
            grpc_unavailable: true,
            grpc_cancelled: true,
            statuses: true,
            attempt_timeout: written.per_try_timeout.is_some(),
            ..RetryOn::default()
        };
        retries.statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
    }
    let words = written.retry_on.split(',').map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        let on = &mut retries.on;
        match word {
            "5xx" => {
                (on.server_error, on.reset) = (true, true);
                (on.connect_failure, on.refused_stream) = (true, true);
                on.attempt_timeout = true;
            }
            "gateway-error" => (on.gateway_error, on.attempt_timeout) = (true, true),
            "reset" => (on.reset, on.attempt_timeout) = (true, true),
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => on.statuses = true,
            "cancelled" => on.grpc_cancelled = true,
            "deadline-exceeded" => on.grpc_deadline_exceeded = true,
            "internal" => on.grpc_internal = true,
            "resource-exhausted" => on.grpc_resource_exhausted = true,
            "unavailable" => on.grpc_unavailable = true,
            number => match number.parse().map(StatusCode::from_u16) {
                Ok(Ok(status)) => {
                    on.statuses = true;
                    retries.statuses.push(status);
                }
                _ => {
                    let message = format!("{number:?} is not supported");
                    notes.error(format!("{field}.retryOn"), message);
                }
            },
        }
    }
    retries
}

fn fault(field: &str, written: &written::Fault, notes: &mut Notes) -> Fault {
    let delay = written.delay.as_ref().and_then(|delay| {
        let field = format!("{field}.delay");
        if delay.exponential_delay.is_some() {
            notes.error(format!("{field}.exponentialDelay"), "is not supported");
        }
        let Some(text) = &delay.fixed_delay else {
            notes.error(format!("{field}.fixedDelay"), "is missing");
            return None;
        };
        let duration = notes.duration(&format!("{field}.fixedDelay"), text)?;
        let percent = delay.percent.map(f64::from);
        let share = share(
            &format!("{field}.percentage"),
            delay.percentage,
            percent,
            notes,
        );
        Some((share, duration))
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let field = format!("{field}.abort");
        let percent = abort.percent.map(f64::from);
        let share = share(
            &format!("{field}.percentage"),
            abort.percentage,
            percent,
            notes,
        );
        let error = match (abort.http_status, &abort.grpc_status, &abort.http2_error) {
            (Some(status), None, None) => StatusCode::from_u16(status).ok().map(Abort::Http),
            (None, Some(status), None) => grpc_status(status).map(Abort::Grpc),
            _ => None,
        };
        if error.is_none() {
            notes.error(
                field,
                "one of httpStatus and grpcStatus has to be set, to a status",
            );
        }
        Some((share, error?))
    });
    Fault { delay, abort }
}

fn grpc_status(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let number: Option<u32> = text.parse().ok();
    let named = (0..).zip(NAMES).find(|(_, name)| *name == text);
    number
        .filter(|n| *n <= 16)
        .or(named.map(|(number, _)| number))
}

fn cors(field: &str, written: &CorsPolicy, notes: &mut Notes) -> Cors {
    let shared = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
    let mut origins: Vec<TextMatch> = written
        .allow_origin
        .iter()
        .map(|origin| match origin.as_str() {
            "*" => TextMatch::Present,
            origin => TextMatch::Exact(origin.into()),
        })
        .collect();
    for (index, origin) in written.allow_origins.iter().enumerate() {
        let field = format!("{field}.allowOrigins[{index}]");
        match (&origin.exact, &origin.prefix, &origin.regex) {
            (Some(exact), None, None) if exact == "*" => origins.push(TextMatch::Present),
            (Some(exact), None, None) => origins.push(TextMatch::Exact(exact.as_str().into())),
            (None, Some(prefix), None) => origins.push(TextMatch::Prefix(prefix.as_str().into())),
            (None, None, Some(regex)) => {
                origins.extend(notes.regex(&field, regex).map(TextMatch::Regex));
            }
            _ => notes.error(
                field,
                "exactly one of exact, prefix and regex has to be set",
            ),
        }
    }
    Cors {
        origins,
        methods: shared(&written.allow_methods),
        headers: shared(&written.allow_headers),
        expose: shared(&written.expose_headers),
        max_age: notes.optional_duration(&format!("{field}.maxAge"), written.max_age.as_deref()),
        credentials: written.allow_credentials.unwrap_or(false),
        forward_unmatched: written.unmatched_preflights.as_deref() != Some("IGNORE"),
    }
}

fn request_operations(
    field: &str,
    http: &HttpRoute,
    notes: &mut Notes,
) -> (HeaderOperations, Option<Arc<str>>) {
    let request = http.headers.as_ref().and_then(|h| h.request.as_ref());
    with_authority(&format!("{field}.headers.request"), request, notes)
}

/// Operations, without a new authority, which Istio writes as a header.
fn with_authority(
    field: &str,
    written: Option<&written::HeaderOperations>,
    notes: &mut Notes,
) -> (HeaderOperations, Option<Arc<str>>) {
    let Some(written) = written else {
        return (HeaderOperations::default(), None);
    };
    let mut written = written.clone();
    let is_authority = |name: &str| name == ":authority" || name.eq_ignore_ascii_case("host");
    let authority = written
        .set
        .extract_if(.., |name, _| is_authority(name))
        .last()
        .map(|(_, value)| value.into());
    (operations(field, Some(&written), notes), authority)
}

fn operations(
    field: &str,
    written: Option<&written::HeaderOperations>,
    notes: &mut Notes,
) -> HeaderOperations {
    let Some(written) = written else {
        return HeaderOperations::default();
    };
    let mut changes = HeaderChanges::default();
    for name in &written.remove {
        changes
            .remove
            .extend(notes.header_name(&format!("{field}.remove"), name));
    }
    for (kind, from, to) in [
        ("set", &written.set, &mut changes.set),
        ("add", &written.add, &mut changes.add),
    ] {
        for (name, value) in from {
            let field = format!("{field}.{kind}.{name}");
            let name = notes.header_name(&field, name);
            to.extend(name.zip(notes.header_value(&field, value)));
        }
    }
    changes.into()
}
