//! A TLS connection without anything between its records and their user.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::connection::SCRATCH;
use super::layer::Layer;
use super::records::{OVERHEAD, RECORD};
use crate::copy::socket;

/// Plaintext that is best encrypted and sent at once: its records go as one packet through the kernel, also
/// where a link carries 9,000 bytes in a frame (7 of them are 62,636 bytes), and what was in them does over
/// `lo`, whose longest segment has 65,483. A little more would be another packet.
pub(crate) const FLIGHT: usize = 62_500;

/// Bytes read with one system call: those records.
const READ: usize = FLIGHT + FLIGHT.div_ceil(RECORD) * OVERHEAD;

/// A TLS connection whose user says what to encrypt and is shown what was decrypted, where it was
/// decrypted.
pub(crate) struct Link {
    tcp: TcpStream,
    layer: Box<dyn Layer>,
    /// The beginning of a record whose rest has not come yet.
    partial: Vec<u8>,
    /// What came right behind the handshake.
    early: Vec<u8>,
    /// What ends the connection, found behind what was shown last.
    failed: Option<io::Error>,
}

impl Link {
    pub(super) fn new(
        tcp: TcpStream,
        layer: Box<dyn Layer>,
        partial: Vec<u8>,
        early: Vec<u8>,
    ) -> Self {
        Self {
            tcp,
            layer,
            partial,
            early,
            failed: None,
        }
    }

    /// Makes records of `plain`, for the next [`Self::poll_send`]. What is left in `plain` is of no use.
    pub(crate) fn encrypt(&mut self, plain: &mut [u8]) -> io::Result<()> {
        if self.failed.is_some() {
            // The peer has been sent an alert, and nothing follows that.
            return Ok(());
        }
        self.layer.seal(plain, &mut self.partial)
    }

    /// Ready when all records have been sent.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.layer.outgoing().waiting() == 0 {
            self.layer.answer()?;
        }
        while !self.layer.outgoing().write_to(&self.tcp)? {
            ready!(self.tcp.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when something was received, of which `show` was shown all that has been decrypted, or
    /// when the peer has said that nothing follows: see [`Self::is_closed`].
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        show: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<io::Result<()>> {
        loop {
            if self.is_closed() {
                return Poll::Ready(Ok(()));
            }
            match self.receive(show) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_read_ready(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Whether the peer has said that nothing follows.
    pub(crate) fn is_closed(&self) -> bool {
        self.layer.is_closed() && self.early.is_empty() && self.failed.is_none()
    }

    /// Says that nothing follows, after what was encrypted before.
    pub(crate) fn close(&mut self) {
        self.layer.close(&mut self.partial);
    }

    /// Ends our direction of the TCP connection.
    pub(crate) fn finish(&mut self) {
        socket::finish_writing(&self.tcp);
    }

    fn receive(&mut self, show: &mut dyn FnMut(&[&[u8]])) -> io::Result<()> {
        if !self.early.is_empty() {
            show(&[&std::mem::take(&mut self.early)]);
            return Ok(());
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        SCRATCH.with_borrow_mut(|scratch| self.receive_into(scratch, show))
    }

    /// Reads once.
    fn receive_into(
        &mut self,
        scratch: &mut Vec<u8>,
        show: &mut dyn FnMut(&[&[u8]]),
    ) -> io::Result<()> {
        let kept = self.partial.len();
        scratch.resize(scratch.len().max(kept + READ), 0);
        let (front, back) = scratch.split_at_mut(kept);
        front.copy_from_slice(&self.partial);
        let mut room = back.get_mut(..READ).unwrap_or_default();
        let read = socket::read(&self.tcp, &mut room, READ)?;
        if read == 0 {
            // RFC 8446 section 6.1: without a close_notify it is a truncation.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let incoming = scratch.get_mut(..kept + read).unwrap_or_default();
        let used = self.open(incoming, show)?;
        self.partial.clear();
        self.partial
            .extend_from_slice(incoming.get(used..).unwrap_or_default());
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Opens the whole records in what came, and returns how many bytes they are.
    fn open(&mut self, incoming: &mut [u8], show: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
        let mut shown = false;
        let opened = self.layer.open(incoming, &mut |pieces| {
            shown = true;
            show(pieces);
        });
        match opened {
            // What was good before it was shown first.
            Err(error) if shown => {
                self.failed = Some(error);
                Ok(incoming.len())
            }
            opened => opened,
        }
    }
}
