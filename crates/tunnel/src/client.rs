//! How this node opens a tunnel and asks for connections in it.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::StatusCode;
use model::Identity;
use tls::{TlsFailure, WorkloadCert};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use crate::keepalive::Keepalive;
use crate::life::{Certificates, Life, Side};
use crate::line::{Line, LineOwner, Patience};
use crate::proxy_status::ProxyStatus;
use crate::secure::{self, ClientIo, Failure, Flush, Peer, Secured};
use crate::settings::Settings;
use crate::stream::{self, StreamEnd, TunnelStream};
use crate::thin::{self, Gone, Handle};

mod error;
mod request;

pub use error::{Cause, ConnectError, Lost, OpenError};
pub use request::ConnectRequest;
pub(crate) use request::{BAGGAGE, TRACEPARENT, header_text};

/// A tunnel to one peer. Clones share it; it closes when the last clone and the last stream are
/// gone.
#[derive(Clone)]
pub struct Tunnel {
    sender: Sender,
    shared: Arc<Shared>,
}

/// Who takes requests.
#[derive(Clone, Debug)]
enum Sender {
    Http2(SendRequest<Bytes>),
    Thin(Handle),
}

/// The permission to open one more stream on a tunnel; dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    sender: Sender,
    slot: Slot,
}

/// What moves the tunnel's bytes: spawn it, on the worker that uses the tunnel. It ends with the
/// tunnel; dropping it kills the tunnel and resets every stream in it.
#[must_use = "nothing moves until this is spawned"]
pub struct Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// In front of the socket that it speaks of.
    _line: LineOwner,
    wire: Wire<IO>,
    shared: Arc<Shared>,
}

enum Wire<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    Http2 {
        connection: Box<Connection<IO, Bytes>>,
        keepalive: Keepalive,
        failure: Failure,
        flush: Option<Flush>,
    },
    Thin(thin::Driver),
}

/// Opens a tunnel over a TCP connection: handshakes as `cert`, makes sure that the peer is one of
/// `expected`, and starts HTTP/2. What moves the tunnel's bytes is spawned as a local task, which
/// ends with the tunnel.
///
/// # Errors
/// See [`ConnectError`].
///
/// # Panics
/// Outside of a [`tokio::task::LocalSet`], as `spawn_local` does.
pub async fn connect(
    tcp: TcpStream,
    cert: &WorkloadCert,
    expected: &[Identity],
    settings: Settings,
) -> Result<Tunnel, ConnectError> {
    let (tunnel, driver) = establish(tcp, cert, expected, settings).await?;
    spawn_local(driver);
    Ok(tunnel)
}

/// As [`connect`], and leaves spawning the driver to the caller.
///
/// # Errors
/// See [`ConnectError`].
pub async fn establish(
    tcp: TcpStream,
    cert: &WorkloadCert,
    expected: &[Identity],
    settings: Settings,
) -> Result<(Tunnel, Driver<ClientIo>), ConnectError> {
    let limit = settings.handshake_timeout;
    let line = LineOwner::of(&tcp);
    let handshakes = async {
        let (secured, peer) = secure::connect(tcp, cert, expected, &settings)
            .await
            .map_err(ConnectError::Secure)?;
        let Peer {
            identity,
            certificates,
        } = peer;
        let own = Arc::clone(line.line());
        let shared = Shared::new(Some(identity), Some(certificates), own, settings);
        match secured {
            Secured::Http2(io) => {
                let (failure, flush) = (io.failure(), io.defer());
                start(io, shared, line, failure, Some(flush)).await
            }
            Secured::Thin(link) => {
                let (handle, driver) = thin::Driver::client(link, &settings);
                Ok(pair(Sender::Thin(handle), line, Wire::Thin(driver), shared))
            }
        }
    };
    timeout(limit, handshakes)
        .await
        .map_err(|_elapsed| ConnectError::Timeout(limit))?
}

/// Starts HTTP/2 on an established TLS connection whose peer has been verified to be `peer`.
///
/// Nothing is awaited from the peer: a request may follow at once.
///
/// # Errors
/// Fails when the preface cannot be written.
pub async fn handshake<IO>(
    io: IO,
    peer: Option<Identity>,
    settings: Settings,
) -> Result<(Tunnel, Driver<IO>), ConnectError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let line = LineOwner::of_nothing();
    let shared = Shared::new(peer, None, Arc::clone(line.line()), settings);
    start(io, shared, line, Failure::default(), None).await
}

async fn start<IO>(
    io: IO,
    shared: Arc<Shared>,
    line: LineOwner,
    failure: Failure,
    flush: Option<Flush>,
) -> Result<(Tunnel, Driver<IO>), ConnectError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let settings = &shared.settings;
    let (sender, mut connection) = settings
        .client_builder()
        .handshake(io)
        .await
        .map_err(ConnectError::H2)?;
    let wire = Wire::Http2 {
        keepalive: Keepalive::new(connection.ping_pong(), settings),
        connection: Box::new(connection),
        failure,
        flush,
    };
    Ok(pair(Sender::Http2(sender), line, wire, shared))
}

fn pair<IO>(
    sender: Sender,
    line: LineOwner,
    wire: Wire<IO>,
    shared: Arc<Shared>,
) -> (Tunnel, Driver<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let driver = Driver {
        _line: line,
        wire,
        shared: Arc::clone(&shared),
    };
    (Tunnel { sender, shared }, driver)
}

impl Tunnel {
    /// Opens a connection in the tunnel and waits until the peer has connected it.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::is_unprocessed`] says whether another tunnel may be tried.
    pub async fn open(&self, request: &ConnectRequest) -> Result<TunnelStream, OpenError> {
        self.reserve()?.open(request).await
    }

    /// Takes the right to open one more stream.
    ///
    /// # Errors
    /// The tunnel is full, or it takes no new streams: see [`OpenError`].
    pub fn reserve(&self) -> Result<Reservation, OpenError> {
        if let Some(error) = self.closed() {
            return Err(error);
        }
        if self.open_streams() >= self.max_streams() {
            return Err(OpenError::Full);
        }
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Reservation {
            sender: self.sender.clone(),
            slot: Slot {
                shared: Arc::clone(&self.shared),
                established: false,
            },
        })
    }

    /// Whether it is framed in our own way, and not HBONE.
    pub fn is_thin(&self) -> bool {
        matches!(self.sender, Sender::Thin(_))
    }

    /// Who the peer proved to be.
    pub fn peer(&self) -> Option<&Identity> {
        self.shared.peer.as_ref()
    }

    /// How many streams are open or being opened.
    pub fn open_streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// How many streams may be open: our limit or the peer's, whichever is less.
    pub fn max_streams(&self) -> usize {
        let ours = self.shared.settings.max_streams_per_tunnel;
        match &self.sender {
            Sender::Http2(sender) => sender.current_max_send_streams().min(ours),
            Sender::Thin(handle) => handle.most().min(ours),
        }
    }

    /// Whether the tunnel takes no new streams: it is lost or old, a certificate has ended, or the
    /// peer sent GOAWAY. Streams that are open may still live.
    pub fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    fn closed(&self) -> Option<OpenError> {
        if self.shared.life.is_over() {
            return Some(OpenError::Retired);
        }
        if self.shared.silent.load(Ordering::Relaxed) {
            return Some(OpenError::Unprocessed(Arc::new(Silent)));
        }
        match &self.sender {
            Sender::Http2(sender) => {
                let mut context = Context::from_waker(Waker::noop());
                match sender.clone().poll_ready(&mut context) {
                    Poll::Ready(Err(error)) => Some(self.shared.unsent(error)),
                    _ => None,
                }
            }
            Sender::Thin(handle) => handle.is_closed().then(|| closed(handle)),
        }
    }

    /// Why the tunnel ended, once it has.
    pub fn lost(&self) -> Option<&Lost> {
        self.shared.lost.get()
    }

    /// For how long no stream has been open.
    pub fn idle_for(&self) -> Option<Duration> {
        (self.open_streams() == 0).then(|| self.shared.idle_for())
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("peer", &self.shared.peer)
            .field("streams", &self.open_streams())
            .finish_non_exhaustive()
    }
}

impl Reservation {
    /// Opens the stream; see [`Tunnel::open`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(self, request: &ConnectRequest) -> Result<TunnelStream, OpenError> {
        match self.sender {
            Sender::Http2(sender) => Self::open_http2(sender, self.slot, request).await,
            Sender::Thin(handle) => Self::open_thin(handle, self.slot, request).await,
        }
    }

    async fn open_thin(
        handle: Handle,
        slot: Slot,
        request: &ConnectRequest,
    ) -> Result<TunnelStream, OpenError> {
        // What HTTP/2 could not say is not said here either.
        request.to_http()?;
        let request = thin::Open {
            authority: request.authority.clone(),
            forwarded: request.forwarded.clone(),
            baggage: request.baggage.clone(),
            traceparent: request.traceparent.clone(),
            window: 0,
        };
        let stream = handle.open(request).ok_or_else(|| closed(&handle))?;
        // It would keep the tunnel from closing while the answer is awaited.
        drop(handle);
        let limit = slot.shared.settings.open_timeout;
        let answer = timeout(limit, poll_fn(|cx| stream.poll_answer(cx)))
            .await
            .map_err(|_elapsed| OpenError::Timeout(limit))?
            .map_err(|gone| match gone {
                Gone::Reset(reason) => {
                    let cause = Arc::new(h2::Error::from(reason));
                    if reason == h2::Reason::REFUSED_STREAM {
                        OpenError::Unprocessed(cause)
                    } else {
                        OpenError::Reset(cause)
                    }
                }
                Gone::Lost(lost) => {
                    OpenError::Lost(slot.shared.lost.get().cloned().unwrap_or(lost))
                }
            })?;
        let status = u16::try_from(answer.status).unwrap_or_default();
        if status != StatusCode::OK.as_u16() {
            stream.finish();
            let reason = answer.proxy_status.as_deref().and_then(ProxyStatus::parse);
            let reason = reason.unwrap_or_default();
            return Err(OpenError::Refused {
                status: StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
                error: reason.error,
                reason: reason.details,
            });
        }
        Ok(TunnelStream {
            line: Arc::clone(&slot.shared.line),
            bytes: stream::Bytes::Thin(stream),
            end: StreamEnd::Client(slot.established()),
            baggage: answer.baggage.map(Arc::from),
        })
    }

    async fn open_http2(
        mut sender: SendRequest<Bytes>,
        slot: Slot,
        request: &ConnectRequest,
    ) -> Result<TunnelStream, OpenError> {
        let request = request.to_http()?;
        let shared = Arc::clone(&slot.shared);
        let (response, send) = sender
            .send_request(request, false)
            .map_err(|error| shared.unsent(error))?;
        // The sender would keep the tunnel from closing while the answer is awaited.
        drop(sender);
        let limit = shared.settings.open_timeout;
        let response = timeout(limit, response)
            .await
            .map_err(|_elapsed| OpenError::Timeout(limit))?
            .map_err(|error| shared.unanswered(error))?;
        let (head, recv) = response.into_parts();
        if head.status != StatusCode::OK {
            let status = ProxyStatus::from_headers(&head.headers).unwrap_or_default();
            return Err(OpenError::Refused {
                status: head.status,
                error: status.error,
                reason: status.details,
            });
        }
        Ok(TunnelStream {
            line: Arc::clone(&slot.shared.line),
            bytes: stream::Bytes::Http2 { send, recv },
            end: StreamEnd::Client(slot.established()),
            baggage: header_text(&head.headers, &BAGGAGE).map(Arc::from),
        })
    }
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        let patience = Patience {
            carries: self.shared.established.load(Ordering::Relaxed) > 0,
            line: &self.shared.line,
        };
        let (connection, keepalive, failure, flush) = match &mut self.wire {
            Wire::Http2 {
                connection,
                keepalive,
                failure,
                flush,
            } => (connection, keepalive, failure, flush),
            Wire::Thin(driver) => return driver.poll(&patience, cx),
        };
        if keepalive.poll_dead(&patience, cx).is_ready() {
            let limit = self.shared.settings.keepalive_timeout;
            return Poll::Ready(Lost::Unresponsive(limit));
        }
        let silent = keepalive.is_silent();
        self.shared.silent.store(silent, Ordering::Relaxed);
        let polled = Pin::new(connection).poll(cx);
        if let Some(flush) = flush {
            flush.poll(cx);
        }
        polled.map(|result| match result {
            Ok(()) => Lost::Closed,
            Err(error) => match failure.get() {
                Some(failure) if !matches!(failure, TlsFailure::Io(_)) => {
                    Lost::Tls(failure.clone())
                }
                _ => Lost::Failed(Arc::new(error)),
            },
        })
    }
}

impl<IO> Future for Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Lost;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Lost> {
        self.poll_end(cx).map(|lost| {
            tracing::debug!(peer = ?self.shared.peer, reason = %lost, "tunnel ended");
            self.shared.lost.get_or_init(|| lost).clone()
        })
    }
}

/// What the clones of a tunnel, its streams and its driver know in common.
#[derive(Debug)]
struct Shared {
    streams: AtomicUsize,
    /// Those of them that the peer has connected.
    established: AtomicUsize,
    /// The peer has not answered a ping in time.
    silent: AtomicBool,
    line: Arc<Line>,
    created: Instant,
    /// Milliseconds after `created` at which the last stream went.
    idle_since: AtomicU64,
    lost: OnceLock<Lost>,
    peer: Option<Identity>,
    life: Life,
    settings: Settings,
}

/// One counted stream.
#[derive(Debug)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    established: bool,
}

impl Slot {
    /// Counts the stream among those that the peer has connected.
    fn established(mut self) -> Self {
        self.established = true;
        self.shared.established.fetch_add(1, Ordering::Relaxed);
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let shared = &self.shared;
        let age = shared.created.elapsed().as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        shared.idle_since.store(age, Ordering::Relaxed);
        shared.streams.fetch_sub(1, Ordering::Relaxed);
        if self.established {
            shared.established.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Why a tunnel of ours opens no more streams.
fn closed(handle: &Handle) -> OpenError {
    match handle.lost() {
        Some(lost) => OpenError::Lost(lost),
        None => OpenError::Unprocessed(Arc::new(Away)),
    }
}

/// Whoever asks anew does so in another tunnel.
#[derive(Debug, thiserror::Error)]
#[error("the peer does not answer in this tunnel")]
struct Silent;

/// The peer said so.
#[derive(Debug, thiserror::Error)]
#[error("the peer takes no new connections in this tunnel")]
struct Away;

impl Shared {
    fn new(
        peer: Option<Identity>,
        certificates: Option<Certificates>,
        line: Arc<Line>,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
            established: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
            line,
            created: Instant::now(),
            idle_since: AtomicU64::new(0),
            lost: OnceLock::new(),
            peer,
            life: Life::new(Side::Client, settings.max_age, certificates),
            settings,
        })
    }

    fn idle_for(&self) -> Duration {
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.created.elapsed().saturating_sub(since)
    }

    fn lost(&self, error: h2::Error) -> Lost {
        let known = self.lost.get().cloned();
        known.unwrap_or_else(|| Lost::Failed(Arc::new(error)))
    }

    /// The request did not leave. Only a GOAWAY makes that the normal course of things; a tunnel
    /// that failed (a TLS alert, say) may fail again.
    fn unsent(&self, error: h2::Error) -> OpenError {
        if error.is_go_away() && error.is_remote() {
            OpenError::Unprocessed(Arc::new(error))
        } else {
            OpenError::Lost(self.lost(error))
        }
    }

    fn unanswered(&self, error: h2::Error) -> OpenError {
        // h2 gives a GOAWAY of the peer only to streams above its last stream id.
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && (error.is_go_away() || refused) {
            OpenError::Unprocessed(Arc::new(error))
        } else if error.is_reset() {
            OpenError::Reset(Arc::new(error))
        } else {
            OpenError::Lost(self.lost(error))
        }
    }
}
