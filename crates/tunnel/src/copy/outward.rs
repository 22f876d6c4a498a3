//! From the application to the tunnel. Bytes are read once, into the buffer that HTTP/2 sends.

use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use tokio::net::TcpStream;

use super::size::ReadSize;
use super::{Counters, End, Side, TURN, socket};

pub(crate) struct Outward {
    size: ReadSize,
    state: State,
    total: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waiting for the application, holding neither a buffer nor a share of the window.
    Idle,
    /// Waiting for the tunnel.
    Stalled,
    /// The application has finished and the tunnel was told.
    Done,
}

impl Outward {
    pub(crate) fn new() -> Self {
        Self {
            size: ReadSize::default(),
            state: State::Idle,
            total: 0,
        }
    }

    /// Bytes handed to the tunnel.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether a failure of the socket would be seen by reading it.
    pub(crate) fn is_reading(&self) -> bool {
        self.state == State::Idle
    }

    /// Ready when the application has finished and the tunnel has been told, or on failure.
    pub(crate) fn poll(
        &mut self,
        tcp: &TcpStream,
        send: &mut SendStream<Bytes>,
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        let turn = self.total;
        let mut buffer = BytesMut::new();
        while self.state != State::Done {
            if self.state == State::Idle {
                match tcp.poll_read_ready(cx) {
                    // An error shows when it is read.
                    Poll::Ready(_) => self.state = State::Stalled,
                    Poll::Pending => {
                        // The window is shared with the other streams of the tunnel.
                        send.reserve_capacity(0);
                        return Poll::Pending;
                    }
                }
            }
            let room = ready!(poll_room(send, self.size.bytes(), cx))?;
            self.state = State::Idle;
            match self.read(tcp, &mut buffer, room) {
                Ok(0) => self.finish(send)?,
                Ok(_) => self.send(&mut buffer, send, counters)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
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

    /// Hands over what can still be read from a connection that failed, without waiting. Its end
    /// is not a FIN, whatever the socket says now.
    pub(crate) fn flush(
        &mut self,
        tcp: &TcpStream,
        send: &mut SendStream<Bytes>,
        counters: &Counters,
    ) {
        let mut buffer = BytesMut::new();
        while self.state != State::Done {
            send.reserve_capacity(self.size.bytes());
            let room = send.capacity();
            let read = room > 0 && matches!(self.read(tcp, &mut buffer, room), Ok(1..));
            if !read || self.send(&mut buffer, send, counters).is_err() {
                return;
            }
        }
    }

    fn read(&mut self, tcp: &TcpStream, buffer: &mut BytesMut, room: usize) -> io::Result<usize> {
        let wanted = self.size.bytes();
        if buffer.capacity() < wanted / 2 {
            buffer.reserve(wanted);
        }
        socket::read_application(tcp, buffer, room.min(wanted).min(buffer.capacity()))
    }

    fn send(
        &mut self,
        buffer: &mut BytesMut,
        send: &mut SendStream<Bytes>,
        counters: &Counters,
    ) -> Result<(), End> {
        let bytes = buffer.split().freeze();
        self.size.learn(bytes.len());
        self.total += bytes.len() as u64;
        counters
            .sent
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        send.send_data(bytes, false)
            .map_err(|error| End::from_h2(&error))
    }

    fn finish(&mut self, send: &mut SendStream<Bytes>) -> Result<(), End> {
        self.state = State::Done;
        send.send_data(Bytes::new(), true)
            .map_err(|error| End::from_h2(&error))
    }
}

/// How many bytes the stream takes now, after asking for `wanted`. Never zero.
fn poll_room(
    send: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, End>> {
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(End::from_h2(&error))),
            None => return Poll::Ready(Err(End::from_reset(closed(send, cx)))),
        }
    }
}

/// Why a stream that still has something to send takes nothing any more.
fn closed(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Result<Reason, h2::Error> {
    match send.poll_reset(cx) {
        Poll::Ready(reset) => reset,
        Poll::Pending => Ok(Reason::STREAM_CLOSED),
    }
}
