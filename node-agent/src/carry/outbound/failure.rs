//! Why a connection could not be carried, and what its client is told then.

use std::{io, sync::Arc};

use model::Reason;
use tunnel::{
    ErrorType,
    client::{ConnectError, Lost, OpenError},
    pool::PoolError,
};

use super::Attempt;
use crate::{carry::syn::Answer, host::is_exhausted, telemetry::record::Refusal};

pub(super) fn pool_failure(error: &PoolError) -> Attempt {
    let (reason, another_endpoint) = match error {
        PoolError::Connect(error) => connect_failure(error),
        PoolError::Open(OpenError::Refused { status, .. }) if status.as_u16() == 401 => {
            (Reason::DeniedByPeer, false)
        }
        PoolError::Open(OpenError::Refused { error, .. }) => (far_answer(error.as_deref()), true),
        PoolError::Open(OpenError::Lost(Lost::Tls(failure))) => (failure.reason(), false),
        PoolError::Open(OpenError::Retired) => (Reason::CertificateEnded, false),
        PoolError::Open(_) => (Reason::TunnelFailed, true),
        _ => (Reason::AgentStopping, false),
    };
    let answer = match error {
        PoolError::Connect(error) => match &**error {
            ConnectError::Dial { source, .. } => answer_of(source),
            _ => answer_for(reason),
        },
        _ => answer_for(reason),
    };
    Attempt {
        another_endpoint,
        answer,
        refusal: Refusal {
            reason,
            text: crate::host::describe(error),
        },
    }
}

/// What a client is told, by what the kernel said to us.
pub(super) fn answer_of(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::TimedOut => Answer::Silence,
        io::ErrorKind::NetworkUnreachable => Answer::NetworkUnreachable,
        io::ErrorKind::HostUnreachable => Answer::HostUnreachable,
        _ => Answer::Refused,
    }
}

/// What a client is told, by the reason: what nobody has answered is not answered. One whose agent stops asks the next
/// one, or is refused by the kernel half.
pub(super) fn answer_for(reason: Reason) -> Answer {
    match reason {
        Reason::ApplicationTimeout | Reason::HandshakeTimeout | Reason::AgentStopping => {
            Answer::Silence
        }
        Reason::ApplicationUnreachable => Answer::HostUnreachable,
        _ => Answer::Refused,
    }
}

/// What the server's agent says of the application's answer (RFC 9209 section 2.3), in our word.
pub(super) fn far_answer(error: Option<&str>) -> Reason {
    let is = |kind: ErrorType| error == Some(kind.as_str());
    if is(ErrorType::ConnectionRefused) {
        Reason::ApplicationRefused
    } else if is(ErrorType::ConnectionTimeout) {
        Reason::ApplicationTimeout
    } else if is(ErrorType::DestinationIpUnroutable) {
        Reason::ApplicationUnreachable
    } else {
        Reason::RefusedByPeer
    }
}

pub(super) fn connect_failure(error: &Arc<ConnectError>) -> (Reason, bool) {
    match &**error {
        ConnectError::Dial { source, .. } => (connect_reason(source), true),
        ConnectError::Secure(error) => (error.reason(), false),
        ConnectError::H2(_) => (Reason::H2HandshakeFailed, true),
        _ => (Reason::HandshakeTimeout, true),
    }
}

pub(super) fn connect_reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Reason::Unreachable,
        _ if is_exhausted(error) => Reason::NoDescriptors,
        _ => Reason::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use model::Reason;

    use super::{answer_for, answer_of, far_answer};
    use crate::carry::syn::Answer;

    #[test]
    fn a_client_is_told_what_the_far_side_said() {
        for (said, answer) in [
            (ErrorKind::ConnectionRefused, Answer::Refused),
            (ErrorKind::TimedOut, Answer::Silence),
            (ErrorKind::NetworkUnreachable, Answer::NetworkUnreachable),
            (ErrorKind::HostUnreachable, Answer::HostUnreachable),
            (ErrorKind::PermissionDenied, Answer::Refused),
        ] {
            assert_eq!(answer_of(&Error::from(said)), answer, "{said}");
        }
        for (said, answer) in [
            (Some("connection_refused"), Answer::Refused),
            (Some("connection_timeout"), Answer::Silence),
            (Some("destination_ip_unroutable"), Answer::HostUnreachable),
            (Some("connection_limit_reached"), Answer::Refused),
            (None, Answer::Refused),
        ] {
            assert_eq!(answer_for(far_answer(said)), answer, "{said:?}");
        }
        for reason in [
            Reason::DeniedByPeer,
            Reason::NoEndpoint,
            Reason::UnknownRoot,
        ] {
            assert_eq!(answer_for(reason), Answer::Refused, "{reason}");
        }
        for reason in [Reason::HandshakeTimeout, Reason::AgentStopping] {
            assert_eq!(answer_for(reason), Answer::Silence, "{reason}");
        }
    }

    #[test]
    fn refused_timed_out_and_unreachable_are_told_apart_across_the_tunnel() {
        for (said, expected) in [
            (Some("connection_refused"), Reason::ApplicationRefused),
            (Some("connection_timeout"), Reason::ApplicationTimeout),
            (
                Some("destination_ip_unroutable"),
                Reason::ApplicationUnreachable,
            ),
            (Some("connection_limit_reached"), Reason::RefusedByPeer),
            (Some("of a peer's own"), Reason::RefusedByPeer),
            (None, Reason::RefusedByPeer),
        ] {
            assert_eq!(far_answer(said), expected, "{said:?}");
        }
    }
}
