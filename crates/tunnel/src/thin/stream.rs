//! One connection in a tunnel, as the tunnel and the connection's own task see it.

use std::cell::{Ref, RefCell, RefMut};
use std::fmt;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;

use super::frame::Violation;
use super::message::Answer;
use super::mux::Mux;
use crate::client::Lost;
use crate::copy::chunks::Chunks;
use crate::copy::socket::{self, Closing};
use crate::copy::{Counters, End};

/// The peer gets credit when it has used up this share of the window: a frame of 12 bytes for 128
/// KiB with the usual window.
const CREDIT_SHARE: u32 = 8;

/// Why a stream is over.
#[derive(Clone, Debug)]
pub(crate) enum Gone {
    /// The peer reset it.
    Reset(Reason),
    /// Its tunnel is gone.
    Lost(Lost),
}

impl From<Gone> for End {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Reset(reason) => Self::StreamReset(reason),
            Gone::Lost(lost) => Self::TunnelLost(lost.to_string()),
        }
    }
}

/// The application's side of a stream.
pub(super) struct App {
    pub(super) tcp: Closing,
    pub(super) counters: Arc<Counters>,
}

/// What the tunnel knows of a stream.
pub(super) struct State {
    waker: Option<Waker>,
    /// The application's socket, from the moment the bytes are moved.
    pub(super) app: Option<Rc<App>>,
    /// What came and could not be written to the application yet.
    waiting: Chunks,
    /// The peer sends no more.
    fin: bool,
    /// The application has been told.
    told: bool,
    /// Bytes that the peer may still send.
    room: u32,
    /// Bytes that were written to the application since the peer got credit.
    consumed: u32,
    window: u32,
    /// Bytes that may be sent to the peer.
    pub(super) credit: u32,
    pub(super) answer: Option<Answer>,
    pub(super) gone: Option<Gone>,
    /// Bytes written to the application.
    pub(super) received: u64,
}

/// One stream: the tunnel has it in its table, a [`ThinStream`] in somebody's hand.
pub(super) struct Stream {
    pub(super) id: u32,
    state: RefCell<State>,
}

impl Stream {
    /// `credit` is what the peer allows already, `window` what we allow.
    pub(super) fn new(id: u32, window: u32, credit: u32) -> Rc<Self> {
        Rc::new(Self {
            id,
            state: RefCell::new(State {
                waker: None,
                app: None,
                waiting: Chunks::default(),
                fin: false,
                told: false,
                room: window,
                consumed: 0,
                window,
                credit,
                answer: None,
                gone: None,
                received: 0,
            }),
        })
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    pub(super) fn look(&self) -> Ref<'_, State> {
        self.state.borrow()
    }
}

impl State {
    /// Whoever polls now is woken by what happens next.
    pub(super) fn register(&mut self, cx: &Context<'_>) {
        if !self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            self.waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    pub(super) fn end(&mut self, gone: Gone) {
        self.gone.get_or_insert(gone);
        self.wake();
    }

    /// Why the stream is over; `done` is whether we have said all we had to say. Once the peer has,
    /// too, what is left to do is between us and the application, and the tunnel may go.
    pub(super) fn over(&self, done: bool) -> Option<Gone> {
        match &self.gone {
            Some(Gone::Lost(_)) if done && self.fin => None,
            gone => gone.clone(),
        }
    }

    /// Bytes came: they are written at once where the application takes them. Returns the credit
    /// that the peer is due.
    pub(super) fn data(
        &mut self,
        slices: &[IoSlice<'_>],
        total: usize,
    ) -> Result<Option<u32>, Violation> {
        if self.fin {
            return Err(Violation("bytes came after the end"));
        }
        let left = u32::try_from(total)
            .ok()
            .and_then(|total| self.room.checked_sub(total));
        self.room = left.ok_or(Violation("more bytes came than there was credit for"))?;
        let idle = self.waiting.is_empty();
        let mut written = 0;
        if idle && let Some(app) = &self.app {
            // A failure is found again, and told, by the connection's own task.
            written = socket::write(&app.tcp, slices, total).unwrap_or(0);
        }
        let due = self.written(written);
        if written < total {
            for slice in slices {
                let skipped = written.min(slice.len());
                written -= skipped;
                if let Some(rest @ [_, ..]) = slice.get(skipped..) {
                    self.waiting.push(Bytes::copy_from_slice(rest));
                }
            }
            if idle {
                self.wake();
            }
        }
        Ok(due)
    }

    /// The peer has finished.
    pub(super) fn fin(&mut self) {
        self.fin = true;
        self.wake();
    }

    /// Writes what waits; ready when the application has been told that nothing follows. The
    /// second value is the credit that the peer is due.
    pub(super) fn poll_inward(
        &mut self,
        app: &App,
        cx: &mut Context<'_>,
    ) -> (Poll<io::Result<()>>, Option<u32>) {
        let mut due = None;
        while !self.waiting.is_empty() {
            match self.waiting.write_to(&app.tcp) {
                Ok(written) => {
                    if let Some(more) = self.written(written) {
                        due = Some(due.unwrap_or(0) + more);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An error shows when it is written to.
                    if app.tcp.poll_write_ready(cx).is_pending() {
                        return (Poll::Pending, due);
                    }
                }
                Err(error) => return (Poll::Ready(Err(error)), due),
            }
        }
        if !self.fin {
            return (Poll::Pending, due);
        }
        if !self.told {
            self.told = true;
            socket::finish_writing(&app.tcp);
        }
        (Poll::Ready(Ok(())), due)
    }

    fn written(&mut self, bytes: usize) -> Option<u32> {
        if bytes == 0 {
            return None;
        }
        self.received += bytes as u64;
        if let Some(app) = &self.app {
            app.counters
                .received
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.consumed += u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.consumed < self.window / CREDIT_SHARE {
            return None;
        }
        self.room += self.consumed;
        Some(std::mem::take(&mut self.consumed))
    }
}

/// A stream in the hand of who uses it. Dropping it before both directions ended resets it.
pub(crate) struct ThinStream {
    pub(super) mux: Rc<Mux>,
    pub(super) stream: Rc<Stream>,
    reason: Reason,
    over: bool,
}

impl ThinStream {
    /// `reason` is what the peer is told when it is dropped early.
    pub(super) fn new(mux: Rc<Mux>, stream: Rc<Stream>, reason: Reason) -> Self {
        Self {
            mux,
            stream,
            reason,
            over: false,
        }
    }

    /// Tells the peer that the stream is over, and why.
    pub(crate) fn reset(mut self, reason: Reason) {
        self.reason = reason;
    }

    /// Both sides know how it ended.
    pub(crate) fn finish(mut self) {
        self.over = true;
    }

    /// Ready when the stream is over.
    pub(crate) fn poll_gone(&self, cx: &Context<'_>) -> Poll<Gone> {
        let mut state = self.stream.state();
        state.register(cx);
        state.gone.clone().map_or(Poll::Pending, Poll::Ready)
    }

    /// The answer to our request.
    pub(crate) fn poll_answer(&self, cx: &Context<'_>) -> Poll<Result<Answer, Gone>> {
        let mut state = self.stream.state();
        if let Some(answer) = state.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        state.register(cx);
        match &state.gone {
            Some(gone) => Poll::Ready(Err(gone.clone())),
            None => Poll::Pending,
        }
    }

    /// Answers a request: with yes, after which the bytes may flow, or with a refusal, after which
    /// the stream is over. False if the peer has gone or has reset it.
    pub(crate) fn answer(&self, mut answer: Answer) -> bool {
        let mut state = self.stream.state();
        if state.gone.is_some() {
            return false;
        }
        state.window = self.mux.window;
        state.room = self.mux.window;
        drop(state);
        answer.window = self.mux.window;
        answer.streams = self.mux.most.get();
        self.mux.say_answer(self.stream.id, &answer);
        true
    }

    /// Refuses a request.
    pub(crate) fn refuse(self, answer: Answer) {
        self.answer(answer);
        self.finish();
    }
}

impl Drop for ThinStream {
    fn drop(&mut self) {
        let mut state = self.stream.state();
        // Closes the application's socket where it is held by nobody else.
        state.app = None;
        let gone = state.gone.is_some();
        drop(state);
        self.mux.forget(self.stream.id);
        if !self.over && !gone {
            self.mux.say_reset(self.stream.id, self.reason);
        }
    }
}

impl fmt::Debug for ThinStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThinStream")
            .field("id", &self.stream.id)
            .finish_non_exhaustive()
    }
}
