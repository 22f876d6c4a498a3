//! A TLS connection without anything between its records and their user.

use std::io;
use std::task::{Context, Poll, ready};

use super::connection::Connection;
use super::records::Session;

/// A TLS connection whose user says what to encrypt and is shown what was decrypted, where it was
/// decrypted.
pub(crate) struct Link(Box<dyn Wire>);

/// A [`Link`] of either side.
pub(super) trait Wire {
    fn encrypt(&mut self, plain: &[u8]) -> io::Result<()>;
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn receive(&mut self, show: &mut dyn FnMut(&[&[u8]])) -> io::Result<()>;
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn is_closed(&self) -> bool;
    fn close(&mut self);
    fn finish(&mut self);
}

impl Link {
    /// Takes a connection over. `None` if somebody else still has a share of it.
    pub(super) fn new<S: Session>(connection: Connection<S>) -> Option<Self> {
        connection.into_wire().map(Self)
    }

    /// Makes records of `plain`, for the next [`Self::poll_send`].
    pub(crate) fn encrypt(&mut self, plain: &[u8]) -> io::Result<()> {
        self.0.encrypt(plain)
    }

    /// Ready when all records have been sent.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_send(cx)
    }

    /// Ready when something was received, of which `show` was shown all that has been decrypted, or
    /// when the peer has said that nothing follows: see [`Self::is_closed`].
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        show: &mut dyn FnMut(&[&[u8]]),
    ) -> Poll<io::Result<()>> {
        loop {
            if self.0.is_closed() {
                return Poll::Ready(Ok(()));
            }
            match self.0.receive(show) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.0.poll_readable(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Whether the peer has said that nothing follows.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Says that nothing follows, after what was encrypted before.
    pub(crate) fn close(&mut self) {
        self.0.close();
    }

    /// Ends our direction of the TCP connection.
    pub(crate) fn finish(&mut self) {
        self.0.finish();
    }
}
