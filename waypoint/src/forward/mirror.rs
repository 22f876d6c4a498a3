//! Copies of requests, whose answers count for nothing (F30).

use std::rc::Rc;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::body::Outgoing;
use super::replay::Source;
use super::{Plan, message, target};
use crate::balance::choose::{self, Asked};
use crate::fault::is_drawn;
use crate::serve::{self, Exchange};

/// Sends copies of a request on their way. One with a body goes when all of that has come, if it was small enough to be
/// kept; the request itself does not wait for it.
pub(super) fn start(exchange: &Exchange<'_>, plan: &Plan<'_>, source: Option<&Source<Incoming>>) {
    for mirror in plan.mirrors {
        if !is_drawn(mirror.share) {
            continue;
        }
        let Some(resolved) = serve::find(exchange, &mirror.backend) else {
            continue;
        };
        let asked = Asked::of(exchange.active);
        let Some(candidate) = choose::choose(&resolved, asked, &mut rand::rng()) else {
            continue;
        };
        if crate::authorize::authorize(exchange.active, &exchange.request(), candidate).is_err() {
            continue;
        }
        let target = target(exchange, &resolved, candidate);
        let Ok(mut request) = message::request(exchange, plan, &target, 1, Outgoing::Nothing)
        else {
            continue;
        };
        mark(&mut request);
        let (worker, source) = (Rc::clone(exchange.worker), source.cloned());
        let sending = async move {
            if let Some(source) = source {
                source.ended().await;
                let Some(whole) = source.whole() else {
                    return;
                };
                *request.body_mut() = Outgoing::Copy(whole);
            }
            worker.shared.telemetry.mirrored.inc();
            match worker.pool.send(&target, request).await {
                Ok((response, _lease)) => drop(response.into_body().collect().await),
                Err(error) => tracing::debug!(%error, "a copy was not answered"),
            }
        };
        let drain = &exchange.worker.shared.drain;
        drain.spawn_local("mirror", async move {
            drop(tokio::time::timeout(LONGEST, sending).await);
        });
    }
}

/// The host of a copy says that it is one, as Envoy has it: `Host`, or the authority of HTTP/2.
fn mark(request: &mut http::Request<Outgoing>) {
    if let Some(host) = request.headers().get(HOST) {
        if let Ok(host) = host.to_str()
            && let Ok(value) = HeaderValue::try_from(marked(host))
        {
            request.headers_mut().insert(HOST, value);
        }
        return;
    }
    let mut parts = request.uri().clone().into_parts();
    if let Some(authority) = &parts.authority
        && let Ok(authority) = Authority::try_from(marked(authority.as_str()))
    {
        parts.authority = Some(authority);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

fn marked(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{name}-shadow:{port}")
        }
        _ => format!("{host}-shadow"),
    }
}

/// A copy that takes longer is given up.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_a_host_of_its_own_in_either_version() {
        for (host, expected) in [("cart", "cart-shadow"), ("cart:81", "cart-shadow:81")] {
            let request = http::Request::builder().uri("/x").header(HOST, host);
            let mut request = request.body(Outgoing::Nothing).unwrap();
            mark(&mut request);
            assert_eq!(request.headers()[HOST], expected);
            let uri = format!("http://{host}/x?y");
            let request = http::Request::builder().uri(uri);
            let mut request = request.body(Outgoing::Nothing).unwrap();
            mark(&mut request);
            assert_eq!(request.uri().authority().unwrap().as_str(), expected);
            assert_eq!(request.uri().path_and_query().unwrap(), "/x?y");
            assert!(!request.headers().contains_key(HOST));
        }
    }
}
