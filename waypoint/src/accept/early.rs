//! What an endpoint says of an answer before the answer (1xx, such as 103 Early Hints), on its way to a client of HTTP/1.1.
//!
//! hyper's server cannot send it. So it waits here until everything is written that hyper has, which is between two
//! messages, and goes to the client from outside of hyper. The answer itself is held back until then.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::patience::Watch;
use crate::forward::headers;

/// What waits on one connection.
#[derive(Debug, Default)]
pub(crate) struct Early {
    /// There is something in the queue.
    waits: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: BytesMut,
    /// Some of it is written: the rest has to follow before anything else.
    has_begun: bool,
    /// Nobody has taken it for too long.
    is_given_up: bool,
    /// Which request may say something; late words of another are dropped.
    turn: u32,
    /// The task of the connection.
    connection: Option<Waker>,
}

/// Sends a request with `send`, and gives the answer when the client has been sent what came before it. A client that does
/// not take that within `patience` loses its connection; zero is without end.
pub(crate) async fn passing<B, F: Future>(
    watch: Option<&Watch>,
    patience: Duration,
    mut request: Request<B>,
    send: impl FnOnce(Request<B>) -> F,
) -> F::Output {
    let Some(watch) = watch else {
        return send(request).await;
    };
    let early = watch.early();
    let turn = Turn {
        early,
        number: early.begin(),
    };
    let (heard, number) = (watch.clone(), turn.number);
    hyper::ext::on_informational(&mut request, move |said| {
        heard.early().say(number, said.status(), said.headers());
    });
    let mut sending = pin!(send(request));
    let answer = poll_fn(|cx| {
        early.wake_by(cx);
        sending.as_mut().poll(cx)
    })
    .await;
    if early.waits() {
        let written = poll_fn(|cx| early.poll_written(cx));
        match patience.is_zero() {
            true => written.await,
            false => {
                if tokio::time::timeout(patience, written).await.is_err() {
                    early.give_up();
                }
            }
        }
    }
    answer
}

/// A request that may say something until this is dropped.
struct Turn<'a> {
    early: &'a Early,
    number: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.early.queue.lock();
        if queue.turn == self.number {
            queue.turn = queue.turn.wrapping_add(1);
            if !queue.has_begun && !queue.is_given_up {
                queue.bytes.clear();
                self.early.waits.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Early {
    fn begin(&self) -> u32 {
        let mut queue = self.queue.lock();
        queue.turn = queue.turn.wrapping_add(1);
        queue.turn
    }

    fn wake_by(&self, cx: &Context<'_>) {
        let mut queue = self.queue.lock();
        match &mut queue.connection {
            Some(known) => known.clone_from(cx.waker()),
            unknown => *unknown = Some(cx.waker().clone()),
        }
    }

    fn say(&self, turn: u32, status: StatusCode, all: &HeaderMap) {
        // 100 is between the endpoint and this proxy, and 101 is an answer.
        if matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        ) {
            return;
        }
        let said = written(status, all);
        let mut queue = self.queue.lock();
        if queue.turn != turn || queue.bytes.len() + said.len() > MOST {
            return;
        }
        queue.bytes.extend_from_slice(&said);
        self.waits.store(true, Ordering::Relaxed);
        if let Some(connection) = &queue.connection {
            connection.wake_by_ref();
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    fn poll_written(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake_by(cx);
        match self.waits() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    fn give_up(&self) {
        let mut queue = self.queue.lock();
        queue.is_given_up = true;
        if let Some(connection) = &queue.connection {
            connection.wake_by_ref();
        }
    }

    /// Writes what waits, where a message may begin.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        let mut queue = self.queue.lock();
        while queue.bytes.has_remaining() {
            if queue.is_given_up {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let count = ready!(Pin::new(&mut *stream).poll_write(cx, &queue.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            queue.bytes.advance(count);
            queue.has_begun = true;
        }
        queue.bytes = BytesMut::new();
        queue.has_begun = false;
        self.waits.store(false, Ordering::Relaxed);
        if let Some(connection) = &queue.connection {
            connection.wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the rest of what has been begun, before anything else is written.
    pub(super) fn poll_rest<S: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        let (has_begun, is_given_up) = {
            let queue = self.queue.lock();
            (queue.has_begun, queue.is_given_up)
        };
        match has_begun || is_given_up {
            true => self.poll_write(cx, stream),
            false => Poll::Ready(Ok(())),
        }
    }
}

/// As HTTP/1.1 writes it.
fn written(status: StatusCode, all: &HeaderMap) -> Bytes {
    let mut all = all.clone();
    headers::strip_hop_by_hop(&mut all, false);
    all.remove(headers::ALT_SVC);
    all.remove(http::header::CONTENT_LENGTH);
    let mut text = BytesMut::new();
    text.extend_from_slice(b"HTTP/1.1 ");
    text.extend_from_slice(status.as_str().as_bytes());
    text.extend_from_slice(b" ");
    text.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    text.extend_from_slice(b"\r\n");
    for (name, value) in &all {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text.freeze()
}

/// Bytes that wait on one connection; what is said beyond them is dropped.
const MOST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_belongs_to_one_connection_is_not_said_to_another() {
        let mut all = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("alt-svc", "h3=\":443\""),
            ("link", "</a.css>; rel=preload"),
        ] {
            all.append(name, HeaderValue::from_static(value));
        }
        let text = written(StatusCode::EARLY_HINTS, &all);
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn a_request_that_is_over_says_nothing_more_and_what_is_begun_is_finished() {
        let early = Early::default();
        let link = HeaderMap::new();
        let number = early.begin();
        early.say(number, StatusCode::EARLY_HINTS, &link);
        assert!(early.waits());
        drop(Turn {
            early: &early,
            number,
        });
        assert!(!early.waits(), "nothing of it was written");
        early.say(number, StatusCode::EARLY_HINTS, &link);
        assert!(!early.waits(), "its turn is over");
        let number = early.begin();
        early.say(number, StatusCode::EARLY_HINTS, &link);
        let (mut near, _far) = tokio::io::duplex(10);
        poll_fn(|cx| {
            assert!(early.poll_write(cx, &mut near).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(Turn {
            early: &early,
            number,
        });
        assert!(early.waits(), "half of it is written");
    }

    #[test]
    fn what_nobody_takes_has_a_bound() {
        let early = Early::default();
        let number = early.begin();
        for _ in 0..100_000 {
            early.say(number, StatusCode::EARLY_HINTS, &HeaderMap::new());
        }
        assert!(early.queue.lock().bytes.len() <= MOST);
    }
}
