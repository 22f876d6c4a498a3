//! TLS records made from bytes and bytes from records, with rustls' unbuffered API.
//!
//! The buffered API moves what it receives three times and takes 4 KiB per system call; on bulk it
//! costs four times the decryption itself.

use std::io;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use tokio::net::TcpStream;

use super::protection::Protection;
use crate::copy::socket;

/// Bytes of plaintext that fill a record (RFC 8446 section 5.1).
pub(super) const RECORD: usize = 16 << 10;

/// What a record adds to its plaintext: head, content type and tag (RFC 8446 section 5.2).
pub(super) const OVERHEAD: usize = 5 + 1 + 16;

/// Bytes a buffer may keep while there is nothing in it.
const KEPT: usize = 4 << 10;

/// Times in a row that little went out, after which a large buffer is given back.
const PATIENCE: u8 = 4;

/// A side's TLS session.
pub(super) trait Session: Send + 'static {
    type Data: 'static;

    /// The session's keys, for somebody who makes its records from now on.
    fn into_protection(self) -> Result<Protection, rustls::Error>;

    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data>;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Session for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

    fn into_protection(self) -> Result<Protection, rustls::Error> {
        let (secrets, schedule) = self.dangerous_into_kernel_connection()?;
        Protection::new(secrets, Box::new(schedule))
    }

    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data> {
        self
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Session for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

    fn into_protection(self) -> Result<Protection, rustls::Error> {
        let (secrets, schedule) = self.dangerous_into_kernel_connection()?;
        Protection::new(secrets, Box::new(schedule))
    }

    fn common(&self) -> &UnbufferedConnectionCommon<Self::Data> {
        self
    }

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// A session with the records that wait for the socket.
pub(super) struct Records<S> {
    pub(super) session: S,
    pub(super) outgoing: Outgoing,
    /// The peer said that nothing follows.
    pub(super) closed: bool,
}

impl<S: Session> Records<S> {
    pub(super) fn new(session: S) -> Self {
        Self {
            session,
            outgoing: Outgoing::default(),
            closed: false,
        }
    }

    /// Takes all whole records from the front of `incoming`, gives what they carry to `plain`, and
    /// returns how many bytes they were. Answers to them are put into `outgoing`.
    ///
    /// # Errors
    /// What rustls found; the alert for the peer is in `outgoing`.
    pub(super) fn take(
        &mut self,
        incoming: &mut [u8],
        plain: &mut impl FnMut(&[u8]),
    ) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let rest = incoming.get_mut(used..).unwrap_or_default();
            let status = self.session.process(rest);
            let mut discard = status.discard;
            let more = match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        plain(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    self.outgoing.put(0, |room| data.encode(room))?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.closed = true;
                    false
                }
                Ok(_) => false,
                Err(error) => {
                    self.put_alert();
                    return Err(invalid(error));
                }
            };
            used += discard;
            if !more {
                return Ok(used);
            }
        }
    }

    /// After an error the session offers the alert first, before it looks at any bytes.
    fn put_alert(&mut self) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.session.process(&mut []).state {
            // The connection has failed already, and this is the lesser reason.
            let _no_alert = self.outgoing.put(0, |room| data.encode(room)).is_err();
        }
    }

    /// Makes records of `plain`. `partial` is the beginning of a record that was received.
    ///
    /// # Errors
    /// When the session cannot send (any more).
    pub(super) fn encrypt(&mut self, plain: &[u8], partial: &mut Vec<u8>) -> io::Result<()> {
        let room = plain.len() + (plain.len() / RECORD + 1) * OVERHEAD;
        loop {
            let status = self.session.process(partial);
            let discard = status.discard;
            let done = match status.state.map_err(invalid)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    self.outgoing
                        .put(room, |room| traffic.encrypt(plain, room))?;
                    true
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    self.outgoing.put(0, |room| data.encode(room))?;
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::PeerClosed => {
                    self.closed = true;
                    false
                }
                _ => return Err(io::ErrorKind::NotConnected.into()),
            };
            partial.drain(..discard);
            if done {
                return Ok(());
            }
        }
    }

    /// Says that nothing follows (RFC 8446 section 6.1).
    pub(super) fn close(&mut self, partial: &mut [u8]) {
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = self.session.process(partial).state
        {
            // Without it the peer finds the connection closed, which is what it is.
            let _unsaid = self
                .outgoing
                .put(OVERHEAD + 2, |room| traffic.queue_close_notify(room))
                .is_err();
        }
    }
}

/// Records that wait for the socket.
#[derive(Default)]
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    filled: usize,
    sent: usize,
    quiet: u8,
}

impl Outgoing {
    pub(super) fn waiting(&self) -> usize {
        self.filled - self.sent
    }

    /// Lets `fill` write into at least `wanted` bytes, more if it says so.
    fn put<E: TooSmall>(
        &mut self,
        wanted: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> io::Result<()> {
        self.reserve(wanted);
        let mut written = fill(self.buffer.get_mut(self.filled..).unwrap_or_default());
        if let Err(error) = &written
            && let Some(required) = error.required()
        {
            self.reserve(required);
            written = fill(self.buffer.get_mut(self.filled..).unwrap_or_default());
        }
        self.filled += written.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(())
    }

    /// Lets `fill` write exactly `length` bytes.
    pub(super) fn append(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.reserve(length);
        let end = self.filled + length;
        fill(self.buffer.get_mut(self.filled..end).unwrap_or_default())?;
        self.filled = end;
        Ok(())
    }

    fn reserve(&mut self, wanted: usize) {
        let needed = self.filled + wanted;
        if needed > self.buffer.len() {
            self.buffer.resize(needed.next_power_of_two(), 0);
        }
    }

    /// Writes as much as the socket takes. True when nothing is left.
    pub(super) fn write_to(&mut self, tcp: &TcpStream) -> io::Result<bool> {
        while let Some(waiting @ [_, ..]) = self.buffer.get(self.sent..self.filled) {
            match socket::write(tcp, &[io::IoSlice::new(waiting)], waiting.len()) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.drained();
        Ok(true)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn take_all(&mut self) -> Vec<u8> {
        let all = self.buffer.get(self.sent..self.filled).unwrap_or_default();
        let all = all.to_vec();
        self.clear();
        all
    }

    /// Forgets what cannot be sent any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn drained(&mut self) {
        let little = self.filled < self.buffer.len() / 8;
        self.filled = 0;
        self.sent = 0;
        if self.buffer.len() <= KEPT || !little {
            self.quiet = 0;
            return;
        }
        self.quiet += 1;
        if self.quiet >= PATIENCE {
            self.quiet = 0;
            self.buffer = Vec::new();
        }
    }
}

/// An error that tells how much room would do.
trait TooSmall: std::error::Error {
    fn required(&self) -> Option<usize>;
}

impl TooSmall for EncodeError {
    fn required(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::AlreadyEncoded => None,
        }
    }
}

impl TooSmall for EncryptError {
    fn required(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(size) => Some(size.required_size),
            Self::EncryptExhausted => None,
        }
    }
}

/// As [`tls::classify_io`] reads it.
pub(super) fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
