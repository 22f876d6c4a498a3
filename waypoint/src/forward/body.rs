//! The body of a request on its way to an endpoint.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;

pub(crate) use super::answer::{Answer, Kept};
use super::replay::{Attempt, Whole};

/// Why a body ends before its end.
#[derive(Debug, Error)]
pub(crate) enum BodyError {
    /// The connection that it comes from broke.
    #[error("the body ended early")]
    Broken(#[from] hyper::Error),
    /// The client had broken off before.
    #[error("the client broke off")]
    Client,
    /// Another attempt sends it now.
    #[error("another attempt has taken the request over")]
    Superseded,
    /// The time for the whole request is over.
    #[error("the time for the request is over")]
    Timeout,
    /// Policy has changed, and refuses it now.
    #[error("policy has come to refuse the request")]
    Policy,
    /// The client takes nothing of its answer.
    #[error("the client has taken nothing more of the answer for too long")]
    Idle,
}

/// The body of a request to an endpoint.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// There is none.
    Nothing,
    /// The client's.
    Client(Attempt<Incoming>),
    /// A copy of it.
    Copy(Whole),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Client(attempt) => Pin::new(attempt).poll_frame(cx),
            Self::Copy(whole) => Poll::Ready(whole.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Client(attempt) => attempt.is_end_stream(),
            Self::Copy(whole) => whole.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Client(attempt) => attempt.size_hint(),
            Self::Copy(whole) => SizeHint::with_exact(whole.bytes()),
        }
    }
}
