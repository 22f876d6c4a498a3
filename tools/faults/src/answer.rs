//! What becomes of a request and of its answer.

use std::sync::Arc;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

use crate::plan::Faults;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What kind of request it is, as far as that decides what can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// For all objects of a kind.
    List,
    /// For changes since a resource version, or from now on.
    Watch,
    /// Something else, such as a token's review or a lease.
    Other,
}

impl Asked {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        let path = request.uri().path();
        let has = |name: &str| query.split('&').any(|pair| pair.starts_with(name));
        // A kind's plural is the last part; of one object that is its name.
        let is_collection = has("limit=") || has("resourceVersion=") || path.ends_with('s');
        match (request.method(), is_collection) {
            (&Method::GET, _) if has("watch=true") || has("watch=1") => Self::Watch,
            (&Method::GET, true) => Self::List,
            _ => Self::Other,
        }
    }
}

/// An answer that is not the server's, if one is due; or a wait.
pub(crate) async fn instead(faults: &Faults, asked: &Asked) -> Option<Response<Body>> {
    match asked {
        Asked::List => {
            if faults.strikes(|plan| plan.busy, |counts| &mut counts.busy) {
                return Some(refusal(429, "TooManyRequests"));
            }
            if faults.strikes(|plan| plan.slow, |counts| &mut counts.slow) {
                sleep(faults.delay()).await;
            }
        }
        Asked::Watch => {
            if faults.strikes(|plan| plan.gone, |counts| &mut counts.gone) {
                return Some(if faults.either() {
                    refusal(410, "Expired")
                } else {
                    let event = json!({"type": "ERROR", "object": status(410, "Expired")});
                    answer(200, format!("{event}\n"))
                });
            }
        }
        Asked::Other => {}
    }
    if faults.strikes(|plan| plan.broken, |counts| &mut counts.broken) {
        return Some(if faults.either() {
            refusal(503, "ServiceUnavailable")
        } else {
            refusal(500, "InternalError")
        });
    }
    None
}

/// The server's answer, with what happens to it on its way.
pub(crate) fn spoilt(
    faults: &Arc<Faults>,
    asked: &Asked,
    answer: Response<Incoming>,
) -> Result<Response<Body>> {
    let (mut head, body) = answer.into_parts();
    if *asked != Asked::Watch || !head.status.is_success() {
        let body = body.map_err(std::io::Error::other).boxed_unsync();
        return Ok(Response::from_parts(head, body));
    }
    head.headers.remove("content-length");
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(events(Arc::clone(faults), body, tell));
    let body = StreamBody::new(ReceiverStream::new(told)).boxed_unsync();
    Ok(Response::from_parts(head, body))
}

type Part = Result<Frame<Bytes>, std::io::Error>;

/// Hands on events, a line each, until the server ends or the plan ends it.
async fn events(faults: Arc<Faults>, mut body: Incoming, tell: mpsc::Sender<Part>) {
    let mut cuts = faults.cuts();
    let mut rest = BytesMut::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = cuts.changed() => {
                faults.count(|counts| &mut counts.cut);
                return end(&tell).await;
            }
            () = tell.closed() => return,
        };
        let Some(Ok(frame)) = frame else {
            return;
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let line = rest.split_to(at + 1).freeze();
            if !event(&faults, line, &tell).await {
                return;
            }
        }
    }
}

/// Hands on one event; says whether the watch goes on.
async fn event(faults: &Faults, line: Bytes, tell: &mpsc::Sender<Part>) -> bool {
    if faults.strikes(|plan| plan.late, |counts| &mut counts.late) {
        sleep(faults.delay()).await;
    }
    if faults.strikes(|plan| plan.cut, |counts| &mut counts.cut) {
        let half = line.slice(..line.len() / 2);
        drop(tell.send(Ok(Frame::data(half))).await);
        end(tell).await;
        return false;
    }
    if faults.strikes(|plan| plan.repeat, |counts| &mut counts.repeated)
        && tell.send(Ok(Frame::data(line.clone()))).await.is_err()
    {
        return false;
    }
    faults.count(|counts| &mut counts.events);
    tell.send(Ok(Frame::data(line))).await.is_ok()
}

/// An end that is none: the connection is cut.
async fn end(tell: &mpsc::Sender<Part>) {
    let cut = std::io::Error::other("the watch is cut");
    drop(tell.send(Err(cut)).await);
}

fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "by a proxy that is told to", "reason": reason, "code": code,
    })
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    let mut refusal = answer(code, status(code, reason).to_string());
    if code == 429 {
        let seconds = hyper::header::HeaderValue::from_static("1");
        refusal.headers_mut().insert("retry-after", seconds);
    }
    refusal
}

fn answer(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    let kind = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert("content-type", kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_watches_are_told_from_all_else() {
        let asked = |method: &str, uri: &str| {
            let request = Request::builder().method(method).uri(uri).body(());
            Asked::of(&request.expect("a request"))
        };
        let pods = "/api/v1/pods?limit=500";
        assert_eq!(asked("GET", pods), Asked::List);
        assert_eq!(
            asked(
                "GET",
                "/api/v1/pods?&watch=true&timeoutSeconds=290&resourceVersion=5"
            ),
            Asked::Watch
        );
        let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases/b";
        assert_eq!(asked("GET", lease), Asked::Other);
        assert_eq!(
            asked("POST", "/apis/authentication.k8s.io/v1/tokenreviews?"),
            Asked::Other
        );
    }
}
