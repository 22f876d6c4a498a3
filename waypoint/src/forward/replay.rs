//! The body of a request, so that it can be sent again: what has passed is kept as long as it is small.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

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
    /// Who waits for the end.
    waiting: Option<Waker>,
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
            waiting: None,
        })))
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
            state.waiting = Some(cx.waker().clone());
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
        if let Some(waker) = self.waiting.take() {
            waker.wake();
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
        match ready!(Pin::new(&mut state.body).poll_frame(cx)) {
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
mod tests {
    use std::collections::VecDeque;

    use http_body_util::BodyExt as _;

    use super::*;

    struct Pieces(VecDeque<Result<Frame<Bytes>, BodyError>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn pieces(texts: &[&'static str]) -> Pieces {
        let data = texts
            .iter()
            .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Pieces(data.chain([Ok(Frame::trailers(trailers))]).collect())
    }

    #[tokio::test]
    async fn a_small_body_is_sent_again_with_its_trailers() {
        let source = Source::new(pieces(&["one", "two"]), 16);
        let mut first = source.attempt();
        first.frame().await.unwrap().unwrap();
        for _ in 0..2 {
            assert!(source.is_replayable());
            let whole = source.attempt().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(whole.to_bytes(), "onetwo");
        }
        let late = first.frame().await.unwrap();
        assert!(matches!(late, Err(BodyError::Superseded)));
        assert_eq!(source.received().bytes(), 6);
    }

    #[tokio::test]
    async fn a_large_body_passes_once() {
        let source = Source::new(pieces(&["one", "two", "three"]), 5);
        let whole = source.attempt().collect().await.unwrap();
        assert_eq!(whole.to_bytes(), "onetwothree");
        assert!(!source.is_replayable());
    }
}
