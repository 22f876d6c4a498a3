//! Bodies on their way: of a request to an endpoint, of an answer to a client.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use super::pool::Lease;
use super::replay::{Attempt, Whole};
use crate::accept::Answering;
use crate::balance::count::Held;
use crate::balance::state::Active;
use crate::live::{Judged, until_refused};
use crate::reply::Reply;
use crate::telemetry::Record;
use crate::worker::Worker;

/// Why a body ends before its end.
#[derive(Debug, Error)]
pub(crate) enum BodyError {
    /// The connection that it comes from broke.
    #[error("the body ended early")]
    Broken(#[from] hyper::Error),
    /// The client had broken off before.
    #[error("the client broke off")]
    Client,
    /// Another attempt sends it now.
    #[error("another attempt has taken the request over")]
    Superseded,
    /// The time for the whole request is over.
    #[error("the time for the request is over")]
    Timeout,
    /// Policy has changed, and refuses it now.
    #[error("policy has come to refuse the request")]
    Policy,
}

/// The body of a request to an endpoint.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// There is none.
    Nothing,
    /// The client's.
    Client(Attempt<Incoming>),
    /// A copy of it.
    Copy(Whole),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Client(attempt) => Pin::new(attempt).poll_frame(cx),
            Self::Copy(whole) => Poll::Ready(whole.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Client(attempt) => attempt.is_end_stream(),
            Self::Copy(whole) => whole.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Client(attempt) => attempt.size_hint(),
            Self::Copy(whole) => SizeHint::with_exact(whole.bytes()),
        }
    }
}

/// What an answer holds until its end.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) _lease: Lease,
    pub(crate) _active: Active,
    pub(crate) _request: Option<Held>,
}

/// The body of an answer. The request is over, and is told of, when it is.
pub(crate) struct Answer {
    content: Content,
    /// Told at the end.
    record: Option<Box<Record>>,
    deadline: Option<Pin<Box<Sleep>>>,
    bytes: u64,
    /// What a change of policy is asked about, once the answer lasts.
    judged: Option<Box<(Rc<Worker>, Judged)>>,
    refused: Option<Pin<Box<dyn Future<Output = Reply>>>>,
    /// The client's connection is not idle meanwhile.
    _answering: Option<Answering>,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    Endpoint { body: Incoming, _kept: Kept },
}

impl Answer {
    /// An answer of our own.
    pub(crate) fn whole(bytes: impl Into<Bytes>, record: Option<Box<Record>>) -> Self {
        let bytes = bytes.into();
        Self {
            content: Content::Whole((!bytes.is_empty()).then_some(bytes)),
            record,
            deadline: None,
            bytes: 0,
            judged: None,
            refused: None,
            _answering: None,
        }
    }

    /// An endpoint's.
    pub(crate) fn endpoint(body: Incoming, kept: Kept, record: Box<Record>) -> Self {
        Self {
            content: Content::Endpoint { body, _kept: kept },
            record: Some(record),
            deadline: None,
            bytes: 0,
            judged: None,
            refused: None,
            _answering: None,
        }
    }

    /// The request is being answered as long as this lives.
    pub(crate) fn holding(mut self, answering: Answering) -> Self {
        self._answering = Some(answering);
        self
    }

    /// Whose answer it is, while there is more to come of it.
    pub(crate) fn endpoint_address(&self) -> Option<SocketAddr> {
        match &self.content {
            Content::Endpoint { body, .. } if !body.is_end_stream() => {
                self.record.as_ref()?.endpoint
            }
            _ => None,
        }
    }

    /// Policy that comes to refuse the request ends it.
    pub(crate) fn watch(&mut self, worker: &Rc<Worker>, judged: Judged) {
        self.judged = Some(Box::new((Rc::clone(worker), judged)));
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

    /// It has to be over by then.
    pub(crate) fn until(mut self, deadline: Option<Instant>) -> Self {
        // What is over already needs no clock.
        if let (Some(at), false) = (deadline, self.is_end_stream()) {
            self.deadline = Some(Box::pin(tokio::time::sleep_until(at)));
        }
        self
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
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = this.poll_content(cx) else {
            let error = ready!(this.poll_end(cx));
            this.end(Some(&error));
            return Poll::Ready(Some(Err(error)));
        };
        match &frame {
            None => this.end(None),
            Some(Err(error)) => {
                if let Some(record) = this.record.take() {
                    record.end(this.bytes, Some(error));
                }
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                } else if let (Some(trailers), Some(record)) =
                    (frame.trailers_ref(), &mut this.record)
                {
                    record.trailers(trailers);
                }
                if this.is_end_stream() {
                    this.end(None);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Endpoint { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Endpoint { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    /// A client that goes before the end is told of as well.
    fn drop(&mut self) {
        let whole = self.is_end_stream();
        let error = BodyError::Client;
        self.end((!whole).then_some(&error));
    }
}
