//! What moves a tunnel's frames.
//!
//! One task polls the [`Driver`]; each connection has a task of its own with a [`ThinStream`]. All are on one
//! thread and meet in the [`Mux`], so nothing is locked. Who wakes whom:
//!
//! | what happens | who is woken |
//! |---|---|
//! | a connection says bytes, a fin, credit or a reset | the driver, once for all that is said until it looks |
//! | a connection finds the room for bytes used up | nobody; it waits in line (`blocked`) |
//! | what was said has become records | those in line, the first of which may fill the room again |
//! | the socket can be read or written again | the driver (tokio) |
//! | data, credit, a fin or a reset comes for a stream | that connection's task |
//! | an answer comes | whoever opens that stream |
//! | a stream ends | the next in line, and the driver if it was the last |
//! | the tunnel is lost | every stream's task |
//!
//! A look sends, reads up to `READS` times, then sends what that has caused. What is left is another look, after
//! the worker's other tasks. The states of a tunnel: open; *away*, when no new streams are opened (the peer said so, or
//! we did); *silent*, when a ping is overdue; *closing*, when nothing is open and we have said `close_notify`; lost.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use prost::Message;
use runtime::busy::{self, Way};
use tls::{TlsFailure, classify_io};
use tokio::time::{Instant, Sleep, sleep};

use super::frame::{HEAD, Kind, Parser, Part, Violation, number};
use super::message::{Answer, Open};
use super::mux::{Handle, Mux};
use super::stream::{Gone, Stream, ThinStream};
use crate::client::Lost;
use crate::line::Patience;
use crate::secure::Link;
use crate::settings::Settings;

/// Reads before other tasks of the worker get their turn.
const READS: usize = 16;

/// Pieces of one stream's bytes that are written with one system call.
const SLICES: usize = 16;

/// What the pings carry that follow Away. Their answers tell that it was heard.
const AFTER_AWAY: &[u8] = b"away";

/// A request that was opened in a tunnel of a peer.
pub(crate) struct Opened {
    pub(crate) request: Open,
    pub(crate) stream: ThinStream,
}

/// One side of a tunnel. Poll it all the time; it is ready when the tunnel is over. Dropping it
/// ends the tunnel and resets every stream in it.
pub(crate) struct Driver {
    link: Link,
    mux: Rc<Mux>,
    parser: Parser,
    side: Side,
    keepalive: Keepalive,
    /// We have said that nothing follows.
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

struct Keepalive {
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    /// The peer's kernel has acknowledged nothing either.
    outage: bool,
    interval: Duration,
    timeout: Duration,
}

impl Driver {
    /// The client's side, and the right to open streams.
    pub(crate) fn client(link: Link, settings: &Settings) -> (Handle, Self) {
        let driver = Self::new(link, settings, Side::Client);
        (Handle::new(&driver.mux), driver)
    }

    /// The server's side.
    pub(crate) fn server(link: Link, settings: &Settings) -> Self {
        let driver = Self::new(link, settings, Side::Server);
        driver.mux.most.set(settings.max_concurrent_streams);
        driver
    }

    fn new(link: Link, settings: &Settings, side: Side) -> Self {
        Self {
            link,
            mux: Mux::new(settings.stream_window),
            parser: Parser::default(),
            side,
            keepalive: Keepalive {
                timer: Box::pin(sleep(settings.keepalive_interval)),
                waiting: false,
                outage: false,
                interval: settings.keepalive_interval,
                timeout: settings.keepalive_timeout,
            },
            closing: false,
        }
    }

    /// The next request that nobody has looked at.
    pub(crate) fn next_request(&mut self) -> Option<Opened> {
        let (request, stream) = self.mux.requests.borrow_mut().pop_front()?;
        // RFC 9113 section 8.5: a connection that failed.
        let stream = ThinStream::new(Rc::clone(&self.mux), stream, Reason::CONNECT_ERROR);
        Some(Opened { request, stream })
    }

    /// Asks the client to open no more streams.
    pub(crate) fn go_away(&mut self) {
        if !self.mux.away.replace(true) {
            self.mux.say(Kind::Away, 0, &[]);
            self.ping();
        }
    }

    /// Asks whether the peer is there and, if we have said Away, whether it has heard that.
    fn ping(&self) {
        let payload = if self.mux.away.get() { AFTER_AWAY } else { &[] };
        self.mux.say(Kind::Ping, 0, payload);
    }

    /// Moves what can be moved. Ready when the tunnel is over.
    ///
    /// A peer that answers no ping ends it, unless there is [`Patience`].
    pub(crate) fn poll(&mut self, patience: &Patience<'_>, cx: &mut Context<'_>) -> Poll<Lost> {
        if let Some(lost) = self.mux.lost() {
            return Poll::Ready(lost);
        }
        self.mux.look(cx);
        let moved = self.poll_move(patience, cx);
        self.mux.looked();
        moved.map(|lost| {
            self.mux.end(&lost);
            lost
        })
    }

    fn poll_move(&mut self, patience: &Patience<'_>, cx: &mut Context<'_>) -> Poll<Lost> {
        if self.closing {
            return self.poll_closing(cx);
        }
        let sent = self.poll_send(cx);
        let mut reads = 0;
        while let Poll::Ready(received) = self.poll_receive(cx) {
            match received {
                Err(lost) => {
                    // What TLS did not like is told to the peer, if it can be without waiting.
                    let _told = self.link.poll_send(cx).is_ready();
                    return Poll::Ready(lost);
                }
                Ok(()) if self.link.is_closed() => return Poll::Ready(Lost::Closed),
                Ok(()) => {}
            }
            reads += 1;
            if reads == READS {
                cx.waker().wake_by_ref();
                break;
            }
        }
        // Had the peer told why, it would have been read.
        if let Poll::Ready(Err(error)) = sent {
            return Poll::Ready(lost(error));
        }
        if self.mux.pong.take() {
            self.mux.silent.set(false);
            self.keepalive.heard(cx);
        }
        // Only when all has been read: after a stall of ours the answer may be waiting.
        if reads < READS && self.poll_dead(patience, cx).is_ready() {
            return Poll::Ready(Lost::Unresponsive(self.keepalive.timeout));
        }
        let sent = match self.poll_send(cx) {
            Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
            sent => sent.is_ready(),
        };
        let is_over = match self.side {
            Side::Client => self.mux.is_unused(),
            Side::Server => self.mux.is_idle_for_ever(),
        };
        if sent && is_over {
            self.close(cx);
            return self.poll_closing(cx);
        }
        Poll::Pending
    }

    /// Sends what was said.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // What has become records comes first, and more waits until it has left.
            ready!(self.link.poll_send(cx))?;
            if !self.mux.has_said() {
                return Poll::Ready(Ok(()));
            }
            let mut said = self.mux.said();
            let encrypted = self.link.encrypt(&mut said);
            self.mux.encrypted(said);
            encrypted?;
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let Self {
            link,
            parser,
            mux,
            side,
            ..
        } = self;
        let mut broken = Ok(());
        let received = link.poll_receive(cx, &mut |pieces| {
            if broken.is_ok() {
                broken = take(pieces, parser, mux, *side);
            }
        });
        if let Err(violation) = broken {
            return Poll::Ready(Err(Lost::Failed(Arc::new(violation))));
        }
        received.map_err(lost)
    }

    /// Says that nothing follows: nobody needs the tunnel.
    fn close(&mut self, cx: &mut Context<'_>) {
        self.closing = true;
        self.mux.away.set(true);
        self.link.close();
        self.keepalive.set(self.keepalive.timeout, cx);
    }

    /// Ready when the peer has hung up, too, or takes too long. What it still says is of no use, but
    /// the kernel would answer it with a reset if nobody read it, and throw away what has not left.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        if self.keepalive.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Lost::Closed);
        }
        match self.link.poll_send(cx) {
            Poll::Ready(Ok(())) => self.link.finish(),
            Poll::Ready(Err(_gone)) => return Poll::Ready(Lost::Closed),
            Poll::Pending => {}
        }
        for _ in 0..READS {
            let received = ready!(self.link.poll_receive(cx, &mut |_unused| {}));
            if received.is_err() || self.link.is_closed() {
                return Poll::Ready(Lost::Closed);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when the peer did not answer a ping in time and there is no patience left.
    fn poll_dead(&mut self, patience: &Patience<'_>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.keepalive.timer.as_mut().poll(cx));
        if self.keepalive.waiting {
            self.mux.silent.set(true);
            let keepalive = &mut self.keepalive;
            let Some(more) = patience.extend(&mut keepalive.outage, keepalive.interval) else {
                return Poll::Ready(());
            };
            keepalive.set(more, cx);
            return Poll::Pending;
        }
        self.keepalive.waiting = true;
        self.ping();
        self.keepalive.set(self.keepalive.timeout, cx);
        Poll::Pending
    }
}

impl Keepalive {
    fn heard(&mut self, cx: &mut Context<'_>) {
        (self.waiting, self.outage) = (false, false);
        self.set(self.interval, cx);
    }

    fn set(&mut self, after: Duration, cx: &mut Context<'_>) {
        self.timer.as_mut().reset(Instant::now() + after);
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.mux.end(&Lost::Closed);
    }
}

/// A peer's refusal of our certificate comes after the handshake.
fn lost(error: io::Error) -> Lost {
    match classify_io(&error) {
        TlsFailure::Io(_) => Lost::Failed(Arc::new(error)),
        failure => Lost::Tls(failure),
    }
}

/// Takes the frames in what was received.
pub(super) fn take(
    pieces: &[&[u8]],
    parser: &mut Parser,
    mux: &Mux,
    side: Side,
) -> Result<(), Violation> {
    let mut batch = Batch::default();
    for piece in pieces {
        let mut rest = *piece;
        while let Some(part) = parser.next(&mut rest)? {
            match part {
                Part::Data { stream, bytes } => {
                    if batch.stream != stream || batch.count == SLICES {
                        batch.give(mux)?;
                        batch.stream = stream;
                    }
                    batch.push(bytes);
                }
                Part::Frame {
                    kind,
                    stream,
                    payload,
                } => {
                    batch.give(mux)?;
                    frame(kind, stream, payload, mux, side)?;
                    if mux.is_flooded() {
                        return Err(Violation("more is asked than the answers are read"));
                    }
                }
            }
        }
    }
    batch.give(mux)
}

/// Bytes of one stream that came one after the other.
struct Batch<'a> {
    stream: u32,
    slices: [IoSlice<'a>; SLICES],
    count: usize,
    total: usize,
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self {
            stream: 0,
            slices: [IoSlice::new(&[]); SLICES],
            count: 0,
            total: 0,
        }
    }
}

impl<'a> Batch<'a> {
    fn push(&mut self, bytes: &'a [u8]) {
        if let Some(slice) = self.slices.get_mut(self.count)
            && !bytes.is_empty()
        {
            *slice = IoSlice::new(bytes);
            self.count += 1;
            self.total += bytes.len();
        }
    }

    fn give(&mut self, mux: &Mux) -> Result<(), Violation> {
        let count = std::mem::take(&mut self.count);
        let total = std::mem::take(&mut self.total);
        // A stream that is not there has been reset, and its bytes were on their way.
        if total > 0
            && let Some(stream) = mux.stream(self.stream)
        {
            busy::moved(Way::Inward, total);
            let slices = self.slices.get(..count).unwrap_or_default();
            let due = stream.state().data(slices, total)?;
            if let Some(bytes) = due {
                mux.say_credit(self.stream, bytes);
            }
        }
        Ok(())
    }
}

fn frame(kind: Kind, id: u32, payload: &[u8], mux: &Mux, side: Side) -> Result<(), Violation> {
    let stream = mux.stream(id);
    match (kind, side) {
        (Kind::Open, Side::Server) => {
            let request =
                Open::decode(payload).map_err(|_garbled| Violation("a request is garbled"))?;
            return open(id, request, payload.len(), mux);
        }
        (Kind::Answer, Side::Client) => {
            let answer =
                Answer::decode(payload).map_err(|_garbled| Violation("an answer is garbled"))?;
            if answer.streams > 0 {
                mux.most.set(answer.streams);
            }
            if let Some(stream) = stream {
                busy::moved(Way::Inward, HEAD + payload.len());
                let mut state = stream.state();
                state.credit = answer.window;
                state.answer = Some(answer);
                state.wake();
            }
        }
        (Kind::Open | Kind::Answer, _) => {
            return Err(Violation("requests and answers go the other way"));
        }
        (Kind::Fin, _) => {
            if let Some(stream) = stream {
                stream.state().fin();
            }
        }
        (Kind::Reset, _) => {
            let reason = Reason::from(number(payload)?);
            if let Some(stream) = stream {
                // Its place is free, although its task has not heard of it yet.
                mux.forget(id);
                if side == Side::Client && reason == Reason::REFUSED_STREAM {
                    mux.refused();
                }
                stream.state().end(Gone::Reset(reason));
            }
        }
        (Kind::Credit, _) => {
            let more = number(payload)?;
            if let Some(stream) = stream {
                let mut state = stream.state();
                let credit = state.credit.checked_add(more);
                state.credit = credit.ok_or(Violation("there is too much credit"))?;
                state.wake();
            }
        }
        (Kind::Away, Side::Client) => mux.away.set(true),
        (Kind::Away, Side::Server) => {}
        (Kind::Ping, _) => mux.say(Kind::Pong, 0, payload),
        (Kind::Pong, _) => {
            mux.pong.set(true);
            if side == Side::Server && payload == AFTER_AWAY {
                mux.away_heard.set(mux.away.get());
            }
        }
        // It is no such part.
        (Kind::Data, _) => {}
    }
    Ok(())
}

fn open(id: u32, request: Open, length: usize, mux: &Mux) -> Result<(), Violation> {
    if id <= mux.last.get() {
        return Err(Violation("a stream's number was used before"));
    }
    mux.last.set(id);
    let most = usize::try_from(mux.most.get()).unwrap_or(usize::MAX);
    // A peer that resets what it opens has no streams, and keeps us busy.
    let open = mux.streams.borrow().len().max(mux.requests.borrow().len());
    // One that was asked to open no more is served until it has heard it.
    if open >= most || mux.away_heard.get() {
        mux.say_reset(id, Reason::REFUSED_STREAM);
        return Ok(());
    }
    busy::moved(Way::Inward, HEAD + length);
    // No byte may come before the answer.
    let stream = Stream::new(id, 0, request.window);
    mux.streams.borrow_mut().insert(id, Rc::clone(&stream));
    mux.requests.borrow_mut().push_back((request, stream));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tls::{SystemClock, TlsOptions, WorkloadCert, ca::Authority};
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::super::frame::head;
    use super::*;
    use crate::line::LineOwner;
    use crate::secure::{Secured, connect};

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn cert() -> WorkloadCert {
        let authority = Authority::generate("test", Arc::new(SystemClock)).unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let svid = authority.issue(&identity, hour).unwrap();
        WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
    }

    /// Whether a worker stays awake for a frame.
    async fn moves(kind: Kind, payload: &[u8]) -> bool {
        let (cert, (near, far)) = (cert(), tcp_pair().await);
        let expected = [cert.identity().clone()];
        let settings = Settings::default();
        let (near, far) = tokio::join!(
            connect(near, &cert, &expected, &settings),
            TlsAcceptor::from(cert.server()).accept(far),
        );
        let (Ok((Secured::Thin(link), _)), mut far) = (near, far.unwrap()) else {
            panic!("no tunnel of our own framing");
        };
        let (handle, mut driver) = Driver::client(link, &settings);
        let _stream = handle.open(Open::default()).unwrap();
        far.write_all(&head(kind, payload.len(), 1)).await.unwrap();
        far.write_all(payload).await.unwrap();
        far.flush().await.unwrap();
        let _earlier = busy::has_moved();
        let owner = LineOwner::of_nothing();
        let patience = Patience {
            carries: true,
            line: owner.line(),
        };
        let moving = std::future::poll_fn(|cx| driver.poll(&patience, cx));
        let moved = tokio::time::timeout(Duration::from_millis(50), moving).await;
        assert!(moved.is_err(), "{moved:?}");
        busy::has_moved()
    }

    #[tokio::test]
    async fn a_worker_stays_awake_for_applications_only() {
        let answer = Answer::default().encode_to_vec();
        assert!(moves(Kind::Answer, &answer).await);
        assert!(moves(Kind::Data, b"x").await);
        for kind in [Kind::Data, Kind::Ping, Kind::Pong, Kind::Away] {
            assert!(!moves(kind, &[]).await, "{kind:?}");
        }
        assert!(!moves(Kind::Credit, &1_u32.to_be_bytes()).await);
    }
}
