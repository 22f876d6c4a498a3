//! What ends a request before its answer: its time is over, its client does not go on, or policy has come to refuse it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::replay::Source;
use crate::live::{Judged, until_refused};
use crate::reply::Reply;
use crate::serve::Exchange;

/// The time that a client of gRPC gives its request (`grpc-timeout`: at most eight digits and a unit). What is written in
/// another way is none.
pub(super) fn of_grpc(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (amount, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&amount.len()) || !amount.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = amount.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Resolves when the time for the request is over. That of the rule runs from when the client has sent everything; what
/// the client itself allows is over at a fixed time. The earlier of both counts.
pub(super) async fn expire(
    (by_rule, by_client): (Option<Duration>, Option<Instant>),
    source: Option<&Source<Incoming>>,
    deadline: &Cell<Option<Instant>>,
) {
    let rule = async {
        let Some(timeout) = by_rule else {
            return std::future::pending().await;
        };
        if let Some(source) = source {
            source.ended().await;
        }
        let at = Instant::now() + timeout;
        let at = by_client.map_or(at, |client| client.min(at));
        deadline.set(Some(at));
        tokio::time::sleep_until(at).await;
    };
    match by_client {
        None => rule.await,
        Some(at) => tokio::select! {
            () = rule => {}
            () = tokio::time::sleep_until(at) => {}
        },
    }
}

/// Resolves when a request that has a body may not go on: its client sends nothing more of it, or policy has come to refuse
/// it. Most requests are answered before anybody asks.
pub(super) async fn broken_off(
    exchange: &Exchange<'_>,
    source: Option<&Source<Incoming>>,
    endpoint: SocketAddr,
) -> Reply {
    let Some(source) = source else {
        return std::future::pending().await;
    };
    tokio::time::sleep(SOON).await;
    let idle = exchange.worker.shared.limits.stream_idle;
    // In a box, so that a request has no room for it before it lasts.
    let lasting = Box::pin(async move {
        let judged = Judged::of(exchange, Some(endpoint));
        tokio::select! {
            reply = until_refused(exchange.worker, &judged) => reply,
            () = source.stalled(idle) => Reply::stream_idle(),
        }
    });
    lasting.await
}

/// Waits for the rest of a request whose answer has begun, from when what is returned is dropped: a client that does not go
/// on then is given up. While the answer lasts nothing counts: who listens need not speak.
pub(super) fn see_to_the_rest(source: &Source<Incoming>, idle: Duration) -> oneshot::Sender<()> {
    let (over, ended) = oneshot::channel();
    let rest = source.weak();
    tokio::task::spawn_local(async move {
        drop(ended.await);
        rest.give_up_after(idle).await;
    });
    over
}

/// A request that lasts longer is looked after.
const SOON: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_time_of_grpc_is_read_in_each_unit_and_nothing_else_is() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            of_grpc(&headers)
        };
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("0S", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            "1 S",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
