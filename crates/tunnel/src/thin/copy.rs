//! Moves the bytes of one connection: [`crate::copy::bidirectional`] for a stream of ours.
//!
//! Bytes for the application are written by the tunnel's driver as they come; only what the
//! application does not take at once is left to this task.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use runtime::busy::{self, Way};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::frame::Kind;
use super::stream::{App, ThinStream};
use crate::copy::socket::{self, Closing};
use crate::copy::{Abort, CopyEnd, Counters, End, Side, TURN};
use crate::stream::StreamEnd;

/// From the application to the tunnel.
#[derive(Default)]
struct Outward {
    /// It waits for the application, so that a failure of the socket is seen by reading it.
    reading: bool,
    done: bool,
    total: u64,
}

pub(crate) async fn bidirectional(
    tcp: TcpStream,
    stream: ThinStream,
    // What counts the stream is given back with it.
    _end: StreamEnd,
    counters: &Arc<Counters>,
    abort: impl Future<Output = Abort>,
) -> CopyEnd {
    let app = Rc::new(App {
        tcp: Closing::new(tcp),
        counters: Arc::clone(counters),
    });
    stream.stream.state().app = Some(Rc::clone(&app));
    let mut outward = Outward::default();
    let end = {
        let mut watch = pin!(app.tcp.ready(Interest::ERROR));
        let mut abort = pin!(abort);
        poll_fn(|cx| {
            if let Poll::Ready(reason) = abort.as_mut().poll(cx) {
                return Poll::Ready(End::Aborted(reason));
            }
            let told = match poll_inward(&stream, &app, cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                inward => inward.is_ready(),
            };
            // First, or a FIN that nobody hears would be taken for an end in order.
            if let Some(gone) = stream.stream.look().over(outward.done) {
                return Poll::Ready(gone.into());
            }
            match outward.poll(&stream, &app, cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Ready(Ok(())) if told => return Poll::Ready(End::Clean),
                _ => {}
            }
            // A socket that is not being read shows its reset nowhere else.
            if !outward.reading && watch.as_mut().poll(cx).is_ready() {
                return Poll::Ready(socket::failure(&app.tcp, Side::First));
            }
            Poll::Pending
        })
        .await
    };
    let (sent, end) = match end {
        End::Clean => {
            app.tcp.finish();
            (outward.total, End::Clean)
        }
        End::Tcp { .. } => {
            // What the application sent before its reset would be on its way without a mesh.
            outward.flush(&stream, &app);
            (outward.total, end)
        }
        End::Aborted(_) => (outward.total, end),
        End::StreamReset(_) | End::TunnelLost(_) => {
            // The same the other way round: what came before the reset is delivered if the
            // application takes it at once, and may tell more precisely what happened.
            let last = poll_fn(|cx| Poll::Ready(poll_inward(&stream, &app, cx))).await;
            match last {
                Poll::Ready(Err(precise)) => (outward.total, precise),
                _ => (outward.total, end),
            }
        }
    };
    let received = stream.stream.look().received;
    if end == End::Clean {
        stream.finish();
    }
    CopyEnd {
        end,
        sent,
        received,
    }
}

/// Ready when the application has been told that the peer has finished, or on failure.
fn poll_inward(stream: &ThinStream, app: &App, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
    let mut state = stream.stream.state();
    state.register(cx);
    let (inward, due) = state.poll_inward(app, cx);
    drop(state);
    if let Some(bytes) = due {
        stream.mux.say_credit(stream.stream.id, bytes);
    }
    inward.map_err(|error| End::Tcp {
        side: Side::First,
        kind: error.kind(),
    })
}

impl Outward {
    /// Ready when the application has finished and the tunnel has been told, or on failure.
    fn poll(
        &mut self,
        stream: &ThinStream,
        app: &App,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        let turn = self.total;
        self.reading = false;
        while !self.done {
            let credit = stream.stream.look().credit;
            if credit == 0 {
                return Poll::Pending;
            }
            ready!(stream.mux.poll_room(stream.stream.id, cx));
            // An error shows when it is read.
            if app.tcp.poll_read_ready(cx).is_pending() {
                self.reading = true;
                return Poll::Pending;
            }
            match self.read(stream, app) {
                Ok(true) => {}
                Ok(false) => {
                    self.done = true;
                    stream.mux.say(Kind::Fin, stream.stream.id, &[]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
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
    /// is not a FIN, whatever the socket says now. What the tunnel has no room for is lost, as it may
    /// be with any reset.
    fn flush(&mut self, stream: &ThinStream, app: &App) {
        while !self.done && stream.stream.look().credit > 0 && stream.mux.has_room() {
            if !matches!(self.read(stream, app), Ok(true)) {
                return;
            }
        }
    }

    /// Whether bytes were read; if not, the application has finished.
    fn read(&mut self, stream: &ThinStream, app: &App) -> std::io::Result<bool> {
        let id = stream.stream.id;
        let credit = stream.stream.look().credit;
        let limit = usize::try_from(credit).unwrap_or(usize::MAX);
        let read = stream.mux.say_data(id, limit, |buffer, limit| {
            socket::read_application(&app.tcp, buffer, limit)
        })?;
        stream.stream.state().credit -= u32::try_from(read).unwrap_or(credit);
        self.total += read as u64;
        busy::moved(Way::Outward, read);
        app.counters.sent.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read > 0)
    }
}
