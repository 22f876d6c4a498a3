//! What is known of one request when it is over.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode, Version};
use l7::Origin;
use telemetry::{Asked, Party, milliseconds};

use super::Telemetry;
use super::flags::{self, Flag};
use super::labels::{Grpc, HttpLabels};
use super::recent::Kind;
use super::{Series, labels_of};
use crate::caller::Caller;
use crate::forward::body::BodyError;
use crate::forward::received::Received;
use crate::trace::{Span, Told};

/// Who takes part in a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parties {
    pub(crate) source: Rc<Party>,
    pub(crate) destination: Rc<Party>,
    pub(crate) asked: Rc<Asked>,
}

/// What is told of a request.
#[derive(Debug)]
pub(crate) struct Record {
    telemetry: Arc<Telemetry>,
    began: Instant,
    caller: Rc<Caller>,
    pub(crate) parties: Parties,
    pub(crate) status: StatusCode,
    pub(crate) flags: Vec<Flag>,
    pub(crate) is_grpc: bool,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) rule: Option<Origin>,
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    /// A word of [`model::Reason`] or of our own, and a sentence.
    pub(crate) reason: Option<(&'static str, String)>,
    pub(crate) body: Received,
    line: Option<Line>,
    span: Option<Span>,
    told: bool,
}

/// What only the log and a span need.
#[derive(Debug)]
struct Line {
    is_logged: bool,
    method: Method,
    path: String,
    authority: String,
    version: Version,
    user_agent: Option<String>,
    request_id: Option<String>,
}

impl Record {
    pub(crate) fn new(
        telemetry: &Arc<Telemetry>,
        caller: &Rc<Caller>,
        head: &http::request::Parts,
        authority: &str,
        span: Option<Span>,
    ) -> Self {
        let text = |name: http::HeaderName| {
            let value = head.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let is_logged = tracing::enabled!(target: "access", tracing::Level::INFO);
        let is_traced = span.as_ref().is_some_and(Span::is_recorded);
        Self {
            telemetry: Arc::clone(telemetry),
            began: Instant::now(),
            caller: Rc::clone(caller),
            parties: Parties::default(),
            status: StatusCode::OK,
            flags: Vec::new(),
            is_grpc: is_grpc(&head.headers),
            grpc_status: None,
            rule: None,
            cluster: None,
            endpoint: None,
            attempts: 0,
            reason: None,
            body: Received::default(),
            told: false,
            span: span.filter(Span::is_recorded),
            line: (is_logged || is_traced).then(|| Line {
                is_logged,
                method: head.method.clone(),
                path: head
                    .uri
                    .path_and_query()
                    .map_or_else(String::new, |path| path.as_str().to_owned()),
                authority: authority.to_owned(),
                version: head.version,
                user_agent: text(http::header::USER_AGENT),
                request_id: text(http::HeaderName::from_static("x-request-id")),
            }),
        }
    }

    /// Notes once why the request went as it did.
    pub(crate) fn flag(&mut self, flag: Flag) {
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
    }

    /// The head of the answer.
    pub(crate) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status;
        self.trailers(headers);
    }

    /// What stands at the end of an answer, or in its head if it has no body.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = grpc_status(trailers) {
            self.grpc_status = Some(status);
        }
    }

    /// The metrics that it counts in.
    fn series(&self) -> Series {
        let find = || {
            let parties = &self.parties;
            self.telemetry.series(&HttpLabels {
                parties: labels_of(&parties.source, &parties.destination, &parties.asked),
                request_protocol: if self.is_grpc { "grpc" } else { "http" },
                response_code: self.status.as_u16(),
                grpc_response_status: Grpc(self.grpc_status),
                response_flags: flags::join(&self.flags),
            })
        };
        if !self.flags.is_empty() {
            return find();
        }
        let kind = Kind {
            parties: self.parties.clone(),
            is_grpc: self.is_grpc,
            status: self.status,
            grpc_status: self.grpc_status,
        };
        self.caller.series.get(&kind, find)
    }

    /// It is over.
    pub(crate) fn end(mut self: Box<Self>, response_bytes: u64, error: Option<&BodyError>) {
        self.tell(response_bytes, error);
    }

    fn tell(&mut self, response_bytes: u64, error: Option<&BodyError>) {
        self.told = true;
        match error {
            Some(BodyError::Client) => self.flag(Flag::ClientGone),
            Some(BodyError::Timeout) => self.flag(Flag::Timeout),
            Some(BodyError::Idle) => self.flag(Flag::StreamIdle),
            Some(BodyError::Broken(_)) => self.flag(Flag::ConnectionTermination),
            Some(BodyError::Superseded | BodyError::Policy) | None => {}
        }
        if let (Some(error), None) = (error, &self.reason) {
            self.reason = Some(("body", error.to_string()));
        }
        let request_bytes = self.body.bytes();
        let took = self.began.elapsed();
        self.series()
            .count(took.as_secs_f64() * 1000.0, request_bytes, response_bytes);
        let Some(line) = &self.line else {
            return;
        };
        let flags = flags::join(&self.flags);
        if let Some(span) = self.span.take() {
            let asked = self.parties.asked.hostname.known();
            let port = self.caller.dialled.port();
            span.end(Told {
                name: match asked {
                    Some(host) => format!("{host}:{port}/*"),
                    None => format!("{}:{port}/*", self.caller.dialled.ip()),
                },
                method: line.method.as_str(),
                url: format!("{}://{}{}", self.caller.scheme(), line.authority, line.path),
                status: self.status.as_u16(),
                grpc_status: self.grpc_status,
                flags: &flags,
                request_id: line.request_id.as_deref().unwrap_or_default(),
                user_agent: line.user_agent.as_deref().unwrap_or_default(),
                cluster: self.cluster.as_deref(),
                peer: self.caller.client.ip().to_string(),
                request_bytes,
                response_bytes,
                error: self.reason.as_ref().map(|(_, text)| text.as_str()),
            });
        }
        if !line.is_logged {
            return;
        }
        let (source, destination) = (&self.parties.source, &self.parties.destination);
        tracing::info!(
            target: "access",
            direction = "waypoint",
            src.addr = %self.caller.client,
            src.workload = source.workload.known(),
            src.namespace = source.namespace.known(),
            src.identity = source.principal.known(),
            dst.addr = %self.caller.dialled,
            dst.endpoint = self.endpoint.map(tracing::field::display),
            dst.workload = destination.workload.known(),
            dst.namespace = destination.namespace.known(),
            dst.identity = destination.principal.known(),
            dst.service = self.parties.asked.hostname.known(),
            method = %line.method,
            path = line.path,
            authority = line.authority,
            protocol = ?line.version,
            status = self.status.as_u16(),
            grpc_status = self.grpc_status,
            flags = &*flags,
            reason = self.reason.as_ref().map(|(word, _)| *word),
            error = self.reason.as_ref().map(|(_, text)| text.as_str()),
            route = self.rule.as_ref().map(tracing::field::display),
            cluster = self.cluster.as_deref(),
            attempts = self.attempts,
            bytes_recv = request_bytes,
            bytes_sent = response_bytes,
            duration_ms = milliseconds(took),
            request_id = line.request_id,
            user_agent = line.user_agent,
            "request"
        );
    }
}

impl Drop for Record {
    /// The client went away before there was an answer.
    fn drop(&mut self) {
        if !self.told {
            self.tell(0, Some(&BodyError::Client));
        }
    }
}

/// Whether a request is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
}

/// The status that gRPC puts into trailers. A number that gRPC does not know is UNKNOWN, as clients take it: it is a label of
/// metrics, and an endpoint must not make as many series as there are numbers.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    let status: u32 = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(if status <= GRPC_LAST {
        status
    } else {
        GRPC_UNKNOWN
    })
}

/// UNAUTHENTICATED, the last that gRPC has.
const GRPC_LAST: u32 = 16;
const GRPC_UNKNOWN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_grpc_does_not_know_is_unknown() {
        let read = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            grpc_status(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                value,
            )]))
        };
        for (value, status) in [
            ("0", Some(0)),
            ("16", Some(16)),
            ("17", Some(2)),
            ("4294967295", Some(2)),
            ("-1", None),
            ("x", None),
        ] {
            assert_eq!(read(value), status, "{value}");
        }
    }
}
