//! What is kept and told of each connection: who, whom, how much, how it ended and why.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use admin_api::{ConnectionEnd, Description, Direction, LiveView, Refused};
use model::{Flag, Identity, Reason, Security};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tunnel::copy::{Abort, CopyEnd, Counters, End};

use crate::telemetry::{
    metrics::{ConnectionMetrics, Cut, Flow, TcpLabels},
    ration::Rations,
};

/// Why a connection was refused, in a word and in a sentence.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The word, which has a flag.
    pub reason: Reason,
    /// What a person reads: object, rule, what would be right.
    pub text: String,
}

/// The last refusals.
#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<Refused>>);

/// Refusals that are kept.
const KEPT: usize = 512;
/// Bytes of a refusal's text.
const LONGEST_TEXT: usize = 2048;

impl Refusals {
    fn push(&self, refused: Refused) {
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            make_room(&mut kept);
        }
        kept.push_back(refused);
    }

    /// The last refusals, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Refused> {
        self.0.lock().iter().cloned().collect()
    }
}

/// Removes the oldest refusal of the pod that has most.
fn make_room(kept: &mut VecDeque<Refused>) {
    let mut of_pod: BTreeMap<&str, usize> = BTreeMap::new();
    for refused in &*kept {
        *of_pod.entry(&refused.connection.pod).or_default() += 1;
    }
    let most = of_pod.iter().max_by_key(|(_, count)| **count);
    let oldest = most.and_then(|(pod, _)| kept.iter().position(|one| one.connection.pod == **pod));
    kept.remove(oldest.unwrap_or(0));
}

/// Where connections are told of. One for the agent.
pub struct Recorder {
    /// Counts them.
    pub metrics: ConnectionMetrics,
    /// Keeps refusals.
    pub refusals: Refusals,
    /// How many of them are told of.
    pub rations: Rations,
}

impl Recorder {
    /// Tells of a connection that was refused or could not be made.
    pub fn refuse(&self, connection: &Description, labels: &TcpLabels, refusal: Refusal) {
        self.refuse_many(connection, labels, refusal, 1);
    }

    /// Tells of so many like this. All are counted; who is refused without end is told of now and then.
    pub fn refuse_many(
        &self,
        connection: &Description,
        labels: &TcpLabels,
        mut refusal: Refusal,
        count: u64,
    ) {
        let reason = refusal.reason;
        self.metrics.fail(labels, reason, count);
        let now = Instant::now();
        let Some(more) = self.rations.take(&connection.pod, reason, count, now) else {
            return;
        };
        shorten(&mut refusal.text);
        if more > 0 {
            refusal
                .text
                .push_str(&format!(" (and {more} more like it)"));
        }
        self.tell_refused(connection, refusal);
    }

    /// Tells of refusals that were withheld, where none of their kind has come since.
    pub fn settle(&self) {
        for (pod, reason, more) in self.rations.settle(Instant::now()) {
            tracing::info!(target: "access", pod, reason = reason.as_str(), more, "connections refused like those before");
        }
    }

    fn tell_refused(&self, connection: &Description, refusal: Refusal) {
        tracing::info!(
            target: "access",
            direction = connection.direction.as_str(),
            pod = connection.pod,
            src.addr = connection.source.addr.map(tracing::field::display),
            src.workload = connection.source.workload.as_deref(),
            src.namespace = connection.source.namespace.as_deref(),
            src.identity = connection.source.identity,
            dst.addr = connection.destination.addr.map(tracing::field::display),
            dst.workload = connection.destination.workload.as_deref(),
            dst.namespace = connection.destination.namespace.as_deref(),
            dst.identity = connection.destination.identity,
            dst.service = connection.service,
            flags = refusal.reason.flag().map(Flag::as_str),
            reason = refusal.reason.as_str(),
            error = refusal.text,
            "connection refused"
        );
        self.refusals.push(Refused {
            time_ms: milliseconds(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
            connection: connection.clone(),
            reason: refusal.reason,
            text: refusal.text,
        });
    }

    /// Tells of a direct connection that is over.
    pub fn closed_direct(
        &self,
        connection: &Description,
        request: u64,
        response: u64,
        age: Duration,
    ) {
        tracing::info!(
            target: "access",
            direction = connection.direction.as_str(),
            pod = connection.pod,
            src.addr = connection.source.addr.map(tracing::field::display),
            src.workload = connection.source.workload.as_deref(),
            src.namespace = connection.source.namespace.as_deref(),
            src.identity = connection.source.identity,
            dst.addr = connection.destination.addr.map(tracing::field::display),
            dst.workload = connection.destination.workload.as_deref(),
            dst.namespace = connection.destination.namespace.as_deref(),
            dst.identity = connection.destination.identity,
            dst.service = connection.service,
            security = connection.security.as_str(),
            bytes_sent = response,
            bytes_recv = request,
            duration_ms = milliseconds(age),
            "connection closed"
        );
    }

    /// Tells of a connection that is established.
    #[must_use]
    pub fn open(
        &self,
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
            flow: self.metrics.open(labels),
            metrics: self.metrics.clone(),
            reported: Cell::new((0, 0)),
            abort: Cell::new(Some(abort)),
            cause: RefCell::new(None),
        };
        (live, aborted)
    }
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
    metrics: ConnectionMetrics,
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
                self.metrics.cut(Cut::from(abort), 1);
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
            Direction::Outbound | Direction::Direct => {
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
        let connection = &self.connection;
        tracing::info!(
            target: "access",
            direction = connection.direction.as_str(),
            pod = connection.pod,
            src.addr = connection.source.addr.map(tracing::field::display),
            src.workload = connection.source.workload.as_deref(),
            src.namespace = connection.source.namespace.as_deref(),
            src.identity = connection.source.identity,
            dst.addr = connection.destination.addr.map(tracing::field::display),
            dst.hbone_addr = connection.tunnel.map(tracing::field::display),
            dst.workload = connection.destination.workload.as_deref(),
            dst.namespace = connection.destination.namespace.as_deref(),
            dst.identity = connection.destination.identity,
            dst.service = connection.service,
            security = connection.security.as_str(),
            bytes_sent = response,
            bytes_recv = request,
            duration_ms = milliseconds(self.started.elapsed()),
            end = end.end.ending().as_str(),
            error = cause.or_else(|| (end.end != End::Clean).then(|| end.end.to_string())),
            "connection closed"
        );
    }
}

/// What a peer said may stand in a text; much of it would be much memory, here and in the log's queue.
fn shorten(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT)
            .rev()
            .find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Party;

    fn recorder() -> Recorder {
        Recorder {
            metrics: ConnectionMetrics::default(),
            refusals: Refusals::default(),
            rations: Rations::default(),
        }
    }

    fn of_pod(pod: &str) -> Description {
        Description {
            direction: Direction::Inbound,
            pod: pod.to_owned(),
            source: ConnectionEnd::default(),
            destination: ConnectionEnd::default(),
            service: None,
            security: Security::None,
            tunnel: None,
        }
    }

    #[test]
    fn of_what_a_peer_says_at_length_the_beginning_is_kept() {
        let recorder = recorder();
        let connection = of_pod("shop/web");
        let labels = TcpLabels::new(
            "destination",
            Party::default(),
            Party::default(),
            None,
            Security::None,
        );
        for said in ["no such target".to_owned(), "\u{200b}".repeat(100_000)] {
            let refusal = Refusal {
                reason: Reason::BadRequest,
                text: said.clone(),
            };
            recorder.refuse(&connection, &labels, refusal);
            let kept = recorder.refusals.list().pop().unwrap().text;
            let beginning = kept.strip_suffix(" ...").unwrap_or(&kept);
            assert!(said.starts_with(beginning) && kept.len() < 2100, "{kept}");
        }
    }

    #[test]
    fn a_pod_that_is_refused_without_end_leaves_its_neighbours_their_places_on_the_page() {
        let refusals = Refusals::default();
        let refused = |pod: &str| Refused {
            time_ms: 0,
            connection: of_pod(pod),
            reason: Reason::PolicyDeny,
            text: String::new(),
        };
        for pod in ["shop/a", "shop/b", "shop/a"] {
            refusals.push(refused(pod));
        }
        for _ in 0..10 * KEPT {
            refusals.push(refused("shop/greedy"));
        }
        let kept = refusals.list();
        let pods: Vec<&str> = kept.iter().map(|one| &*one.connection.pod).collect();
        assert_eq!(pods.len(), KEPT);
        assert_eq!(pods[..4], ["shop/a", "shop/b", "shop/a", "shop/greedy"]);
    }
}
