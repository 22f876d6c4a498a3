//! The metrics of connections.

use model::{Ending, Flag, Reason};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
};
use runtime::metrics::Metrics;

use crate::labels::{NO_FLAGS, Reporter, TcpLabels};

/// Counts connections.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
    failed: Family<TcpLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    cut: Family<CutLabels, Counter>,
    accept_failures: Counter,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RefusedLabels {
    reporter: Reporter,
    reason: Word,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CutLabels {
    reason: Word,
}

/// A word of the vocabulary in [`model`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Word(&'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        std::fmt::Write::write_str(encoder, self.0)
    }
}

/// The endings that cut a connection which neither side wanted to end.
const CUTS: [Ending; 5] = [
    Ending::Drain,
    Ending::Policy,
    Ending::Limit,
    Ending::Older,
    Ending::Silence,
];

/// The counters of connections with one set of labels, looked up once.
#[derive(Clone, Debug)]
pub struct Flow {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

impl ConnectionMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            let this = Self::default();
            registry.register(
                "istio_tcp_connections_opened",
                "Connections opened",
                this.opened.clone(),
            );
            registry.register(
                "istio_tcp_connections_closed",
                "Connections closed",
                this.closed.clone(),
            );
            registry.register(
                "istio_tcp_sent_bytes",
                "Bytes sent by the destination, as Istio counts: the response",
                this.sent.clone(),
            );
            registry.register(
                "istio_tcp_received_bytes",
                "Bytes received by the destination: the request",
                this.received.clone(),
            );
            registry.register(
                "istio_tcp_connections_failed",
                "Connections refused or not established, by response flags",
                this.failed.clone(),
            );
            registry.register(
                "keelson_connections_refused",
                "Connections refused, by reason",
                this.refused.clone(),
            );
            registry.register(
                "keelson_connections_cut",
                "Established connections that were reset although neither side had ended them, by reason",
                this.cut.clone(),
            );
            // All reasons are there from the start: a rate needs a value before the first.
            CUTS.iter().for_each(|ending| this.cut(*ending, 0));
            registry.register(
                "keelson_accept_failures",
                "Times that the kernel would not hand over a connection, for want of descriptors or memory",
                this.accept_failures.clone(),
            );
            this
        })
    }

    /// Counts an opened connection and gives the counters for the rest of its life.
    #[must_use]
    pub fn open(&self, labels: &TcpLabels) -> Flow {
        let flow = self.flow(labels);
        flow.opened.inc();
        flow
    }

    /// The counters of connections with these labels; nothing is counted yet.
    #[must_use]
    pub fn flow(&self, labels: &TcpLabels) -> Flow {
        Flow {
            opened: self.opened.get_or_create(labels).clone(),
            closed: self.closed.get_or_create(labels).clone(),
            sent: self.sent.get_or_create(labels).clone(),
            received: self.received.get_or_create(labels).clone(),
        }
    }

    /// Counts established connections that were cut, with the ending that says why.
    pub fn cut(&self, ending: Ending, connections: u64) {
        let reason = Word(ending.as_str());
        self.cut
            .get_or_create(&CutLabels { reason })
            .inc_by(connections);
    }

    /// Counts an accept that failed.
    pub fn accept_failed(&self) {
        self.accept_failures.inc();
    }

    /// Counts connections that were not established. Where the labels have no flag, they get that of the reason.
    pub fn fail(&self, labels: &TcpLabels, reason: Reason, connections: u64) {
        if labels.response_flags == NO_FLAGS {
            let labels = TcpLabels {
                response_flags: reason.flag().map_or(NO_FLAGS, Flag::as_str).into(),
                ..labels.clone()
            };
            self.failed.get_or_create(&labels).inc_by(connections);
        } else {
            self.failed.get_or_create(labels).inc_by(connections);
        }
        self.refuse(labels.parties.reporter, reason, connections);
    }

    /// Counts connections of which nothing is known but that they were refused.
    pub fn refuse(&self, reporter: Reporter, reason: Reason, connections: u64) {
        let reason = Word(reason.as_str());
        self.refused
            .get_or_create(&RefusedLabels { reporter, reason })
            .inc_by(connections);
    }
}

impl Flow {
    /// Counts an opened connection.
    pub fn open(&self) {
        self.opened.inc();
    }

    /// Adds bytes: `request` from the client, `response` from the server.
    pub fn moved(&self, request: u64, response: u64) {
        self.received.inc_by(request);
        self.sent.inc_by(response);
    }

    /// Counts the end.
    pub fn close(&self) {
        self.closed.inc();
    }
}
