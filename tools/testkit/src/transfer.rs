//! Transfers whose every byte is checked: the receiver computes what it must get.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, bail};

/// An endless stream of bytes that depends on its seed only; no part of it repeats soon.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The stream of this seed, from its beginning.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Xorshift must not start from zero.
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// The next bytes. Chunks must be multiples of eight long, but for the last.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let bytes = self.state.to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
    }
}

/// Writes the first `length` bytes of a seed's stream.
///
/// # Errors
/// The peer is gone.
pub fn send(mut out: impl Write, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while sent < length {
        let part = chunk(&mut buffer, length - sent);
        pattern.fill(part);
        out.write_all(part)
            .with_context(|| format!("sending, after {sent} of {length} bytes"))?;
        sent += part.len() as u64;
    }
    Ok(())
}

/// Reads `length` bytes and checks that they are the beginning of a seed's stream.
///
/// # Errors
/// The stream ends early or holds another byte; the error says where.
pub fn receive(mut from: impl Read, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut buffer, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut received = 0;
    while received < length {
        let part = chunk(&mut buffer, length - received);
        from.read_exact(part)
            .with_context(|| format!("receiving, after {received} of {length} bytes"))?;
        let expected = chunk(&mut expected, length - received);
        pattern.fill(expected);
        if let Some(at) = part
            .iter()
            .zip(&*expected)
            .position(|(is, should)| is != should)
        {
            bail!(
                "byte {} of {length} is not what was sent",
                received + at as u64
            );
        }
        received += part.len() as u64;
    }
    Ok(())
}

/// Sends and receives at once, each direction with its own seed and length; closes the sending
/// side after the last byte and expects the same of the peer.
///
/// # Errors
/// As [`send`] and [`receive`], or the peer sends more.
pub fn duplex(stream: &TcpStream, out: (u64, u64), back: (u64, u64)) -> Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            send(stream, out.0, out.1)?;
            Ok(stream.shutdown(Shutdown::Write)?)
        });
        receive(stream, back.0, back.1)?;
        let mut reader = stream;
        let mut more = [0];
        if reader
            .read(&mut more)
            .context("waiting for the peer's end")?
            != 0
        {
            bail!("the peer sends more than {} bytes", back.1);
        }
        match sender.join() {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn chunk(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    let (part, _) = buffer.split_at_mut(length);
    part
}

const CHUNK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Behaviour, Peer};
    use std::net::TcpListener;

    #[test]
    fn an_echo_returns_every_byte_and_the_end() {
        let echo = Peer::serve(TcpListener::bind("127.0.0.1:0").unwrap(), Behaviour::Echo).unwrap();
        let stream = TcpStream::connect(echo.address()).unwrap();
        duplex(&stream, (7, 3_000_001), (7, 3_000_001)).unwrap();
        assert_eq!(echo.accepted(), 1);
    }

    #[test]
    fn a_changed_byte_is_found_where_it_is() {
        let mut bytes = Vec::new();
        send(&mut bytes, 1, 200_000).unwrap();
        receive(&*bytes, 1, 200_000).unwrap();
        bytes[131_000] ^= 1;
        let error = receive(&*bytes, 1, 200_000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "byte 131000 of 200000 is not what was sent"
        );
        assert!(receive(&bytes[..10], 1, 11).is_err());
    }
}
