//! How this node accepts a tunnel and answers the requests in it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use model::Identity;
use thiserror::Error;
use tls::WorkloadCert;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep_until, timeout};

use crate::authority::{Authority, AuthorityError};
use crate::client::{BAGGAGE, Cause, Lost, TRACEPARENT, header_text};
use crate::forwarded::Forwarded;
use crate::keepalive::Keepalive;
use crate::life::{Certificates, Life, Side};
use crate::line::{Line, LineOwner, Patience};
use crate::proxy_status::{self, ErrorType, ProxyStatus};
use crate::secure::{self, Flush, Peer, SecureError, Secured, ServerIo};
use crate::settings::Settings;
use crate::stream::{self, StreamEnd, TunnelStream};
use crate::thin::{self, Opened, ThinStream};

/// An accepted tunnel. Call [`ServerTunnel::next`] all the time: it also moves the bytes of the
/// streams. Dropping it resets them.
pub struct ServerTunnel<IO = ServerIo>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// In front of the socket that it speaks of.
    line: LineOwner,
    wire: Wire<IO>,
    /// One permit for each stream a task of ours may hold. A peer that opens and resets streams
    /// is not counted by HTTP/2, so it is counted here.
    permits: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    peer: Option<Identity>,
    life: Life,
    /// When the peer is asked to make another tunnel; nothing, once it has been.
    retirement: Option<Pin<Box<Sleep>>>,
    settings: Settings,
    ended: bool,
}

enum Wire<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    Http2 {
        connection: Box<Connection<IO, Bytes>>,
        keepalive: Keepalive,
        flush: Option<Flush>,
    },
    Thin(thin::Driver),
}

/// One CONNECT request.
#[derive(Debug)]
pub struct Incoming {
    /// Where to.
    pub authority: Authority,
    /// For whom, as far as the peer says.
    pub forwarded: Option<Forwarded>,
    /// All headers of the request.
    pub headers: HeaderMap,
    reply: Reply,
    permit: OwnedSemaphorePermit,
    line: Arc<Line>,
}

/// How a request is answered.
#[derive(Debug)]
enum Reply {
    Http2 {
        recv: RecvStream,
        respond: SendResponse<Bytes>,
    },
    Thin(ThinStream),
}

/// There is nobody to answer.
#[derive(Debug, Error)]
#[error("the peer has gone or has reset the request")]
pub struct Gone;

/// Why a tunnel could not be accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The peer took too long.
    #[error("the peer did not complete the handshake within {0:?}")]
    Timeout(Duration),
    /// There is no TLS connection, or we refused its peer.
    #[error("no trusted connection from the peer")]
    Secure(#[source] SecureError),
    /// HTTP/2 did not start.
    #[error("the peer does not speak HTTP/2")]
    H2(#[source] h2::Error),
}

/// Why there is no next request, or not a good one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NextError {
    /// The request was not a CONNECT; it has been answered with 400. The tunnel goes on.
    #[error("{method} is not CONNECT")]
    NotConnect {
        /// The method.
        method: Method,
    },
    /// The request's target is malformed; it has been answered with 400. The tunnel goes on.
    #[error("{authority:?} is not a target")]
    Authority {
        /// What the peer sent.
        authority: String,
        /// What is wrong with it.
        #[source]
        source: AuthorityError,
    },
    /// A certificate of the tunnel has ended, and the peer asks for more all the same. The request has
    /// been refused as one that nobody has looked at. The tunnel goes on, for the streams that are open.
    #[error("a certificate of the tunnel has ended; a new tunnel is needed")]
    Expired,
    /// The peer answered no ping for this long. The tunnel is over.
    #[error("the peer did not answer a ping within {0:?}")]
    Unresponsive(Duration),
    /// The connection failed. The tunnel is over.
    #[error("the tunnel's connection failed")]
    Failed(#[source] Cause),
}

/// Accepts a tunnel on a TCP connection: handshakes as `cert`, which makes sure that the peer is of
/// our trust domain, and starts HTTP/2.
///
/// # Errors
/// See [`AcceptError`]. A peer that we refuse gets up to a second to read the alert; the time-out of
/// the handshake covers that.
pub async fn accept(
    tcp: TcpStream,
    cert: &WorkloadCert,
    settings: Settings,
) -> Result<ServerTunnel, AcceptError> {
    let line = LineOwner::of(&tcp);
    let handshakes = async {
        let (secured, peer) = secure::accept(tcp, cert, &settings)
            .await
            .map_err(AcceptError::Secure)?;
        let wire = match secured {
            Secured::Http2(io) => {
                let flush = io.defer();
                start(io, settings, Some(flush)).await?
            }
            Secured::Thin(link) => Wire::Thin(thin::Driver::server(link, &settings)),
        };
        let Peer {
            identity,
            certificates,
        } = peer;
        let (peer, certificates) = (Some(identity), Some(certificates));
        Ok(ServerTunnel::new(line, wire, peer, certificates, settings))
    };
    let limit = settings.handshake_timeout;
    timeout(limit, handshakes)
        .await
        .map_err(|_elapsed| AcceptError::Timeout(limit))?
}

/// Starts HTTP/2 on an established TLS connection whose peer has been verified to be `peer`.
///
/// # Errors
/// Fails when the peer sends no HTTP/2 preface in time.
pub async fn handshake<IO>(
    io: IO,
    peer: Option<Identity>,
    settings: Settings,
) -> Result<ServerTunnel<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let limit = settings.handshake_timeout;
    let wire = timeout(limit, start(io, settings, None))
        .await
        .map_err(|_elapsed| AcceptError::Timeout(limit))??;
    let line = LineOwner::of_nothing();
    Ok(ServerTunnel::new(line, wire, peer, None, settings))
}

async fn start<IO>(
    io: IO,
    settings: Settings,
    flush: Option<Flush>,
) -> Result<Wire<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = settings
        .server_builder()
        .handshake(io)
        .await
        .map_err(AcceptError::H2)?;
    Ok(Wire::Http2 {
        keepalive: Keepalive::new(connection.ping_pong(), &settings),
        connection: Box::new(connection),
        flush,
    })
}

impl<IO> ServerTunnel<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn new(
        line: LineOwner,
        wire: Wire<IO>,
        peer: Option<Identity>,
        certificates: Option<Certificates>,
        settings: Settings,
    ) -> Self {
        let life = Life::new(Side::Server, settings.max_age, certificates);
        let streams = usize::try_from(settings.max_concurrent_streams).unwrap_or(usize::MAX);
        Self {
            line,
            wire,
            permits: Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS))),
            permit: None,
            peer,
            retirement: Some(Box::pin(sleep_until(life.retires))),
            life,
            settings,
            ended: false,
        }
    }

    /// The next request; `None` when the tunnel is over. Answer it in a task of its own and call
    /// this again at once. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// See [`NextError`]: those that were answered concern one request, the others are followed by `None`.
    pub async fn next(&mut self) -> Option<Result<Incoming, NextError>> {
        if self.ended {
            return None;
        }
        if self.permit.is_none()
            && let Err(end) = self.wait_for_permit().await
        {
            self.ended = true;
            return end.map(Err);
        }
        match poll_fn(|cx| self.poll_request(cx)).await {
            Ok(unanswered) if self.life.has_ended() => {
                unanswered.refuse();
                // The timer may have slept with the machine.
                self.graceful_shutdown();
                Some(Err(NextError::Expired))
            }
            Ok(Unanswered::Http2(request, respond)) => self.admit(request, respond),
            Ok(Unanswered::Thin(opened)) => self.admit_thin(opened),
            Err(end) => {
                self.ended = true;
                end.map(Err)
            }
        }
    }

    /// Who the peer proved to be.
    pub fn peer(&self) -> Option<&Identity> {
        self.peer.as_ref()
    }

    /// How many requests of this tunnel are being served.
    pub fn open_streams(&self) -> usize {
        let limit = usize::try_from(self.settings.max_concurrent_streams).unwrap_or(usize::MAX);
        let waiting = usize::from(self.permit.is_some());
        limit.saturating_sub(self.permits.available_permits() + waiting)
    }

    /// Asks the peer to open no more streams (GOAWAY). Those that are open go on; afterwards
    /// [`ServerTunnel::next`] returns `None`. Keep calling it.
    pub fn graceful_shutdown(&mut self) {
        match &mut self.wire {
            Wire::Http2 { connection, .. } => connection.graceful_shutdown(),
            Wire::Thin(driver) => driver.go_away(),
        }
    }

    /// Asks the peer for another tunnel when this one is old.
    fn poll_retirement(&mut self, cx: &mut Context<'_>) {
        if let Some(timer) = &mut self.retirement
            && timer.as_mut().poll(cx).is_ready()
        {
            self.retirement = None;
            self.graceful_shutdown();
        }
    }

    /// Drives the tunnel, without taking requests, until a stream of it ends.
    async fn wait_for_permit(&mut self) -> Result<(), Option<NextError>> {
        let permits = Arc::clone(&self.permits);
        let mut acquire = std::pin::pin!(permits.acquire_owned());
        poll_fn(|cx| {
            if let Poll::Ready(permit) = acquire.as_mut().poll(cx) {
                // The semaphore is never closed; if it were, no request could be admitted.
                self.permit = permit.ok();
                return Poll::Ready(self.permit.as_ref().map(|_| ()).ok_or(None));
            }
            self.poll_retirement(cx);
            let patience = Patience {
                carries: self.open_streams() > 0,
                line: self.line.line(),
            };
            match &mut self.wire {
                Wire::Http2 {
                    connection,
                    keepalive,
                    flush,
                } => {
                    if keepalive.poll_dead(&patience, cx).is_ready() {
                        return Poll::Ready(Err(Some(self.unresponsive())));
                    }
                    let closed = connection.poll_closed(cx);
                    // HTTP/2 has said what it had to say.
                    if let Some(flush) = flush {
                        flush.poll(cx);
                    }
                    closed.map(|result| Err(result.err().map(failed)))
                }
                Wire::Thin(driver) => driver.poll(&patience, cx).map(|lost| Err(ended(lost))),
            }
        })
        .await
    }

    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Unanswered, Option<NextError>>> {
        self.poll_retirement(cx);
        let patience = Patience {
            carries: self.open_streams() > 0,
            line: self.line.line(),
        };
        let (connection, keepalive, flush) = match &mut self.wire {
            Wire::Http2 {
                connection,
                keepalive,
                flush,
            } => (connection, keepalive, flush),
            Wire::Thin(driver) => {
                let moved = driver.poll(&patience, cx);
                if let Some(opened) = driver.next_request() {
                    return Poll::Ready(Ok(Unanswered::Thin(opened)));
                }
                return moved.map(|lost| Err(ended(lost)));
            }
        };
        if keepalive.poll_dead(&patience, cx).is_ready() {
            return Poll::Ready(Err(Some(self.unresponsive())));
        }
        let next = connection.poll_accept(cx);
        // HTTP/2 has said what it had to say.
        if let Some(flush) = flush {
            flush.poll(cx);
        }
        next.map(|next| match next {
            Some(Ok((request, respond))) => Ok(Unanswered::Http2(request, respond)),
            Some(Err(error)) => Err(Some(failed(error))),
            None => Err(None),
        })
    }

    fn unresponsive(&self) -> NextError {
        NextError::Unresponsive(self.settings.keepalive_timeout)
    }

    fn admit(
        &mut self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Result<Incoming, NextError>> {
        let permit = self.permit.take()?;
        let (head, recv) = request.into_parts();
        // Extended CONNECT (RFC 8441) is another protocol under the same method.
        let is_connect =
            head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none();
        let text = head
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let error = if !is_connect {
            NextError::NotConnect {
                method: head.method,
            }
        } else {
            match text.parse() {
                Ok(authority) => {
                    return Some(Ok(Incoming {
                        authority,
                        forwarded: Forwarded::from_headers(&head.headers),
                        headers: head.headers,
                        reply: Reply::Http2 { recv, respond },
                        permit,
                        line: Arc::clone(self.line.line()),
                    }));
                }
                Err(source) => NextError::Authority {
                    authority: text.to_owned(),
                    source,
                },
            }
        };
        let status = ProxyStatus::new(ErrorType::HttpRequestError, describe(&error));
        refuse(&mut respond, StatusCode::BAD_REQUEST, &status);
        Some(Err(error))
    }

    fn admit_thin(&mut self, opened: Opened) -> Option<Result<Incoming, NextError>> {
        let permit = self.permit.take()?;
        let Opened { request, stream } = opened;
        match request.authority.parse() {
            Ok(authority) => {
                let headers = request.headers();
                Some(Ok(Incoming {
                    authority,
                    forwarded: Forwarded::from_headers(&headers),
                    headers,
                    reply: Reply::Thin(stream),
                    permit,
                    line: Arc::clone(self.line.line()),
                }))
            }
            Err(source) => {
                let error = NextError::Authority {
                    authority: request.authority,
                    source,
                };
                let status = ProxyStatus::new(ErrorType::HttpRequestError, describe(&error));
                stream.refuse(refusal(StatusCode::BAD_REQUEST, &status));
                Some(Err(error))
            }
        }
    }
}

impl Incoming {
    /// The peer's `baggage`: what it says about its workload, for telemetry only.
    pub fn baggage(&self) -> Option<&str> {
        header_text(&self.headers, &BAGGAGE)
    }

    /// The peer's `traceparent`.
    pub fn traceparent(&self) -> Option<&str> {
        header_text(&self.headers, &TRACEPARENT)
    }

    /// Waits until the peer gives the request up. Select it against the work for the request, so
    /// that a peer which resets its requests leaves nothing running.
    pub async fn cancelled(&mut self) {
        poll_fn(|cx| match &mut self.reply {
            Reply::Http2 { respond, .. } => respond.poll_reset(cx).map(drop),
            Reply::Thin(stream) => stream.poll_gone(cx).map(drop),
        })
        .await;
    }

    /// Answers 200: the connection stands. `baggage` describes our workload.
    ///
    /// # Errors
    /// Fails when the peer has gone or has reset the request.
    pub fn accept(self, baggage: Option<HeaderValue>) -> Result<TunnelStream, Gone> {
        let peer_baggage = self.baggage().map(Arc::from);
        let bytes = match self.reply {
            Reply::Http2 { recv, mut respond } => {
                let mut response = Response::new(());
                if let Some(baggage) = baggage {
                    response.headers_mut().insert(BAGGAGE, baggage);
                }
                let sent = respond.send_response(response, false);
                let send = sent.map_err(|_gone| Gone)?;
                stream::Bytes::Http2 { send, recv }
            }
            Reply::Thin(stream) => {
                let answer = thin::Answer {
                    status: StatusCode::OK.as_u16().into(),
                    baggage: text(baggage.as_ref()),
                    ..thin::Answer::default()
                };
                if !stream.answer(answer) {
                    return Err(Gone);
                }
                stream::Bytes::Thin(stream)
            }
        };
        Ok(TunnelStream {
            bytes,
            line: self.line,
            end: StreamEnd::Server(self.permit),
            baggage: peer_baggage,
        })
    }

    /// Answers with a refusal: 401 for policy, 503 for the application's side, 400 for the request.
    pub fn refuse(self, status: StatusCode, reason: &ProxyStatus) {
        match self.reply {
            Reply::Http2 { mut respond, .. } => refuse(&mut respond, status, reason),
            Reply::Thin(stream) => stream.refuse(refusal(status, reason)),
        }
    }
}

/// A request that nobody has looked at.
enum Unanswered {
    Http2(Request<RecvStream>, SendResponse<Bytes>),
    Thin(Opened),
}

impl Unanswered {
    /// Says that it may be asked for elsewhere (RFC 9113 section 8.7).
    fn refuse(self) {
        match self {
            Self::Http2(_request, mut respond) => respond.send_reset(Reason::REFUSED_STREAM),
            Self::Thin(opened) => opened.stream.reset(Reason::REFUSED_STREAM),
        }
    }
}

fn failed(error: h2::Error) -> NextError {
    NextError::Failed(Arc::new(error))
}

/// How a tunnel of ours ended; `None` if that was in order.
fn ended(lost: Lost) -> Option<NextError> {
    match lost {
        Lost::Closed => None,
        Lost::Unresponsive(limit) => Some(NextError::Unresponsive(limit)),
        Lost::Tls(failure) => Some(NextError::Failed(Arc::new(failure))),
        Lost::Failed(cause) => Some(NextError::Failed(cause)),
    }
}

fn refusal(status: StatusCode, reason: &ProxyStatus) -> thin::Answer {
    thin::Answer {
        status: status.as_u16().into(),
        proxy_status: text(reason.to_value().as_ref()),
        ..thin::Answer::default()
    }
}

fn text(value: Option<&HeaderValue>) -> Option<String> {
    Some(value?.to_str().ok()?.to_owned())
}

fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode, reason: &ProxyStatus) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(value) = reason.to_value() {
        response.headers_mut().insert(proxy_status::NAME, value);
    }
    // A peer that has gone needs no answer.
    let _gone = respond.send_response(response, true).is_err();
}

/// An error and its causes in one sentence.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
