//! How bytes get from one side of a connection to the other, and how its end is passed on.
//!
//! Each direction ends by itself: a FIN on one side becomes END_STREAM or FIN on the other, and the
//! other direction goes on. Everything that is not such an end is a reset on both sides, so that
//! neither application can take a cut transfer for a complete one. Also dropping the future of a
//! copy resets both sides.
//!
//! Memory is bounded by the reader: bytes are read from a socket only when the other side has room
//! for them, and a tunnel's window opens only after the bytes are written. A connection on which
//! nothing moves holds no buffer at all.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::future::LocalBoxFuture;
use h2::{Reason, RecvStream, SendStream};
use model::Ending;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::line::Lined;
use crate::stream::{Bytes, StreamEnd, TunnelStream};
use crate::thin;

pub(crate) mod chunks;
mod inward;
mod outward;
mod relay;
mod size;
pub(crate) mod socket;

use inward::Inward;
use outward::Outward;
use relay::Relay;
use socket::Closing;

pub use socket::reset;

/// The bytes of a connection so far. Other threads may read them while it lives.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Which of the two sides of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The socket given first.
    First,
    /// The socket or tunnel given second.
    Second,
}

/// Why a copy is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Abort {
    /// Policy no longer allows the connection.
    Policy,
    /// The agent stops and the connection outlived the drain deadline.
    Drain,
    /// A limit asks for it.
    Limit,
    /// The far side has said nothing for as long as the application waits.
    Silence,
}

/// How a connection ended. Only [`End::Clean`] let both sides finish.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Both sides said that they are done.
    #[error("both sides finished")]
    Clean,
    /// A TCP connection was reset or failed.
    #[error("the {side:?} TCP connection failed: {kind}")]
    Tcp {
        /// Which one.
        side: Side,
        /// How.
        kind: io::ErrorKind,
    },
    /// The peer reset the stream.
    #[error("the peer reset the stream: {0}")]
    StreamReset(Reason),
    /// The tunnel broke: its peer died, or its connection failed.
    #[error("the tunnel was lost: {0}")]
    TunnelLost(String),
    /// The caller ended it.
    #[error("the connection was ended: {0:?}")]
    Aborted(Abort),
}

/// How a connection ended and how much it moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    /// How it ended.
    pub end: End,
    /// Bytes taken from the first side and handed to the second.
    pub sent: u64,
    /// Bytes taken from the second side and written to the first.
    pub received: u64,
}

/// Moves bytes between an application's connection and a stream of a tunnel until both directions
/// have ended, one fails, or `abort` says so.
///
/// What it needs is on the heap, and only what the stream's framing needs: a task that waits for it
/// is small.
pub fn bidirectional<'a>(
    tcp: TcpStream,
    stream: TunnelStream,
    counters: &'a Arc<Counters>,
    abort: impl Future<Output = Abort> + 'a,
) -> LocalBoxFuture<'a, CopyEnd> {
    let TunnelStream { bytes, end, .. } = stream;
    match bytes {
        Bytes::Thin(stream) => Box::pin(thin::bidirectional(tcp, stream, end, counters, abort)),
        Bytes::Http2 { send, recv } => Box::pin(http2(tcp, send, recv, end, counters, abort)),
    }
}

async fn http2(
    tcp: TcpStream,
    mut send: SendStream<bytes::Bytes>,
    recv: RecvStream,
    stream_end: StreamEnd,
    counters: &Counters,
    abort: impl Future<Output = Abort>,
) -> CopyEnd {
    let tcp = Closing::new(tcp);
    let mut inward = Inward::new(recv);
    let mut outward = Outward::new();
    let mut watch = pin!(tcp.ready(Interest::ERROR));
    let mut abort = pin!(abort);
    let end = poll_fn(|cx| {
        if let Poll::Ready(reason) = abort.as_mut().poll(cx) {
            return Poll::Ready(End::Aborted(reason));
        }
        let done = match inward.poll(&tcp, counters, cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            inward => inward.is_ready(),
        };
        match outward.poll(&tcp, &mut send, counters, cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            Poll::Ready(Ok(())) if done => return Poll::Ready(End::Clean),
            _ => {}
        }
        if let Poll::Ready(reset) = send.poll_reset(cx) {
            return Poll::Ready(End::from_reset(reset));
        }
        // A socket that is not being read shows its reset nowhere else.
        if !outward.is_reading()
            && let Poll::Ready(_) = watch.as_mut().poll(cx)
        {
            return Poll::Ready(socket::failure(&tcp, Side::First));
        }
        Poll::Pending
    })
    .await;
    let end = match end {
        End::Clean => {
            tcp.finish();
            End::Clean
        }
        End::Tcp { .. } => {
            // What the application sent before its reset would be on its way without a mesh.
            outward.flush(&tcp, &mut send, counters);
            for _ in 0..FLUSH_TURNS {
                tokio::task::yield_now().await;
            }
            send.send_reset(stream_end.reset_reason());
            end
        }
        End::Aborted(_) => {
            send.send_reset(stream_end.reset_reason());
            end
        }
        End::StreamReset(_) | End::TunnelLost(_) => {
            // The same the other way round: what came before the reset is delivered if the
            // application takes it at once, and may tell more precisely what happened.
            let last = poll_fn(|cx| Poll::Ready(inward.poll(&tcp, counters, cx))).await;
            match last {
                Poll::Ready(Err(precise)) => precise,
                _ => end,
            }
        }
    };
    CopyEnd {
        end,
        sent: outward.total(),
        received: inward.total(),
    }
}

/// Moves bytes between two TCP connections, with the same promises.
pub async fn tcp(
    first: TcpStream,
    second: Lined,
    counters: &Counters,
    abort: impl Future<Output = Abort>,
) -> CopyEnd {
    let first = Closing::new(first);
    let (second, line) = second.apart();
    let second = Closing::new(second);
    // Dropped before the socket, also where this future is: what is declared last goes first.
    let line = line;
    let mut there = Relay::new(Side::First);
    let mut back = Relay::new(Side::Second);
    let mut watch_first = pin!(first.ready(Interest::ERROR));
    let mut watch_second = pin!(second.ready(Interest::ERROR));
    let mut abort = pin!(abort);
    let end = poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(reason) = abort.as_mut().poll(cx) {
            return Poll::Ready(End::Aborted(reason));
        }
        let done = match there.poll(&first, &second, &counters.sent, cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            there => there.is_ready(),
        };
        match back.poll(&second, &first, &counters.received, cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            Poll::Ready(Ok(())) if done => return Poll::Ready(End::Clean),
            _ => {}
        }
        if !there.is_reading() && watch_first.as_mut().poll(cx).is_ready() {
            return Poll::Ready(socket::failure(&first, Side::First));
        }
        if !back.is_reading() && watch_second.as_mut().poll(cx).is_ready() {
            return Poll::Ready(socket::failure(&second, Side::Second));
        }
        Poll::Pending
    })
    .await;
    drop(line);
    match &end {
        End::Clean => {
            first.finish();
            second.finish();
        }
        End::Tcp { side, .. } => {
            // What was read before the reset is delivered if it is taken at once.
            let (relay, from, to) = match side {
                Side::First => (&mut there, &first, &second),
                Side::Second => (&mut back, &second, &first),
            };
            let counter = match side {
                Side::First => &counters.sent,
                Side::Second => &counters.received,
            };
            relay.flush(from, to, counter);
        }
        _ => {}
    }
    CopyEnd {
        end,
        sent: there.total(),
        received: back.total(),
    }
}

/// How often the tunnel's driver gets its turn before a stream is reset.
const FLUSH_TURNS: usize = 2;

/// Bytes a direction moves before other tasks of the worker get their turn.
pub(crate) const TURN: u64 = 1 << 20;

impl Counters {
    /// Bytes taken from the first side so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes written to the first side so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Abort {
    /// The word for metrics and logs.
    pub fn ending(self) -> Ending {
        match self {
            Self::Policy => Ending::Policy,
            Self::Drain => Ending::Drain,
            Self::Limit => Ending::Limit,
            Self::Silence => Ending::Silence,
        }
    }
}

impl End {
    /// The word for metrics and logs.
    pub fn ending(&self) -> Ending {
        match self {
            Self::Clean => Ending::Clean,
            Self::Tcp {
                side: Side::First, ..
            } => Ending::FirstReset,
            Self::Tcp {
                side: Side::Second, ..
            } => Ending::SecondReset,
            Self::StreamReset(_) => Ending::StreamReset,
            Self::TunnelLost(_) => Ending::TunnelLost,
            Self::Aborted(abort) => abort.ending(),
        }
    }

    fn from_h2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::StreamReset(reason),
            _ => Self::TunnelLost(error.to_string()),
        }
    }

    fn from_reset(reset: Result<Reason, h2::Error>) -> Self {
        match reset {
            Ok(reason) => Self::StreamReset(reason),
            Err(error) => Self::from_h2(&error),
        }
    }
}
