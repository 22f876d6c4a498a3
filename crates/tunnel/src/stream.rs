//! One connection inside a tunnel, from either end of it.

use std::sync::Arc;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::client::Slot;

/// The bytes of one connection through a tunnel. Give it to [`crate::copy::bidirectional`].
///
/// Dropping it before both directions ended resets the stream.
#[derive(Debug)]
pub struct TunnelStream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    pub(crate) end: StreamEnd,
    pub(crate) baggage: Option<Arc<str>>,
}

/// Which end of the tunnel a stream is held by, and what counts it there.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    Client(#[expect(dead_code, reason = "held for its Drop")] Slot),
    Server(#[expect(dead_code, reason = "held for its Drop")] OwnedSemaphorePermit),
}

impl TunnelStream {
    /// The peer's `baggage`: what it says about its workload, for telemetry only.
    pub fn peer_baggage(&self) -> Option<&str> {
        self.baggage.as_deref()
    }

    /// Resets the stream.
    pub fn reset(mut self) {
        let reason = self.end.reset_reason();
        self.send.send_reset(reason);
    }

    /// The two halves, for a caller that moves the bytes itself. The first value counts the stream:
    /// keep it until both halves are done.
    pub fn into_parts(self) -> (impl Sized, SendStream<Bytes>, RecvStream) {
        (self.end, self.send, self.recv)
    }
}

impl StreamEnd {
    /// What a failed TCP connection is called on the stream: RFC 9113 section 8.5 asks a proxy for
    /// CONNECT_ERROR; a client that goes away cancels.
    pub(crate) fn reset_reason(&self) -> Reason {
        match self {
            Self::Client(_) => Reason::CANCEL,
            Self::Server(_) => Reason::CONNECT_ERROR,
        }
    }
}
