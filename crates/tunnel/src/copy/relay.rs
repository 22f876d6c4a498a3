//! From one TCP connection to another, in one direction.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::chunks::Chunks;
use super::size::ReadSize;
use super::{End, Side, TURN, socket};

pub(crate) struct Relay {
    from: Side,
    size: ReadSize,
    waiting: Chunks,
    done: bool,
    total: u64,
}

impl Relay {
    /// A direction that reads `from`.
    pub(crate) fn new(from: Side) -> Self {
        Self {
            from,
            size: ReadSize::default(),
            waiting: Chunks::default(),
            done: false,
            total: 0,
        }
    }

    /// Bytes written.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether a failure of the socket it reads would be seen by reading it.
    pub(crate) fn is_reading(&self) -> bool {
        self.waiting.is_empty() && !self.done
    }

    /// Ready when the one side has finished and the other has been told, or on failure.
    pub(crate) fn poll(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        counter: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        let turn = self.total;
        let mut buffer = BytesMut::new();
        while !self.done {
            if self.waiting.is_empty() {
                // An error shows when it is read.
                let _ready = ready!(from.poll_read_ready(cx)).is_err();
                match self.read(from, &mut buffer) {
                    Ok(0) => {
                        socket::finish_writing(to);
                        self.done = true;
                        break;
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Poll::Ready(Err(failed(self.from, &error))),
                }
            }
            if !self.write(to, counter)? {
                // An error shows when it is written to.
                let _ready = ready!(to.poll_write_ready(cx)).is_err();
            }
            if self.total - turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Delivers what has been read, and what can still be read, of a connection that failed,
    /// without waiting. Its end is not a FIN, whatever the socket says now.
    pub(crate) fn flush(&mut self, from: &TcpStream, to: &TcpStream, counter: &AtomicU64) {
        let mut buffer = BytesMut::new();
        while !self.done {
            let read = !self.waiting.is_empty() || matches!(self.read(from, &mut buffer), Ok(1..));
            if !read || !matches!(self.write(to, counter), Ok(true)) {
                return;
            }
        }
    }

    fn read(&mut self, from: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
        let wanted = self.size.bytes();
        if buffer.capacity() < wanted / 2 {
            buffer.reserve(wanted);
        }
        let read = socket::read_application(from, buffer, wanted.min(buffer.capacity()))?;
        if read > 0 {
            self.size.learn(read);
            self.waiting.push(buffer.split().freeze());
        }
        Ok(read)
    }

    /// Whether anything was written.
    fn write(&mut self, to: &TcpStream, counter: &AtomicU64) -> Result<bool, End> {
        match self.waiting.write_to(to) {
            Ok(written) => {
                self.total += written as u64;
                counter.fetch_add(written as u64, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(failed(self.from.other(), &error)),
        }
    }
}

fn failed(side: Side, error: &io::Error) -> End {
    End::Tcp {
        side,
        kind: error.kind(),
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}
