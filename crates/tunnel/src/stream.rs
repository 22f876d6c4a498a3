//! One connection inside a tunnel, from either end of it.

use std::sync::Arc;

use h2::{Reason, RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::client::Slot;
use crate::line::Line;
use crate::thin::ThinStream;

/// The bytes of one connection through a tunnel. Give it to [`crate::copy::bidirectional`].
///
/// Dropping it before both directions ended resets the stream.
#[derive(Debug)]
pub struct TunnelStream {
    pub(crate) bytes: Bytes,
    pub(crate) end: StreamEnd,
    pub(crate) baggage: Option<Arc<str>>,
    pub(crate) line: Arc<Line>,
}

/// How the bytes of a stream are framed.
#[derive(Debug)]
pub(crate) enum Bytes {
    Http2 {
        send: SendStream<bytes::Bytes>,
        recv: RecvStream,
    },
    Thin(ThinStream),
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

    /// The TCP connection of its tunnel.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Resets the stream.
    pub fn reset(self) {
        let reason = self.end.reset_reason();
        if let Bytes::Http2 { mut send, .. } = self.bytes {
            send.send_reset(reason);
        }
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
