//! What is counted and logged of each request, in Istio's words.

pub(crate) mod flags;
pub(crate) mod labels;
pub(crate) mod recent;
mod record;

use std::sync::Arc;

use model::{MeshState, Reason, Security, ServiceKey};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::metrics::Metrics;
use telemetry::{Asked, ConnectionMetrics, Party, PartyLabels, Recorder, Reporter, Text};

pub(crate) use flags::Flag;
use labels::HttpLabels;
pub(crate) use labels::party_of_endpoint;
pub(crate) use record::{Record, grpc_status, is_grpc};

/// The metrics of this program.
#[derive(Debug)]
pub(crate) struct Telemetry {
    requests: Family<HttpLabels, Counter>,
    durations: Family<HttpLabels, Histogram>,
    request_bytes: Family<HttpLabels, Histogram>,
    response_bytes: Family<HttpLabels, Histogram>,
    /// Where connections that are no requests are told of.
    pub(crate) recorder: Recorder,
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
            recorder: Recorder::new(ConnectionMetrics::register(metrics)),
            connections: Gauge::default(),
            retries: Counter::default(),
            mirrored: Counter::default(),
        };
        metrics.register(|registry| {
            registry.register("istio_requests", "Requests", this.requests.clone());
            registry.register(
                "istio_request_duration_milliseconds",
                "Time from the head of a request to the end of its answer",
                this.durations.clone(),
            );
            registry.register(
                "istio_request_bytes",
                "Bytes of request bodies",
                this.request_bytes.clone(),
            );
            registry.register(
                "istio_response_bytes",
                "Bytes of answers' bodies",
                this.response_bytes.clone(),
            );
            registry.register(
                "keelson_waypoint_connections",
                "Connections of clients",
                this.connections.clone(),
            );
            registry.register(
                "keelson_waypoint_retries",
                "Attempts beyond the first",
                this.retries.clone(),
            );
            registry.register(
                "keelson_waypoint_mirrored",
                "Copies of requests that were sent",
                this.mirrored.clone(),
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

    /// Counts a connection that was not taken, and of which nothing is known.
    pub(crate) fn refuse(&self, reason: Reason) {
        self.recorder.metrics.refuse(Reporter::Waypoint, reason, 1);
    }
}

/// The labels of what goes through this waypoint. What agents prove is mutual TLS; a client without identity came in plain.
pub(crate) fn labels_of(source: &Party, destination: &Party, asked: &Asked) -> PartyLabels {
    let security = security_of(source);
    PartyLabels::new(
        Reporter::Waypoint,
        source.clone(),
        destination.clone(),
        asked.clone(),
        security,
    )
}

/// A service as labels name it.
pub(crate) fn asked_of(mesh: &MeshState, key: &ServiceKey) -> Asked {
    let name = mesh.service(key).map(|service| &service.name);
    let short = || key.hostname.split('.').next().unwrap_or_default().into();
    Asked {
        hostname: Text::new(&key.hostname),
        name: Text::new(&name.map_or_else(short, Arc::clone)),
        namespace: Text::new(&key.namespace),
    }
}

/// How the client is known.
pub(crate) fn security_of(source: &Party) -> Security {
    match source.principal.known() {
        Some(_) => Security::MutualTls,
        None => Security::None,
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
