//! What the agent counts, with Istio's names and labels.

use std::{
    fmt::Write,
    hash::{Hash, Hasher},
    sync::Arc,
};

use model::{Service, Workload};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use runtime::metrics::Metrics;
use tunnel::copy::Abort;

/// A label text, shared with whoever has it already. Istio writes `unknown` for what is not known.
#[derive(Clone, Debug)]
pub struct Text(Option<Arc<str>>);

impl Text {
    /// The text of an unknown thing.
    #[must_use]
    pub fn unknown() -> Self {
        Self(None)
    }

    /// A text; empty becomes `unknown`.
    #[must_use]
    pub fn new(text: &Arc<str>) -> Self {
        Self((!text.is_empty()).then(|| Arc::clone(text)))
    }

    fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("unknown")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// Labels of Istio's TCP metrics (istio.io, Standard Metrics; reference implementation: ztunnel).
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct TcpLabels {
    /// `source` or `destination`: which side counts.
    pub reporter: &'static str,
    /// Name of the workload that opened the connection.
    pub source_workload: Text,
    /// Its canonical service.
    pub source_canonical_service: Text,
    /// Its canonical revision.
    pub source_canonical_revision: Text,
    /// Its namespace.
    pub source_workload_namespace: Text,
    /// Its SPIFFE identity.
    pub source_principal: Text,
    /// Its `app`.
    pub source_app: Text,
    /// Its version.
    pub source_version: Text,
    /// Its cluster.
    pub source_cluster: Text,
    /// Host name of the service that was asked for.
    pub destination_service: Text,
    /// Name of that service.
    pub destination_service_name: Text,
    /// Namespace of that service.
    pub destination_service_namespace: Text,
    /// Name of the workload that is reached.
    pub destination_workload: Text,
    /// Its canonical service.
    pub destination_canonical_service: Text,
    /// Its canonical revision.
    pub destination_canonical_revision: Text,
    /// Its namespace.
    pub destination_workload_namespace: Text,
    /// Its SPIFFE identity.
    pub destination_principal: Text,
    /// Its `app`.
    pub destination_app: Text,
    /// Its version.
    pub destination_version: Text,
    /// Its cluster.
    pub destination_cluster: Text,
    /// Always `tcp`.
    pub request_protocol: &'static str,
    /// `-`, or why it failed.
    pub response_flags: &'static str,
    /// `mutual_tls` or `none` as the destination saw it, `unknown` to the source.
    pub connection_security_policy: &'static str,
}

/// One side of a connection for its labels.
#[derive(Clone, Copy, Default)]
pub struct Party<'a> {
    /// The workload, if it is known.
    pub workload: Option<&'a Workload>,
    /// The proved identity, if there is one.
    pub principal: Option<&'a model::Identity>,
}

impl TcpLabels {
    /// The labels of a connection from `source` to `destination`.
    #[must_use]
    pub fn new(
        reporter: &'static str,
        source: Party<'_>,
        destination: Party<'_>,
        service: Option<&Service>,
        security: &'static str,
    ) -> Self {
        let of = |party: Party<'_>, field: fn(&Workload) -> &Arc<str>| {
            party
                .workload
                .map_or_else(Text::unknown, |w| Text::new(field(w)))
        };
        let principal = |party: Party<'_>| {
            party.principal.map_or_else(Text::unknown, |identity| {
                Text::new(&Arc::from(identity.to_string()))
            })
        };
        let service_text = |field: fn(&Service) -> &Arc<str>| {
            service.map_or_else(Text::unknown, |s| Text::new(field(s)))
        };
        Self {
            reporter,
            source_workload: of(source, |w| &w.workload_name),
            source_canonical_service: of(source, |w| &w.canonical_name),
            source_canonical_revision: of(source, |w| &w.canonical_revision),
            source_workload_namespace: of(source, |w| &w.namespace),
            source_principal: principal(source),
            source_app: of(source, |w| &w.canonical_name),
            source_version: of(source, |w| &w.canonical_revision),
            source_cluster: of(source, |w| &w.cluster_id),
            destination_service: service_text(|s| &s.hostname),
            destination_service_name: service_text(|s| &s.name),
            destination_service_namespace: service_text(|s| &s.namespace),
            destination_workload: of(destination, |w| &w.workload_name),
            destination_canonical_service: of(destination, |w| &w.canonical_name),
            destination_canonical_revision: of(destination, |w| &w.canonical_revision),
            destination_workload_namespace: of(destination, |w| &w.namespace),
            destination_principal: principal(destination),
            destination_app: of(destination, |w| &w.canonical_name),
            destination_version: of(destination, |w| &w.canonical_revision),
            destination_cluster: of(destination, |w| &w.cluster_id),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: security,
        }
    }
}

/// Counts connections.
#[derive(Clone, Default)]
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
    reporter: &'static str,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CutLabels {
    reason: &'static str,
}

/// Why the agent ended an established connection that neither side wanted to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// It outlived the drain deadline of an agent that stops, or its pod has left the mesh or is gone.
    Drain,
    /// Policy has come to refuse it.
    Policy,
    /// A limit asked for it.
    Limit,
}

impl Cut {
    const ALL: [Self; 3] = [Self::Drain, Self::Policy, Self::Limit];

    fn labels(self) -> CutLabels {
        let reason = match self {
            Self::Drain => "drain",
            Self::Policy => "policy",
            Self::Limit => "limit",
        };
        CutLabels { reason }
    }
}

impl From<Abort> for Cut {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::Policy => Self::Policy,
            Abort::Drain => Self::Drain,
            // `Limit`, and what may be added there.
            _ => Self::Limit,
        }
    }
}

/// The counters of one connection, looked up once.
#[derive(Clone)]
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
            Cut::ALL.iter().for_each(|reason| this.cut(*reason, 0));
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

    /// Counts established connections that were cut.
    pub fn cut(&self, reason: Cut, connections: u64) {
        self.cut.get_or_create(&reason.labels()).inc_by(connections);
    }

    /// Counts an accept that failed.
    pub fn accept_failed(&self) {
        self.accept_failures.inc();
    }

    /// Counts a connection that was not established.
    pub fn fail(&self, labels: &TcpLabels, flags: &'static str, reason: &'static str) {
        let labels = TcpLabels {
            response_flags: flags,
            ..labels.clone()
        };
        self.failed.get_or_create(&labels).inc();
        self.refused
            .get_or_create(&RefusedLabels {
                reporter: labels.reporter,
                reason,
            })
            .inc();
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

/// How enrolment stands.
#[derive(Clone, Default)]
pub struct EnrolmentMetrics {
    /// Pods that should be captured and are not.
    pub missing: Gauge,
    /// Pods that are captured.
    pub captured: Gauge,
    /// Captured pods whose source addresses are not guarded by our own program.
    pub unguarded: Gauge,
    /// How often the audit found capture undone and repaired it.
    pub repaired: Counter,
    /// How often the list of pods could not be kept for the next agent.
    pub unkept: Counter,
    kept: Family<KeptLabels, Counter>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KeptLabels {
    reason: &'static str,
}

impl EnrolmentMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            let this = Self::default();
            registry.register(
                "keelson_pods_wanted_not_captured",
                "Pods of this node that belong to the mesh and are not captured",
                this.missing.clone(),
            );
            registry.register(
                "keelson_pods_captured",
                "Captured pods of this node",
                this.captured.clone(),
            );
            registry.register(
                "keelson_pods_unguarded",
                "Captured pods of this node whose source addresses are not guarded by the agent's own program",
                this.unguarded.clone(),
            );
            registry.register(
                "keelson_capture_repaired",
                "Times the audit found capture undone and repaired it",
                this.repaired.clone(),
            );
            registry.register(
                "keelson_pod_list_not_kept",
                "Times the list of pods could not be written for the next agent",
                this.unkept.clone(),
            );
            registry.register(
                "keelson_pods_out_of_reach",
                "Pods of an earlier agent that could not be entered and were kept as they are, by reason",
                this.kept.clone(),
            );
            this
        })
    }

    /// Counts a pod of an earlier agent that cannot be entered and is kept as it is.
    pub fn kept(&self, reason: &'static str) {
        self.kept.get_or_create(&KeptLabels { reason }).inc();
    }
}

/// Publishes the kernel half's counters at each scrape.
pub fn register_kernel(metrics: &Metrics, kernel: Arc<crate::bpf::Kernel>) {
    metrics.register(|registry| registry.register_collector(Box::new(KernelCollector(kernel))));
}

struct KernelCollector(Arc<crate::bpf::Kernel>);

impl std::fmt::Debug for KernelCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelCollector")
    }
}

impl prometheus_client::collector::Collector for KernelCollector {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let none: Option<&Unit> = None;
        let mut family = encoder.encode_descriptor(
            "keelson_kernel_decisions",
            "Decisions of the eBPF programs, by reason",
            none,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (reason, count) in self.0.counters() {
            let labels = [("reason", reason.as_str())];
            let metric = family.encode_family(&labels)?;
            let counter = prometheus_client::metrics::counter::ConstCounter::new(count);
            prometheus_client::encoding::EncodeMetric::encode(&counter, metric)?;
        }
        self.maps(&mut encoder)
    }
}

impl KernelCollector {
    /// How full the maps are.
    fn maps(
        &self,
        encoder: &mut prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeMetric as _;
        use prometheus_client::metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge};
        let gauge = |number: i64| ConstGauge::new(number);
        let mut family = encoder.encode_descriptor(
            "keelson_map_entries",
            "Entries of the kernel half's maps",
            None,
            MetricType::Gauge,
        )?;
        for (map, entries) in self.0.entries() {
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            gauge(entries).encode(family.encode_family(&[("map", map)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "keelson_map_capacity",
            "Entries that the kernel half's maps have room for",
            None,
            MetricType::Gauge,
        )?;
        for (map, entries) in self.0.capacities() {
            gauge(entries.into()).encode(family.encode_family(&[("map", map)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "keelson_map_refused",
            "Entries that did not fit into the kernel half's maps",
            None,
            MetricType::Counter,
        )?;
        for (map, entries) in self.0.refused() {
            ConstCounter::new(entries).encode(family.encode_family(&[("map", map)])?)?;
        }
        Ok(())
    }
}
