//! Copies of requests, whose answers count for nothing (F30).

use std::rc::Rc;

use http::HeaderValue;
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
        let asked = Asked {
            hash: None,
            tried: &[],
            dialled: None,
            own: &exchange.active.own,
        };
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

/// The host of a copy says that it is one, as Envoy has it.
fn mark(request: &mut http::Request<Outgoing>) {
    let Some(host) = request.headers().get(http::header::HOST) else {
        return;
    };
    let Ok(host) = host.to_str() else {
        return;
    };
    let marked = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{name}-shadow:{port}")
        }
        _ => format!("{host}-shadow"),
    };
    if let Ok(value) = HeaderValue::try_from(marked) {
        request.headers_mut().insert(http::header::HOST, value);
    }
}

/// A copy that takes longer is given up.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);
