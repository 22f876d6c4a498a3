//! When a request is tried again: what surely was not processed, and what the rule names.

use std::time::Duration;

use http::{Method, StatusCode};
use l7::route::{Retries, RetryOn};
use rand::RngExt as _;
use thiserror::Error;

use super::Answered;
use super::pool::SendError;
use crate::balance::Resolved;
use crate::reply::Reply;
use crate::telemetry::Flag;
use crate::telemetry::grpc_status;

/// Why an attempt has no answer.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// It could not be sent, or was not answered.
    #[error(transparent)]
    Send(SendError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    AttemptTimeout(Duration),
    /// What is to be sent cannot be written.
    #[error("the request cannot be forwarded: {0}")]
    Message(http::Error),
}

/// The attempts of a request.
pub(super) struct Tries<'a> {
    retries: &'a Retries,
    /// The client's connection is handed over: there is one attempt.
    once: bool,
    used: u32,
    /// Attempts that found a kept connection closed: nothing of the request had been looked at.
    stale: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(retries: &'a Retries, once: bool) -> Self {
        Self {
            retries,
            once,
            used: 0,
            stale: 0,
        }
    }

    /// After which pause the request is tried again, if it is.
    pub(super) fn again(
        &mut self,
        sent: &Result<Answered, Failure>,
        method: &Method,
        replayable: bool,
    ) -> Option<Duration> {
        if self.once || !replayable {
            return None;
        }
        if self.stale < MOST_STALE && is_stale(sent, method) {
            self.stale += 1;
            return Some(Duration::ZERO);
        }
        if self.used >= self.retries.attempts || !is_named(self.retries, sent) {
            return None;
        }
        let base = self.retries.backoff.unwrap_or(BACKOFF);
        let longest = base.saturating_mul(1 << self.used.min(4));
        self.used += 1;
        Some(longest.mul_f64(rand::rng().random_range(0.0..1.0)))
    }

    /// Whether there were retries, and there are none left.
    pub(super) fn are_used_up(&self) -> bool {
        self.used > 0 && self.used >= self.retries.attempts
    }
}

/// A kept connection broke under the request. It had been closed by the endpoint while it was idle, most likely; so a
/// request that may be repeated (RFC 9110, 9.2.2) is.
fn is_stale(sent: &Result<Answered, Failure>, method: &Method) -> bool {
    let repeatable = method.is_idempotent();
    matches!(sent, Err(Failure::Send(SendError::Broken { reused: true, .. })) if repeatable)
}

fn is_named(retries: &Retries, sent: &Result<Answered, Failure>) -> bool {
    let on = retries.on;
    let any_error = on.server_error || on.gateway_error;
    match sent {
        Err(Failure::Send(error)) => match error {
            SendError::Connect { .. }
            | SendError::ConnectTimeout { .. }
            | SendError::Handshake { .. } => on.connect_failure || any_error,
            SendError::NotProcessed { .. } => {
                on.refused_stream || on.reset_before_request || on.reset || any_error
            }
            SendError::Broken { .. } => on.reset || any_error,
            SendError::Overflow | SendError::NoWebSocket { .. } => false,
        },
        Err(Failure::AttemptTimeout(_)) => on.attempt_timeout || any_error,
        Err(Failure::Message(_)) => false,
        Ok(answered) => {
            let status = answered.response.status();
            by_status(retries, status)
                || grpc_status(answered.response.headers())
                    .is_some_and(|status| by_grpc_status(on, status))
        }
    }
}

fn by_status(retries: &Retries, status: StatusCode) -> bool {
    let on = retries.on;
    (on.server_error && status.is_server_error())
        || (on.gateway_error && matches!(status.as_u16(), 502..=504))
        || (on.retriable_4xx && status == StatusCode::CONFLICT)
        || (on.statuses && retries.statuses.contains(&status))
}

fn by_grpc_status(on: RetryOn, status: u32) -> bool {
    match status {
        1 => on.grpc_cancelled,
        4 => on.grpc_deadline_exceeded,
        8 => on.grpc_resource_exhausted,
        13 => on.grpc_internal,
        14 => on.grpc_unavailable,
        _ => false,
    }
}

/// Retries that may be under way at once: as the rule says, else a fifth of the requests and at least a few, so that
/// retries do not double the load of endpoints that fail because of it (P58).
pub(super) fn budget(resolved: &Resolved) -> u32 {
    let limits = resolved.cluster.policy.limits.as_ref();
    let said = limits.and_then(|limits| limits.retries);
    said.unwrap_or_else(|| (resolved.state.requests.now() / 5).max(FEW))
}

impl Failure {
    /// What the client gets, if nothing is tried any more.
    pub(super) fn reply(self, used_up: bool) -> Reply {
        let text = describe(&self);
        let mut reply = match &self {
            Self::Send(error) => match error {
                SendError::Overflow => Reply::overflow(text),
                SendError::NoWebSocket { .. } => Reply::endpoint_protocol(text),
                SendError::Connect { .. }
                | SendError::ConnectTimeout { .. }
                | SendError::Handshake { .. } => Reply::unreachable(text),
                SendError::NotProcessed { .. } | SendError::Broken { .. } => Reply::broken(text),
            },
            Self::AttemptTimeout(_) => Reply::timeout(text),
            Self::Message(_) => Reply::bad_request(text),
        };
        if used_up {
            reply.text.push_str("; all attempts failed");
            reply.also = Some(Flag::RetryLimit);
        }
        reply
    }
}

/// An error with its causes.
fn describe(error: &Failure) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

const BACKOFF: Duration = Duration::from_millis(25);
const MOST_STALE: u32 = 3;
const FEW: u32 = 10;
