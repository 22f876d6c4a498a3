//! From the tunnel to the application. The chunks that HTTP/2 received are written as they are.

use std::io;
use std::task::{Context, Poll, ready};

use h2::RecvStream;
use tokio::net::TcpStream;

use super::chunks::Chunks;
use super::{Counters, End, Side, TURN, socket};
use std::sync::atomic::Ordering;

pub(crate) struct Inward {
    recv: RecvStream,
    waiting: Chunks,
    ended: bool,
    done: bool,
    total: u64,
}

impl Inward {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            waiting: Chunks::default(),
            ended: false,
            done: false,
            total: 0,
        }
    }

    /// Bytes written to the application.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Ready when the tunnel's side has ended and the application has been told, or on failure.
    pub(crate) fn poll(
        &mut self,
        tcp: &TcpStream,
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        let turn = self.total;
        while !self.done {
            let failed = self.gather(cx).err();
            if self.waiting.is_empty() {
                if let Some(end) = failed {
                    return Poll::Ready(Err(end));
                }
                if !self.ended {
                    return Poll::Pending;
                }
                socket::finish_writing(tcp);
                self.done = true;
                break;
            }
            match self.waiting.write_to(tcp) {
                Ok(written) => self.written(written, counters),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(end) = failed {
                        return Poll::Ready(Err(end));
                    }
                    // An error shows when it is written to.
                    let _ready = ready!(tcp.poll_write_ready(cx)).is_err();
                }
                Err(error) => {
                    return Poll::Ready(Err(End::Tcp {
                        side: Side::First,
                        kind: error.kind(),
                    }));
                }
            }
            if self.total - turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what HTTP/2 has received. The window bounds it, because it opens only in
    /// [`Self::written`]; leaving small frames in HTTP/2's own queue would count as a flood there.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while !self.ended {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Some(Ok(chunk))) => self.waiting.push(chunk),
                Poll::Ready(Some(Err(error))) => return Err(End::from_h2(&error)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn written(&mut self, written: usize, counters: &Counters) {
        // It fails only if more were released than was received.
        let _too_much = self.recv.flow_control().release_capacity(written).is_err();
        self.total += written as u64;
        counters
            .received
            .fetch_add(written as u64, Ordering::Relaxed);
    }
}
