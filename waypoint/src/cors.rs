//! What scripts of other origins may do (A49): preflights are answered here.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, VARY,
};
use l7::Request;
use l7::route::Cors;
use std::sync::Arc;

/// Headers of the answer to a preflight; nothing if the request is none, or is to be forwarded.
pub(crate) fn preflight(
    cors: &Cors,
    request: &Request<'_>,
) -> Option<Vec<(HeaderName, HeaderValue)>> {
    if !Cors::is_preflight(request.method, request.headers) {
        return None;
    }
    let origin = request.headers.get(ORIGIN)?;
    let is_allowed = origin.to_str().is_ok_and(|origin| cors.allows(origin));
    if !is_allowed {
        return (!cors.forward_unmatched).then(Vec::new);
    }
    let mut allowed = origin_headers(cors, origin);
    // `*` means what was asked for, which is also understood where credentials are sent.
    let list = |names: &[Arc<str>], asked: &HeaderName| {
        if names.iter().any(|name| &**name == "*") {
            return request.headers.get(asked).cloned();
        }
        (!names.is_empty())
            .then(|| HeaderValue::try_from(names.join(",")).ok())
            .flatten()
    };
    let methods = list(&cors.methods, &ACCESS_CONTROL_REQUEST_METHOD);
    allowed.extend(methods.map(|value| (ACCESS_CONTROL_ALLOW_METHODS, value)));
    let headers = list(&cors.headers, &ACCESS_CONTROL_REQUEST_HEADERS);
    allowed.extend(headers.map(|value| (ACCESS_CONTROL_ALLOW_HEADERS, value)));
    // As Envoy does, and as the Gateway API's suite asks, though it matters for other answers alone.
    allowed.extend(exposed(cors));
    let age = cors.max_age.map(|age| HeaderValue::from(age.as_secs()));
    allowed.extend(age.map(|value| (ACCESS_CONTROL_MAX_AGE, value)));
    Some(allowed)
}

/// Puts them into an answer.
pub(crate) fn allow(headers: &mut HeaderMap, allowed: Vec<(HeaderName, HeaderValue)>) {
    for (name, value) in allowed {
        headers.insert(name, value);
    }
}

/// Lets scripts of an origin that may read an answer.
pub(crate) fn expose(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let Some(origin) = origin.filter(|origin| {
        let text = origin.to_str();
        text.is_ok_and(|origin| cors.allows(origin))
    }) else {
        return;
    };
    allow(headers, origin_headers(cors, origin));
    allow(headers, exposed(cors).into_iter().collect());
    headers.append(VARY, HeaderValue::from_static("origin"));
}

/// The header that names those which scripts may read.
fn exposed(cors: &Cors) -> Option<(HeaderName, HeaderValue)> {
    let names = (!cors.expose.is_empty()).then(|| cors.expose.join(","))?;
    let names = HeaderValue::try_from(names).ok()?;
    Some((ACCESS_CONTROL_EXPOSE_HEADERS, names))
}

fn origin_headers(cors: &Cors, origin: &HeaderValue) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
    if cors.credentials {
        let yes = HeaderValue::from_static("true");
        headers.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, yes));
    }
    headers
}
