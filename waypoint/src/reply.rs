//! Answers of the waypoint's own, with the status, body and flag that users know from Envoy.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use telemetry::Refusal;

use crate::forward::body::Answer;
use crate::telemetry::{Flag, Record};

/// Why a request is answered here.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: &'static str,
    pub(crate) flag: Option<Flag>,
    /// A second one.
    pub(crate) also: Option<Flag>,
    pub(crate) reason: &'static str,
    /// For the log.
    pub(crate) text: String,
    /// The status that clients of gRPC get, where another one than that of HTTP says more.
    grpc: Option<u32>,
}

impl Reply {
    fn new(
        status: StatusCode,
        body: &'static str,
        flag: impl Into<Option<Flag>>,
        reason: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self {
            status,
            body,
            flag: flag.into(),
            also: None,
            reason,
            text: text.into(),
            grpc: None,
        }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, "", Flag::ClientProtocol, "bad_request", text)
    }

    pub(crate) fn no_route(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "", Flag::NoRoute, "no_route", text)
    }

    pub(crate) fn no_cluster(text: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "", Flag::NoCluster, "no_cluster", text)
    }

    pub(crate) fn no_healthy(text: impl Into<String>) -> Self {
        let (status, body) = (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream");
        Self::new(status, body, Flag::NoHealthy, "no_endpoint", text)
    }

    pub(crate) fn failed(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(status, "", None, "rule_invalid", text)
    }

    pub(crate) fn denied(refusal: Refusal) -> Self {
        let (status, body) = (StatusCode::FORBIDDEN, "RBAC: access denied");
        Self::new(status, body, None, refusal.reason.as_str(), refusal.text)
    }

    pub(crate) fn overflow(text: impl Into<String>) -> Self {
        let body =
            "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, body, Flag::Overflow, "overflow", text)
    }

    pub(crate) fn unreachable(text: impl Into<String>) -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: connection failure";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, body, Flag::ConnectFailure, "connect_failed", text)
    }

    pub(crate) fn broken(text: impl Into<String>) -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(
            status,
            body,
            Flag::ConnectionTermination,
            "connection_broken",
            text,
        )
    }

    pub(crate) fn endpoint_protocol(text: impl Into<String>) -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
        let (status, flag) = (StatusCode::BAD_GATEWAY, Flag::EndpointProtocol);
        Self::new(status, body, flag, "endpoint_protocol", text)
    }

    pub(crate) fn timeout(text: impl Into<String>) -> Self {
        let (status, body) = (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout");
        Self {
            grpc: Some(DEADLINE_EXCEEDED),
            ..Self::new(status, body, Flag::Timeout, "timeout", text)
        }
    }

    pub(crate) fn stream_idle() -> Self {
        let (status, body) = (StatusCode::REQUEST_TIMEOUT, "stream timeout");
        let text = "the client has sent nothing more of its request for too long";
        Self::new(status, body, Flag::StreamIdle, "stream_idle", text)
    }

    pub(crate) fn abort(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(
            status,
            "fault filter abort",
            Flag::FaultInjected,
            "fault",
            text,
        )
    }

    /// The answer; gRPC clients get theirs as a status of gRPC.
    pub(crate) fn answer(self, mut record: Box<Record>) -> Response<Answer> {
        for flag in self.flag.into_iter().chain(self.also) {
            record.flag(flag);
        }
        record.reason = Some((self.reason, self.text));
        if record.is_grpc {
            let status = self.grpc.unwrap_or_else(|| grpc_status(self.status));
            return grpc(status, self.body, record);
        }
        plain(self.status, self.body.into(), record)
    }
}

/// An answer with a text.
pub(crate) fn plain(
    status: StatusCode,
    body: bytes::Bytes,
    mut record: Box<Record>,
) -> Response<Answer> {
    record.status = status;
    let length = HeaderValue::from(body.len());
    let has_text = !body.is_empty();
    let mut response = Response::new(Answer::whole(body, Some(record)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length);
    if has_text {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// An answer of gRPC without a message.
pub(crate) fn grpc(status: u32, message: &str, mut record: Box<Record>) -> Response<Answer> {
    record.status = StatusCode::OK;
    record.grpc_status = Some(status);
    let mut response = Response::new(Answer::whole("", Some(record)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status));
    if let Ok(message) = HeaderValue::try_from(message)
        && !message.is_empty()
    {
        headers.insert("grpc-message", message);
    }
    response
}

/// What an HTTP status is to a client of gRPC (grpc/doc/http-grpc-status-mapping.md).
fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

const DEADLINE_EXCEEDED: u32 = 4;
