//! What an attempt says of its endpoint.

use http::{Response, StatusCode};
use hyper::body::Incoming;

use super::Answered;
use super::pool::SendError;
use super::retry::Failure;
use crate::balance::state::Outcome;
use crate::balance::{Candidate, Resolved};
use crate::telemetry::grpc_status;

/// Takes note of it.
pub(super) fn note(resolved: &Resolved, candidate: &Candidate, outcome: Option<Outcome>) {
    let Some(outcome) = outcome else {
        return;
    };
    let rule = resolved.cluster.policy.outliers.as_ref();
    let members = resolved.candidates.len();
    resolved
        .state
        .note(&candidate.state, outcome, rule, members);
}

/// What an attempt says of its endpoint; nothing if the endpoint was never asked.
pub(super) fn outcome(sent: &Result<Answered, Failure>) -> Option<Outcome> {
    match sent {
        Ok(answered) => Some(Outcome::Answered(status_of(&answered.response))),
        Err(Failure::Send(SendError::Connect { .. } | SendError::ConnectTimeout { .. })) => {
            Some(Outcome::Unreachable)
        }
        Err(
            Failure::Send(SendError::Overflow | SendError::NoWebSocket { .. })
            | Failure::Message(_),
        ) => None,
        Err(_) => Some(Outcome::Failed),
    }
}

/// The status that an answer counts as. An error of gRPC that stands in the head of the answer counts as the status of
/// HTTP that it is like, as in Envoy: a server of gRPC answers 200 to everything.
fn status_of(response: &Response<Incoming>) -> u16 {
    let status = response.status();
    match grpc_status(response.headers()) {
        Some(error) if status == StatusCode::OK => grpc_as_http(error),
        _ => status.as_u16(),
    }
}

/// What a status of gRPC is like (Envoy, `Grpc::Utility::grpcToHttpStatus`).
fn grpc_as_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_grpc_count_as_what_they_are_like() {
        let errors = [2, 4, 12, 13, 14, 15].map(grpc_as_http);
        assert_eq!(errors, [500, 504, 501, 500, 503, 500]);
        let blameless = [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 16].map(grpc_as_http);
        assert!(
            blameless.iter().all(|status| *status < 500),
            "{blameless:?}"
        );
    }
}
