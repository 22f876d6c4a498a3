//! The request as an endpoint gets it, and the answer as the client gets it.

use http::header::{HOST, HeaderMap, SET_COOKIE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use l7::backend::Upgrade;
use l7::rewrite;
use l7::route::HeaderOperations;
use model::service::AppProtocol;

use super::body::Outgoing;
use super::pool::Target;
use super::{Plan, headers};
use crate::serve::Exchange;
use crate::websocket;

/// How a client's request has come.
#[derive(Clone, Copy)]
pub(super) struct Came {
    /// By HTTP/2.
    pub(super) http2: bool,
    /// By TLS that ended here, in which client and gateway have agreed on a version for themselves; but for gRPC, which is
    /// HTTP/2 everywhere.
    pub(super) agreed: bool,
}

/// Whether requests of a port are sent as HTTP/2.
pub(super) fn speaks_http2(declared: AppProtocol, upgrade: Upgrade, came: Came) -> bool {
    match (upgrade, declared) {
        (Upgrade::Always, _) | (_, AppProtocol::Http2 | AppProtocol::Grpc) => true,
        (Upgrade::AsClient, _) => came.http2,
        (Upgrade::Never | Upgrade::Unsaid, AppProtocol::Http11) => false,
        // Undeclared: whoever speaks HTTP/2 to it unasked knows that it does. That is no upgrade.
        (Upgrade::Never | Upgrade::Unsaid, _) => came.http2 && !came.agreed,
    }
}

/// The request for one attempt.
pub(super) fn request(
    exchange: &Exchange<'_>,
    plan: &Plan<'_>,
    target: &Target,
    attempt: u32,
    body: Outgoing,
) -> Result<Request<Outgoing>, http::Error> {
    let head = exchange.head;
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    let mut all = head.headers.clone();
    let keep_upgrade = !target.http2 && headers::wants_upgrade(&all);
    headers::strip_hop_by_hop(&mut all, keep_upgrade);
    let caller = exchange.caller;
    let (client, identity) = (caller.client.ip(), caller.identity.as_ref());
    headers::tell_of_client(&mut all, client, identity, None, caller.scheme());
    all.insert(headers::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(attempt));
    let mut authority = plan
        .authority
        .map_or(exchange.authority, |authority| authority);
    for operations in plan.request_headers {
        operations.apply(&mut all);
    }
    // A rule may set the host as if it were a header.
    let set = all.get(HOST).and_then(|host| host.to_str().ok());
    let set = set
        .filter(|set| *set != exchange.authority)
        .map(str::to_owned);
    if let Some(set) = &set {
        authority = set;
    }
    let path = path(exchange, plan)?;
    if target.http2 {
        all.remove(HOST);
        *request.version_mut() = Version::HTTP_2;
    } else {
        all.insert(HOST, HeaderValue::try_from(authority)?);
    }
    let scheme = match target.secured {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    };
    let scheme = target.http2.then_some(scheme);
    *request.uri_mut() = uri(&head.method, authority, path, scheme)?;
    *request.headers_mut() = all;
    if target.http2 && websocket::was_connect(head) {
        websocket::as_connect(&mut request);
    }
    Ok(request)
}

fn uri(
    method: &Method,
    authority: &str,
    path: PathAndQuery,
    scheme: Option<Scheme>,
) -> Result<Uri, http::Error> {
    let mut parts = http::uri::Parts::default();
    if *method == Method::CONNECT {
        parts.authority = Some(Authority::try_from(authority)?);
        return Ok(Uri::from_parts(parts)?);
    }
    if let Some(scheme) = scheme {
        let fallback = if authority.is_empty() {
            "localhost"
        } else {
            authority
        };
        parts.scheme = Some(scheme);
        parts.authority = Some(Authority::try_from(fallback)?);
    }
    parts.path_and_query = Some(path);
    Ok(Uri::from_parts(parts)?)
}

/// What was received, unless a rule rewrites it or dots had to be resolved.
fn path(exchange: &Exchange<'_>, plan: &Plan<'_>) -> Result<PathAndQuery, http::Error> {
    let received = exchange.head.uri.path_and_query();
    if let (None, Some(received)) = (plan.path, received)
        && exchange.path.forwarded() == received.path()
    {
        return Ok(received.clone());
    }
    let target = rewrite::target(plan.path, exchange.path, plan.taken);
    Ok(PathAndQuery::try_from(target)?)
}

/// Makes the head of an endpoint's answer the client's.
pub(super) fn prepare(
    response: &mut Response<Incoming>,
    operations: [&HeaderOperations; 2],
    cookie: Option<&str>,
) {
    let keep_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // hyper writes the client's own version.
    *response.version_mut() = Version::HTTP_11;
    let all: &mut HeaderMap = response.headers_mut();
    headers::strip_hop_by_hop(all, keep_upgrade);
    all.remove(headers::ALT_SVC);
    for operations in operations {
        operations.apply(all);
    }
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        all.append(SET_COOKIE, cookie);
    }
}

/// Whether an answer hands the connection over.
pub(super) fn takes_over(response: &Response<Incoming>, method: &Method) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (*method == Method::CONNECT && response.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A browser agrees on HTTP/2 with the gateway; the pods behind it have not been asked.
    #[test]
    fn an_undeclared_port_gets_http_2_from_who_speaks_it_unasked_and_a_declared_one_what_it_declares()
     {
        let came = |http2, agreed| Came { http2, agreed };
        for (declared, upgrade, came, expected) in [
            (
                AppProtocol::Unknown,
                Upgrade::Unsaid,
                came(true, false),
                true,
            ),
            (
                AppProtocol::Unknown,
                Upgrade::Unsaid,
                came(true, true),
                false,
            ),
            (
                AppProtocol::Unknown,
                Upgrade::Unsaid,
                came(false, true),
                false,
            ),
            (
                AppProtocol::Unknown,
                Upgrade::AsClient,
                came(true, true),
                true,
            ),
            (
                AppProtocol::Unknown,
                Upgrade::Always,
                came(false, true),
                true,
            ),
            (
                AppProtocol::Unknown,
                Upgrade::Never,
                came(true, false),
                true,
            ),
            (AppProtocol::Http2, Upgrade::Unsaid, came(false, true), true),
            (AppProtocol::Grpc, Upgrade::Unsaid, came(true, true), true),
            (
                AppProtocol::Http11,
                Upgrade::Unsaid,
                came(true, false),
                false,
            ),
        ] {
            let is = speaks_http2(declared, upgrade, came);
            assert_eq!(
                is, expected,
                "{declared:?} {upgrade:?} {} {}",
                came.http2, came.agreed
            );
        }
    }
}
