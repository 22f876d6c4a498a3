//! A connection to the TLS port whose caller is not known yet. It has a place among a bounded number, which it loses to
//! others that come later, and a time to show a valid token in; after that it is a connection like any other.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use runtime::guests::{Crowded, Guest, Guests, Limits};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::codegen::http::Extensions;
use tonic::transport::server::Connected;
use tracing::info;

use crate::metrics::{Metrics, ReasonLabel};

/// Takes connections in.
#[derive(Clone, Debug)]
pub(super) struct Reception {
    guests: Guests,
    metrics: Metrics,
}

/// Who is at the other end: every request of the connection has it among its extensions.
#[derive(Clone, Debug)]
pub(super) struct Visitor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: SocketAddr,
    guest: Guest,
    /// The caller is known, or the connection is over: its time is not counted any more.
    settled: CancellationToken,
}

/// The connection, once its handshake is done.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    visitor: Visitor,
    /// Nothing to wait for once the caller is known.
    leave: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Reception {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            guests: Guests::new(LIMITS),
            metrics,
        }
    }

    /// Takes a connection in, and ends another one where there is no room.
    pub(super) fn admit(&self, peer: SocketAddr) -> Visitor {
        let (guest, crowded) = self.guests.admit(peer.ip());
        if let Some(crowded) = crowded {
            self.count(match crowded {
                Crowded::Source => "source_crowded",
                Crowded::Total => "crowded",
            });
        }
        Visitor(Arc::new(Inner {
            peer,
            guest,
            settled: CancellationToken::new(),
        }))
    }

    /// Ends the connection of a visitor that does not say in time who it is.
    pub(super) async fn watch(&self, visitor: Visitor) {
        let (leave, settled, peer) = (
            visitor.0.guest.leave(),
            visitor.0.settled.clone(),
            visitor.0.peer,
        );
        // The connection alone keeps the visitor.
        drop(visitor);
        tokio::select! {
            () = settled.cancelled() => {}
            () = leave.cancelled() => {}
            () = tokio::time::sleep(KNOWN_WITHIN) => {
                info!(%peer, "ended a connection: no valid token was shown in time");
                self.count("silent");
                leave.cancel();
            }
        }
    }

    /// Counts a connection that is over before its caller was known.
    pub(super) fn count(&self, reason: &'static str) {
        let label = ReasonLabel { reason };
        self.metrics.visitors_dropped.get_or_create(&label).inc();
    }
}

impl Visitor {
    /// The visitor that sent a request.
    pub(super) fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Its address, for logs.
    pub(super) fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// It has shown a valid token.
    pub(super) fn is_known(&self) {
        self.0.guest.stay();
        self.0.settled.cancel();
    }

    /// Returns when others need its place, or its time is over.
    pub(super) async fn told_to_leave(&self) {
        self.0.guest.told_to_leave().await;
    }

    /// The connection of this visitor.
    pub(super) fn connection(self, stream: TlsStream<TcpStream>) -> Connection {
        let leave = self.0.guest.leave().cancelled_owned();
        Connection {
            stream,
            visitor: self,
            leave: Some(Box::pin(leave)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.settled.cancel();
    }
}

impl Connected for Connection {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl Connection {
    fn has_to_leave(&mut self, context: &mut Context<'_>) -> bool {
        if self.visitor.0.settled.is_cancelled() {
            self.leave = None;
        }
        self.leave
            .as_mut()
            .is_some_and(|leave| leave.as_mut().poll(context).is_ready())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_to_leave(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Far more than the agents that connect at the same moment; they are known within milliseconds.
const LIMITS: Limits = Limits {
    total: 1024,
    per_source: 128,
};
/// From the connection to the first valid token.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);
