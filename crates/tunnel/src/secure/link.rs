//! A TLS connection without anything between its records and their user.

use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::connection::SCRATCH;
use super::protection::Protection;
use super::records::{OVERHEAD, Outgoing, RECORD};
use crate::copy::socket;

/// Plaintext that is best encrypted and sent at once: its records go as one packet through the kernel, also
/// where a link carries 9,000 bytes in a frame (7 of them are 62,636 bytes), and what was in them does over
/// `lo`, whose longest segment has 65,483. A little more would be another packet.
pub(crate) const FLIGHT: usize = 62_500;

/// Bytes read with one system call: those records.
const READ: usize = FLIGHT + FLIGHT.div_ceil(RECORD) * OVERHEAD;

/// Records whose content is shown at once.
const PIECES: usize = 16;

/// A TLS connection whose user says what to encrypt and is shown what was decrypted, where it was
/// decrypted.
pub(crate) struct Link {
    tcp: TcpStream,
    protection: Box<Protection>,
    outgoing: Outgoing,
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
        protection: Protection,
        outgoing: Outgoing,
        partial: Vec<u8>,
        early: Vec<u8>,
    ) -> Self {
        Self {
            tcp,
            protection: Box::new(protection),
            outgoing,
            partial,
            early,
            failed: None,
        }
    }

    /// Makes records of `plain`, for the next [`Self::poll_send`].
    pub(crate) fn encrypt(&mut self, plain: &[u8]) -> io::Result<()> {
        if self.failed.is_some() {
            // The peer has been sent an alert, and nothing follows that.
            return Ok(());
        }
        self.protection.seal(plain, &mut self.outgoing)
    }

    /// Ready when all records have been sent.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.waiting() == 0 {
            self.protection.answer(&mut self.outgoing)?;
        }
        while !self.outgoing.write_to(&self.tcp)? {
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
        self.protection.closed && self.early.is_empty() && self.failed.is_none()
    }

    /// Says that nothing follows, after what was encrypted before.
    pub(crate) fn close(&mut self) {
        self.protection.close(&mut self.outgoing);
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
        let mut used = 0;
        let mut shown = false;
        loop {
            let mut places: [Range<usize>; PIECES] = Default::default();
            let mut count = 0;
            let mut result = Ok(());
            for place in &mut places {
                let rest = incoming.get_mut(used..).unwrap_or_default();
                match self.protection.open(rest, &mut self.outgoing) {
                    Ok(Some(opened)) => {
                        *place = used + opened.data.start..used + opened.data.end;
                        used += opened.length;
                        count += 1;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                if self.protection.closed {
                    // Section 6.1: what follows is ignored.
                    used = incoming.len();
                    break;
                }
            }
            let mut pieces = [&[][..]; PIECES];
            for (piece, place) in pieces.iter_mut().zip(places).take(count) {
                *piece = incoming.get(place).unwrap_or_default();
            }
            if count > 0 {
                show(pieces.get(..count).unwrap_or_default());
                shown = true;
            }
            match result {
                // What was good before it was shown first.
                Err(error) if shown => {
                    self.failed = Some(error);
                    return Ok(incoming.len());
                }
                Err(error) => return Err(error),
                Ok(()) if count < PIECES => return Ok(used),
                Ok(()) => {}
            }
        }
    }
}
