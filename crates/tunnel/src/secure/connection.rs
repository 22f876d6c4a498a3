//! A TLS connection as HTTP/2 reads and writes it.
//!
//! HTTP/2 asks for a flush after every frame. A connection that carries many streams would make a
//! record and a system call of each, so [`Connection::defer`] lets whoever polls HTTP/2 flush once
//! when it has said everything: see [`Flush`].

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::layer::{Layer, Own};
use super::link::Link;
use super::records::{RECORD, Records, Session};
use crate::copy::socket;
use crate::settings::RecordLayer;

/// Ciphertext read with one system call.
const READ: usize = 64 << 10;

/// Ciphertext that is written without waiting for a flush.
const EAGER: usize = 64 << 10;

/// Ciphertext that may wait for the socket. Beyond that HTTP/2 waits.
const HIGH: usize = 256 << 10;

thread_local! {
    /// What one connection of this thread reads into. Whole records are taken from it at once, so
    /// that no connection holds a buffer while nothing comes.
    pub(super) static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Inner<S> {
    tcp: TcpStream,
    records: Records<S>,
    /// The beginning of a record whose rest has not come yet.
    partial: Vec<u8>,
    /// Decrypted, and not asked for yet.
    plain: Vec<u8>,
    taken: usize,
    /// Said by HTTP/2, and no record yet.
    gathered: Vec<u8>,
    deferred: bool,
    /// What ends the connection after `plain` has been given away.
    failed: Option<io::Error>,
}

/// A TLS connection that HTTP/2 owns; [`Flush`] shares it.
pub(super) struct Connection<S>(Arc<Mutex<Inner<S>>>);

/// Writes what HTTP/2 has said since the last time.
#[derive(Clone)]
pub(crate) struct Flush(Arc<Mutex<dyn PollFlush + Send>>);

trait PollFlush {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Flush {
    /// Call after each poll of HTTP/2, with the same context. A failure is found by the next read,
    /// which may tell more precisely what happened.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Poll::Ready(Err(error)) = connection.poll_flush(cx) {
            tracing::trace!(%error, "a tunnel cannot be written to");
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: Session> Connection<S> {
    /// Handshakes.
    ///
    /// # Errors
    /// When the connection fails, or with what rustls found, after the peer was sent the alert.
    /// The TCP connection is given back where it is of use.
    pub(super) async fn handshake(
        tcp: TcpStream,
        session: S,
    ) -> Result<Self, (io::Error, TcpStream)> {
        let mut inner = Inner {
            tcp,
            records: Records::new(session),
            partial: Vec::new(),
            plain: Vec::new(),
            taken: 0,
            gathered: Vec::new(),
            deferred: false,
            failed: None,
        };
        match inner.handshake().await {
            Ok(()) => Ok(Self(Arc::new(Mutex::new(inner)))),
            Err(error) => Err((error, inner.tcp)),
        }
    }

    /// From now on a flush is left to the handle that this returns.
    pub(super) fn defer(&self) -> Flush {
        self.lock().deferred = true;
        let shared: Arc<Mutex<Inner<S>>> = Arc::clone(&self.0);
        Flush(shared)
    }

    /// For somebody else than HTTP/2. With records of our own, a peer that changes its keys or begins a handshake
    /// message in the same flight as its Finished, which nobody does, is not understood and refused. `None` if a
    /// [`Flush`] shares the connection, or the session does not give its keys away.
    pub(super) fn into_link(self, layer: RecordLayer) -> Option<Link> {
        let inner = Arc::into_inner(self.0)?.into_inner();
        let inner = inner.unwrap_or_else(PoisonError::into_inner);
        let layer: Box<dyn Layer> = match layer {
            RecordLayer::Rustls => Box::new(inner.records),
            RecordLayer::Own => Box::new(Own::new(inner.records).ok()?),
        };
        Some(Link::new(inner.tcp, layer, inner.partial, inner.plain))
    }

    /// Looks at the session.
    pub(super) fn with<T>(&self, look: impl FnOnce(&rustls::CommonState) -> T) -> T {
        look(self.lock().records.session.common())
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Session> Inner<S> {
    async fn handshake(&mut self) -> io::Result<()> {
        loop {
            let taken = self.take_partial();
            // A refusal of ours is told to the peer, and matters more than whether it hears it.
            let sent = self.send_all().await;
            taken?;
            sent?;
            if !self.records.session.common().is_handshaking() {
                return Ok(());
            }
            if self.records.closed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.tcp.readable().await?;
            let mut chunk = [0; 4 << 10];
            match self.tcp.try_read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self
                    .partial
                    .extend_from_slice(chunk.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take_partial(&mut self) -> io::Result<()> {
        let plain = &mut self.plain;
        let used = self.records.take(&mut self.partial, &mut |bytes| {
            plain.extend_from_slice(bytes)
        })?;
        self.partial.drain(..used);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    async fn send_all(&mut self) -> io::Result<()> {
        while !self.records.outgoing.write_to(&self.tcp)? {
            self.tcp.writable().await?;
        }
        Ok(())
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.give_plain(buffer) {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(error));
            }
            if self.records.closed {
                return Poll::Ready(Ok(()));
            }
            match SCRATCH.with_borrow_mut(|scratch| self.receive(scratch, buffer)) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_read_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn give_plain(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let waiting = self.plain.get(self.taken..).unwrap_or_default();
        if waiting.is_empty() {
            return false;
        }
        let given = waiting.len().min(buffer.remaining());
        buffer.put_slice(waiting.get(..given).unwrap_or_default());
        self.taken += given;
        if self.taken == self.plain.len() {
            self.plain = Vec::new();
            self.taken = 0;
        }
        true
    }

    /// Reads once. True if `buffer` got something.
    fn receive(&mut self, scratch: &mut Vec<u8>, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        let kept = self.partial.len();
        // What does not fit into `buffer` is copied once more: not much of it, but a whole record.
        let wanted = (buffer.remaining() + RECORD).min(READ);
        scratch.resize(scratch.len().max(kept + wanted), 0);
        let (front, back) = scratch.split_at_mut(kept);
        front.copy_from_slice(&self.partial);
        let mut room = back.get_mut(..wanted).unwrap_or_default();
        let read = socket::read(&self.tcp, &mut room, wanted)?;
        if read == 0 {
            // RFC 8446 section 6.1: without a close_notify it is a truncation.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let incoming = scratch.get_mut(..kept + read).unwrap_or_default();
        let before = buffer.filled().len();
        let plain = &mut self.plain;
        let taken = self.records.take(incoming, &mut |bytes| {
            let (now, later) = bytes.split_at(bytes.len().min(buffer.remaining()));
            buffer.put_slice(now);
            plain.extend_from_slice(later);
        });
        let used = match taken {
            Ok(used) => used,
            // What was good before it is delivered first.
            Err(error) if buffer.filled().len() > before => {
                self.failed = Some(error);
                kept + read
            }
            Err(error) => return Err(error),
        };
        self.partial.clear();
        self.partial
            .extend_from_slice(incoming.get(used..).unwrap_or_default());
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(buffer.filled().len() > before)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.records.outgoing.waiting() >= HIGH {
            ready!(self.poll_drain(cx))?;
        }
        let mut total = 0;
        for slice in slices {
            self.gather(slice)?;
            total += slice.len();
        }
        if self.records.outgoing.waiting() >= EAGER {
            self.records.outgoing.write_to(&self.tcp)?;
        }
        Poll::Ready(Ok(total))
    }

    /// Fills records. What fills none by itself waits for more, or for a flush.
    fn gather(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.gathered.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(RECORD - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == RECORD {
                self.encrypt_gathered()?;
            }
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % RECORD);
        if !whole.is_empty() {
            self.records.encrypt(whole, &mut self.partial)?;
        }
        self.gathered.extend_from_slice(rest);
        Ok(())
    }

    fn encrypt_gathered(&mut self) -> io::Result<()> {
        self.records.encrypt(&self.gathered, &mut self.partial)?;
        self.gathered.clear();
        Ok(())
    }

    /// Sends everything there is.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            self.encrypt_gathered()?;
        }
        while !self.records.outgoing.write_to(&self.tcp)? {
            ready!(self.tcp.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Session> PollFlush for Inner<S> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(self.poll_drain(cx));
        if flushed.is_err() {
            self.gathered = Vec::new();
            self.records.outgoing.clear();
        }
        Poll::Ready(flushed)
    }
}

impl<S: Session> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().poll_read(cx, buffer)
    }
}

impl<S: Session> AsyncWrite for Connection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.deferred {
            return Poll::Ready(Ok(()));
        }
        inner.poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.gathered.is_empty() {
            inner.encrypt_gathered()?;
        }
        // Said once: the session ignores it afterwards.
        inner.records.close(&mut inner.partial);
        ready!(inner.poll_drain(cx))?;
        socket::finish_writing(&inner.tcp);
        Poll::Ready(Ok(()))
    }
}
