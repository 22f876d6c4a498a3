//! Bytes that wait for a socket, in the pieces in which they came.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;

use super::socket;

/// A queue of byte chunks. Empty, it holds no memory.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    queue: VecDeque<Bytes>,
}

/// Chunks in one system call. The kernel takes 1,024; more than a few bring nothing.
const SLICES: usize = 16;

/// Chunks that may wait before they are joined.
const JOIN_AFTER: usize = 64;

/// Chunks up to this size are copied when they are joined; larger ones stay as they are.
const SMALL: usize = 4 << 10;

impl Chunks {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a chunk. A long queue of small ones becomes a short one, because each pins the buffer
    /// it was received in and a peer may send single bytes to a reader that does not read.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.queue.push_back(chunk);
        if self.queue.len().is_multiple_of(JOIN_AFTER) {
            self.join_small();
        }
    }

    /// Writes to `tcp` as much as it takes without waiting.
    pub(crate) fn write_to(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let mut total = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(chunk);
            used += 1;
            total += chunk.len();
        }
        let written = socket::write(tcp, slices.get(..used).unwrap_or(&[]), total)?;
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.queue.pop_front();
        }
        // A connection that has gone quiet keeps no memory.
        self.queue = VecDeque::new();
    }

    fn join_small(&mut self) {
        let mut joined = VecDeque::new();
        let mut run = BytesMut::new();
        for chunk in self.queue.drain(..) {
            if chunk.len() <= SMALL {
                run.extend_from_slice(&chunk);
                continue;
            }
            if !run.is_empty() {
                joined.push_back(run.split().freeze());
            }
            joined.push_back(chunk);
        }
        if !run.is_empty() {
            joined.push_back(run.freeze());
        }
        self.queue = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_joined_and_stay_in_order() {
        let mut chunks = Chunks::default();
        let sent: Vec<u8> = (0..100_000).map(|n| (n % 251) as u8).collect();
        for byte in &sent {
            chunks.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert!(
            chunks.queue.len() < 2 * JOIN_AFTER,
            "{}",
            chunks.queue.len()
        );
        let kept: Vec<u8> = chunks.queue.iter().flatten().copied().collect();
        assert_eq!(kept, sent);
    }

    #[test]
    fn advancing_crosses_chunks() {
        let mut chunks = Chunks::default();
        for text in ["abc", "de", "f"] {
            chunks.push(Bytes::from_static(text.as_bytes()));
        }
        chunks.advance(4);
        assert_eq!(chunks.queue, ["e", "f"]);
        chunks.advance(2);
        assert!(chunks.is_empty());
        assert_eq!(chunks.queue.capacity(), 0);
    }
}
