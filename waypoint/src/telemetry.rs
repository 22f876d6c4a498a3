//! What is counted and logged of each request, in Istio's words.

pub(crate) mod flags;
pub(crate) mod labels;
mod record;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::metrics::Metrics;

pub(crate) use flags::Flag;
use labels::{HttpLabels, RefusedLabels, TcpLabels};
pub(crate) use record::{Record, grpc_status};

/// The metrics of this program.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    requests: Family<HttpLabels, Counter>,
    durations: Family<HttpLabels, Histogram>,
    request_bytes: Family<HttpLabels, Histogram>,
    response_bytes: Family<HttpLabels, Histogram>,
    tcp_opened: Family<TcpLabels, Counter>,
    tcp_closed: Family<TcpLabels, Counter>,
    tcp_sent: Family<TcpLabels, Counter>,
    tcp_received: Family<TcpLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    /// Connections of clients that are open.
    pub(crate) connections: Gauge,
    /// Attempts beyond the first.
    pub(crate) retries: Counter,
    /// Copies that were sent.
    pub(crate) mirrored: Counter,
}

/// The four metrics of a kind of requests, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    requests: Counter,
    durations: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

/// The counters of a TCP connection.
#[derive(Debug)]
pub(crate) struct TcpFlow {
    closed: Counter,
    sent: Counter,
    received: Counter,
}

impl Series {
    fn count(&self, milliseconds: f64, request_bytes: u64, response_bytes: u64) {
        self.requests.inc();
        self.durations.observe(milliseconds);
        #[expect(
            clippy::cast_precision_loss,
            reason = "buckets are coarser than what is lost"
        )]
        let (request, response) = (request_bytes as f64, response_bytes as f64);
        self.request_bytes.observe(request);
        self.response_bytes.observe(response);
    }
}

impl Telemetry {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let this = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            request_bytes: Family::new_with_constructor(sizes),
            response_bytes: Family::new_with_constructor(sizes),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            retries: Counter::default(),
            mirrored: Counter::default(),
        };
        let own = this.clone();
        metrics.register(move |registry| {
            registry.register("istio_requests", "Requests", own.requests);
            registry.register(
                "istio_request_duration_milliseconds",
                "Time from the head of a request to the end of its answer",
                own.durations,
            );
            registry.register(
                "istio_request_bytes",
                "Bytes of request bodies",
                own.request_bytes,
            );
            registry.register(
                "istio_response_bytes",
                "Bytes of answers' bodies",
                own.response_bytes,
            );
            registry.register(
                "istio_tcp_connections_opened",
                "TCP connections opened",
                own.tcp_opened,
            );
            registry.register(
                "istio_tcp_connections_closed",
                "TCP connections closed",
                own.tcp_closed,
            );
            registry.register(
                "istio_tcp_sent_bytes",
                "Bytes sent by the destination",
                own.tcp_sent,
            );
            registry.register(
                "istio_tcp_received_bytes",
                "Bytes received by the destination",
                own.tcp_received,
            );
            registry.register(
                "keelson_waypoint_refused_connections",
                "Connections that were not taken, by reason",
                own.refused,
            );
            registry.register(
                "keelson_waypoint_connections",
                "Connections of clients",
                own.connections,
            );
            registry.register(
                "keelson_waypoint_retries",
                "Attempts beyond the first",
                own.retries,
            );
            registry.register(
                "keelson_waypoint_mirrored",
                "Copies of requests that were sent",
                own.mirrored,
            );
        });
        this
    }

    /// The metrics of requests with these labels.
    pub(crate) fn series(&self, labels: &HttpLabels) -> Series {
        Series {
            requests: self.requests.get_or_create(labels).clone(),
            durations: self.durations.get_or_create(labels).clone(),
            request_bytes: self.request_bytes.get_or_create(labels).clone(),
            response_bytes: self.response_bytes.get_or_create(labels).clone(),
        }
    }

    /// Counts a TCP connection that is open.
    pub(crate) fn tcp(&self, labels: &TcpLabels) -> TcpFlow {
        self.tcp_opened.get_or_create(labels).inc();
        TcpFlow {
            closed: self.tcp_closed.get_or_create(labels).clone(),
            sent: self.tcp_sent.get_or_create(labels).clone(),
            received: self.tcp_received.get_or_create(labels).clone(),
        }
    }

    /// Counts a connection that was not taken.
    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

impl TcpFlow {
    /// The connection is over: bytes of the client, bytes of the destination.
    pub(crate) fn close(&self, received: u64, sent: u64) {
        self.received.inc_by(received);
        self.sent.inc_by(sent);
        self.closed.inc();
    }
}

fn durations() -> Histogram {
    // Istio's buckets, in milliseconds.
    Histogram::new([
        0.5,
        1.0,
        5.0,
        10.0,
        25.0,
        50.0,
        100.0,
        250.0,
        500.0,
        1000.0,
        2500.0,
        5000.0,
        10_000.0,
        30_000.0,
        60_000.0,
        300_000.0,
        600_000.0,
        1_800_000.0,
        3_600_000.0,
    ])
}

fn sizes() -> Histogram {
    Histogram::new([
        1.0,
        10.0,
        100.0,
        1000.0,
        10_000.0,
        100_000.0,
        1_000_000.0,
        10_000_000.0,
    ])
}
