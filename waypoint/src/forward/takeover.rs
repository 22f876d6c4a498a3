//! Connections that a request has taken over: WebSocket, other upgrades, CONNECT.

use std::rc::Rc;
use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::{Answer, BodyError, Kept};
use crate::live::{Judged, until_refused};
use crate::serve::Exchange;
use crate::telemetry::Record;

/// Answers the client, and carries bytes both ways from then on.
pub(super) fn begin(
    exchange: &Exchange<'_>,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    kept: Kept,
    mut record: Box<Record>,
) -> Response<Answer> {
    let endpoint = hyper::upgrade::on(&mut response);
    let worker = Rc::clone(exchange.worker);
    let judged = Judged::of(exchange, record.endpoint);
    let carrying = async move {
        let _kept = kept;
        let (client, endpoint) = match tokio::try_join!(client, endpoint) {
            Ok(both) => both,
            Err(error) => return record.end(0, Some(&BodyError::Broken(error))),
        };
        let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
        let copied = tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut client, &mut endpoint) => copied,
            reply = until_refused(&worker, &judged) => {
                record.reason = Some((reply.reason, reply.text));
                return record.end(0, Some(&BodyError::Policy));
            }
            () = worker.shared.drain.cut() => return record.end(0, None),
        };
        match copied {
            Ok((received, sent)) => {
                record.body.add(received);
                record.end(sent, None);
            }
            Err(error) => {
                record.reason = Some(("body", error.to_string()));
                record.end(0, None);
            }
        }
    };
    let shared = Arc::clone(&exchange.worker.shared);
    shared.drain.spawn_local("takeover", carrying);
    response.map(|_nothing| Answer::whole("", None))
}
