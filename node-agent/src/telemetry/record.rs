//! The established connections that the agent carries: who, whom, how much, how they end and why.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

pub use admin_api::{ConnectionEnd, Description, Direction, LiveView, Refused};
use model::{Identity, Security};
pub use telemetry::{Closed, Recorder, Refusal, Refusals, milliseconds};
use telemetry::{Flow, TcpLabels};
use tokio::sync::oneshot;
use tunnel::copy::{Abort, CopyEnd, Counters, End};

/// Begins the record of a connection that is established.
#[must_use]
pub fn open(
    recorder: &Arc<Recorder>,
    connection: Description,
    labels: &TcpLabels,
    authority: Option<Authority>,
) -> (Live, oneshot::Receiver<Abort>) {
    let (abort, aborted) = oneshot::channel();
    let live = Live {
        connection,
        authority,
        counters: Arc::new(Counters::default()),
        started: Instant::now(),
        flow: recorder.metrics.open(labels),
        recorder: Arc::clone(recorder),
        reported: Cell::new((0, 0)),
        abort: Cell::new(Some(abort)),
        cause: RefCell::new(None),
    };
    (live, aborted)
}

/// What a policy is asked about a live inbound connection when policy changes.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The proved identity of the client.
    pub source: Option<Identity>,
    /// The client's address.
    pub source_ip: std::net::IpAddr,
    /// Where it goes.
    pub destination: SocketAddr,
}

/// An established connection.
pub struct Live {
    /// What it is.
    pub connection: Description,
    /// Whom to ask about again when policy changes.
    pub authority: Option<Authority>,
    /// Bytes so far.
    pub counters: Arc<Counters>,
    started: Instant,
    flow: Flow,
    recorder: Arc<Recorder>,
    reported: Cell<(u64, u64)>,
    abort: Cell<Option<oneshot::Sender<Abort>>>,
    cause: RefCell<Option<String>>,
}

impl Live {
    /// Ends the connection with a reset to both sides, for a cause that the log names.
    pub fn end(&self, abort: Abort, cause: String) {
        if let Some(sender) = self.abort.take() {
            self.cause.replace(Some(cause));
            // A connection that ends by itself at this moment needs no ending.
            if sender.send(abort).is_ok() {
                self.recorder.metrics.cut(abort.ending(), 1);
            }
        }
    }

    /// Whether it came in a peer's tunnel.
    #[must_use]
    pub fn in_tunnel(&self) -> bool {
        let connection = &self.connection;
        connection.direction == Direction::Inbound && connection.security == Security::MutualTls
    }

    /// Bytes from the client and from the server so far.
    fn moved(&self) -> (u64, u64) {
        match self.connection.direction {
            Direction::Outbound | Direction::Direct | Direction::Waypoint => {
                (self.counters.sent(), self.counters.received())
            }
            // The first side of an inbound copy is the application.
            Direction::Inbound => (self.counters.received(), self.counters.sent()),
        }
    }

    /// Brings the metrics up to date; called from time to time and at the end.
    pub fn report(&self) {
        let (request, response) = self.moved();
        let (old_request, old_response) = self.reported.replace((request, response));
        self.flow.moved(
            request.saturating_sub(old_request),
            response.saturating_sub(old_response),
        );
    }

    /// How it stands.
    #[must_use]
    pub fn view(&self) -> LiveView {
        let (request_bytes, response_bytes) = self.moved();
        LiveView {
            connection: self.connection.clone(),
            older_than_capture: false,
            request_bytes,
            response_bytes,
            age_ms: milliseconds(self.started.elapsed()),
        }
    }

    /// Tells how it ended.
    pub fn close(&self, end: &CopyEnd) {
        self.report();
        self.flow.close();
        let (request, response) = self.moved();
        let cause = self.cause.borrow().clone();
        let closed = Closed {
            request,
            response,
            age: self.started.elapsed(),
            ending: Some(end.end.ending()),
            error: cause.or_else(|| (end.end != End::Clean).then(|| end.end.to_string())),
        };
        self.recorder.closed(&self.connection, closed);
    }
}
