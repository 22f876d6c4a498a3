//! The body of a request, so that it can be sent again: what has passed is kept as long as it is small.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::body::BodyError;
use super::received::Received;

/// A body that several attempts may send, one after the other.
#[derive(Debug)]
pub(crate) struct Source<B>(Rc<RefCell<State<B>>>);

impl<B> Clone for Source<B> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

#[derive(Debug)]
struct State<B> {
    body: B,
    /// What has come, while all of it is kept.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    limit: usize,
    /// Something that has come is not kept.
    spilt: bool,
    trailers: Option<HeaderMap>,
    end: End,
    received: Received,
    /// The attempt that reads now.
    reader: u32,
    /// Since when the client has been waited for, while it is.
    awaited_since: Option<Instant>,
    /// Who reads, while the client is waited for.
    reading: Option<Waker>,
    /// Who waits for the end.
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Whole,
    Broken,
}

impl<B: Body<Data = Bytes> + Unpin> Source<B> {
    /// A body of which at most `limit` bytes are kept.
    pub(crate) fn new(body: B, limit: usize) -> Self {
        let end = if body.is_end_stream() {
            End::Whole
        } else {
            End::Open
        };
        Self(Rc::new(RefCell::new(State {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            limit,
            spilt: false,
            trailers: None,
            end,
            received: Received::default(),
            reader: 0,
            awaited_since: None,
            reading: None,
            waiting: Vec::new(),
        })))
    }

    /// Whether the client has not sent everything.
    pub(crate) fn is_open(&self) -> bool {
        self.0.borrow().end == End::Open
    }

    /// The same body, for who must not keep it.
    pub(crate) fn weak(&self) -> WeakSource<B> {
        WeakSource(Rc::downgrade(&self.0))
    }

    /// Resolves when the client has been waited for as long as `idle`. Time in which nobody wants more of it does not count.
    pub(crate) async fn stalled(&self, idle: Duration) {
        let mut patience = self.patience(idle);
        while let Some(left) = patience {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
            patience = self.patience(idle);
        }
        std::future::pending().await
    }

    /// For how long still the client is waited for; `None` if it has sent everything.
    fn patience(&self, idle: Duration) -> Option<Duration> {
        let state = self.0.borrow();
        let waited = state.awaited_since.map(|since| since.elapsed());
        let is_bounded = state.end == End::Open && !idle.is_zero();
        is_bounded.then(|| idle.saturating_sub(waited.unwrap_or_default()))
    }

    /// Nobody waits for the client any more.
    fn give_up(&self) {
        let mut state = self.0.borrow_mut();
        state.over(End::Broken);
        if let Some(reader) = state.reading.take() {
            reader.wake();
        }
    }

    /// Whether an attempt can send all of it, from the beginning.
    pub(crate) fn is_replayable(&self) -> bool {
        let state = self.0.borrow();
        !state.spilt && state.end != End::Broken
    }

    /// Counts the bytes that come.
    pub(crate) fn received(&self) -> Received {
        self.0.borrow().received.clone()
    }

    /// All of it, once it has come and if all of it was kept.
    pub(crate) fn whole(&self) -> Option<Whole> {
        let state = self.0.borrow();
        (state.end == End::Whole && !state.spilt).then(|| Whole {
            pieces: state.kept.clone().into_iter(),
            trailers: state.trailers.clone(),
        })
    }

    /// The body for one attempt. Attempts before it get an error.
    pub(crate) fn attempt(&self) -> Attempt<B> {
        let mut state = self.0.borrow_mut();
        state.reader += 1;
        Attempt {
            reader: state.reader,
            next: 0,
            told_trailers: false,
            source: self.clone(),
        }
    }

    /// Resolves when the client has sent everything, or has gone.
    pub(crate) async fn ended(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if state.end != End::Open {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|one| one.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A body that has come to its end.
#[derive(Debug)]
pub(crate) struct Whole {
    pieces: std::vec::IntoIter<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Whole {
    /// The next frame.
    pub(crate) fn next(&mut self) -> Option<Frame<Bytes>> {
        let data = self.pieces.next().map(Frame::data);
        data.or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.len() == 0 && self.trailers.is_none()
    }

    /// Bytes that are left.
    pub(crate) fn bytes(&self) -> u64 {
        let pieces = self.pieces.as_slice().iter();
        pieces.map(|bytes| bytes.len() as u64).sum()
    }
}

/// The body of one attempt.
#[derive(Debug)]
pub(crate) struct Attempt<B> {
    reader: u32,
    next: usize,
    told_trailers: bool,
    source: Source<B>,
}

impl<B> State<B> {
    fn over(&mut self, end: End) {
        self.end = end;
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// A body that somebody else keeps.
#[derive(Debug)]
pub(crate) struct WeakSource<B>(Weak<RefCell<State<B>>>);

impl<B: Body<Data = Bytes> + Unpin> WeakSource<B> {
    /// Ends the body when the client has been waited for as long as `idle`.
    pub(crate) async fn give_up_after(self, idle: Duration) {
        let mut pause = idle;
        while !pause.is_zero() {
            tokio::time::sleep(pause).await;
            let Some(source) = self.0.upgrade().map(Source) else {
                return;
            };
            match source.patience(idle) {
                None => return,
                Some(left) if left.is_zero() => return source.give_up(),
                Some(left) => pause = left,
            }
        }
    }
}

impl<B> Body for Attempt<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut state = this.source.0.borrow_mut();
        if state.reader != this.reader {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(bytes) = state.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        match state.end {
            End::Open => {}
            End::Broken => return Poll::Ready(Some(Err(BodyError::Client))),
            End::Whole => {
                let told = std::mem::replace(&mut this.told_trailers, true);
                let trailers = state.trailers.clone().filter(|_| !told);
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
        }
        let Poll::Ready(frame) = Pin::new(&mut state.body).poll_frame(cx) else {
            state.awaited_since.get_or_insert_with(Instant::now);
            state.reading = Some(cx.waker().clone());
            return Poll::Pending;
        };
        state.awaited_since = None;
        match frame {
            None => {
                state.over(End::Whole);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                state.over(End::Broken);
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                let frame = match frame.into_data() {
                    Ok(data) => {
                        state.received.add(data.len() as u64);
                        if !state.spilt && state.kept_bytes + data.len() <= state.limit {
                            state.kept_bytes += data.len();
                            state.kept.push(data.clone());
                            this.next += 1;
                        } else {
                            state.spilt = true;
                            state.kept = Vec::new();
                            this.next = 0;
                        }
                        Frame::data(data)
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => {
                            state.trailers = Some(trailers.clone());
                            this.told_trailers = true;
                            Frame::trailers(trailers)
                        }
                        Err(frame) => frame,
                    },
                };
                if state.body.is_end_stream() {
                    state.over(End::Whole);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.source.0.borrow();
        state.end == End::Whole
            && state.kept.len() <= self.next
            && (state.trailers.is_none() || self.told_trailers)
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.source.0.borrow();
        let kept: u64 = state
            .kept
            .get(self.next..)
            .unwrap_or_default()
            .iter()
            .map(|bytes| bytes.len() as u64)
            .sum();
        let rest = state.body.size_hint();
        match rest.exact() {
            Some(exact) => SizeHint::with_exact(kept + exact),
            None => {
                let mut hint = SizeHint::new();
                hint.set_lower(kept + rest.lower());
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests;
