//! The body of an answer on its way to a client.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::answers::{Answers, Place};
use super::body::BodyError;
use super::pool::Lease;
use crate::accept::{Abandoned, Answering};
use crate::balance::count::Held;
use crate::balance::state::Active;
use crate::live::{Judged, until_refused};
use crate::reply::Reply;
use crate::telemetry::Record;
use crate::worker::Worker;

/// What an answer holds until its end.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) _lease: Lease,
    pub(crate) _active: Active,
    pub(crate) _request: Option<Held>,
}

/// The body of an answer. The request is over, and is told of, when it is.
pub(crate) struct Answer {
    state: Rc<RefCell<State>>,
    /// Where it is found while its client has not taken all of it.
    place: Option<Place>,
}

/// What is known of an answer.
pub(super) struct State {
    content: Content,
    /// Told at the end.
    record: Option<Box<Record>>,
    deadline: Option<Pin<Box<Sleep>>>,
    bytes: u64,
    /// What a change of policy is asked about, once the answer lasts.
    judged: Option<Box<(Rc<Worker>, Judged)>>,
    refused: Option<Pin<Box<dyn Future<Output = Reply>>>>,
    /// The client's connection is not idle meanwhile.
    answering: Option<Answering>,
    /// The client does not take it.
    _abandoned: Option<Abandoned>,
    /// Dropped with the answer: then the rest of the request is waited for.
    _over: Option<oneshot::Sender<()>>,
    /// When the client's connection has asked for more, by the clock of [`Answers`].
    asked: u32,
    /// There was nothing more then: it is the endpoint that is waited for.
    waits: bool,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    Endpoint {
        body: Incoming,
        _kept: Kept,
    },
    /// The client has not taken it for too long.
    GivenUp,
}

impl Answer {
    fn new(content: Content, record: Option<Box<Record>>) -> Self {
        let state = State {
            content,
            record,
            deadline: None,
            bytes: 0,
            judged: None,
            refused: None,
            answering: None,
            _abandoned: None,
            _over: None,
            asked: 0,
            waits: false,
        };
        Self {
            state: Rc::new(RefCell::new(state)),
            place: None,
        }
    }

    /// An answer of our own.
    pub(crate) fn whole(bytes: impl Into<Bytes>, record: Option<Box<Record>>) -> Self {
        let bytes = bytes.into();
        Self::new(Content::Whole((!bytes.is_empty()).then_some(bytes)), record)
    }

    /// An endpoint's.
    pub(crate) fn endpoint(body: Incoming, kept: Kept, record: Box<Record>) -> Self {
        Self::new(Content::Endpoint { body, _kept: kept }, Some(record))
    }

    /// The request is being answered as long as this lives, and as long as the client takes something of it.
    pub(crate) fn holding(mut self, answering: Answering, answers: &Rc<Answers>) -> Self {
        let mut state = self.state.borrow_mut();
        state.answering = Some(answering);
        if !state.content.is_over() {
            state.asked = answers.now();
            self.place = Some(Answers::keep_watch(answers, &self.state));
        }
        drop(state);
        self
    }

    /// Whose answer it is, while there is more to come of it.
    pub(crate) fn endpoint_address(&self) -> Option<SocketAddr> {
        let state = self.state.borrow();
        match &state.content {
            Content::Endpoint { body, .. } if !body.is_end_stream() => {
                state.record.as_ref()?.endpoint
            }
            _ => None,
        }
    }

    /// Policy that comes to refuse the request ends it.
    pub(crate) fn watch(&mut self, worker: &Rc<Worker>, judged: Judged) {
        self.state.borrow_mut().judged = Some(Box::new((Rc::clone(worker), judged)));
    }

    /// Dropped when the answer is over.
    pub(crate) fn followed_by(&mut self, over: oneshot::Sender<()>) {
        self.state.borrow_mut()._over = Some(over);
    }

    /// It has to be over by then.
    pub(crate) fn until(self, deadline: Option<Instant>) -> Self {
        // What is over already needs no clock.
        if let (Some(at), false) = (deadline, self.is_end_stream()) {
            let clock = Box::pin(tokio::time::sleep_until(at));
            self.state.borrow_mut().deadline = Some(clock);
        }
        self
    }
}

impl Content {
    fn is_over(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Endpoint { body, .. } => body.is_end_stream(),
            Self::GivenUp => false,
        }
    }
}

impl State {
    /// Whether the client has taken nothing since, although there may be something.
    pub(super) fn is_untaken_since(&self, then: u32) -> bool {
        !self.waits && self.asked <= then && !matches!(self.content, Content::GivenUp)
    }

    /// Frees the endpoint of a client that takes nothing.
    pub(super) fn give_up(&mut self) {
        self.end(Some(&BodyError::Idle));
        self.deadline = None;
        self.judged = None;
        self.refused = None;
        self._abandoned = self.answering.take().map(Answering::abandon);
        self.content = Content::GivenUp;
    }

    /// Why it may not go on, if it may not: while nothing comes.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(BodyError::Timeout);
        }
        if let Some(asked) = self.judged.take() {
            let refused = async move { until_refused(&asked.0, &asked.1).await };
            self.refused = Some(Box::pin(refused));
        }
        let Some(refused) = &mut self.refused else {
            return Poll::Pending;
        };
        let reply = ready!(refused.as_mut().poll(cx));
        if let Some(record) = &mut self.record {
            record.reason = Some((reply.reason, reply.text));
        }
        Poll::Ready(BodyError::Policy)
    }

    fn end(&mut self, error: Option<&BodyError>) {
        if let Some(record) = self.record.take() {
            record.end(self.bytes, error);
        }
    }

    fn poll_content(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Endpoint { body, .. } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
            Content::GivenUp => Poll::Ready(Some(Err(BodyError::Idle))),
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = self.poll_content(cx) else {
            let error = ready!(self.poll_end(cx));
            self.end(Some(&error));
            return Poll::Ready(Some(Err(error)));
        };
        match &frame {
            None => self.end(None),
            Some(Err(error)) => self.end(Some(error)),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes += data.len() as u64;
                } else if let (Some(trailers), Some(record)) =
                    (frame.trailers_ref(), &mut self.record)
                {
                    record.trailers(trailers);
                }
                if self.content.is_over() {
                    self.end(None);
                }
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.state.borrow_mut();
        let frame = state.poll_frame(cx);
        state.waits = frame.is_pending();
        if let Some(place) = &self.place {
            state.asked = place.now();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.state.borrow().content.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state.borrow().content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Endpoint { body, .. } => body.size_hint(),
            Content::GivenUp => SizeHint::default(),
        }
    }
}

impl Drop for State {
    /// A client that goes before the end is told of as well.
    fn drop(&mut self) {
        let whole = self.content.is_over();
        let error = BodyError::Client;
        self.end((!whole).then_some(&error));
    }
}
