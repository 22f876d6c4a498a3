//! What the agent counts, with Istio's names and labels.

use std::{
    fmt::Write,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{Ending, Flag, Reason, Security, Service, Workload};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use runtime::metrics::Metrics;
use tunnel::copy::Abort;

use crate::telemetry::refusal;

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
    /// A word of [`Security`] as the destination saw it, `unknown` to the source.
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
        security: Security,
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
            connection_security_policy: security.as_str(),
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
    /// It is older than its pod's capture and policy does not allow it to a peer without identity, or it
    /// was still being opened then.
    Older,
    /// The far side has said nothing for as long as the application waits.
    Silence,
}

impl Cut {
    const ALL: [Self; 5] = [
        Self::Drain,
        Self::Policy,
        Self::Limit,
        Self::Older,
        Self::Silence,
    ];

    fn labels(self) -> CutLabels {
        let ending = match self {
            Self::Drain => Ending::Drain,
            Self::Policy => Ending::Policy,
            Self::Limit => Ending::Limit,
            Self::Older => Ending::Older,
            Self::Silence => Ending::Silence,
        };
        CutLabels {
            reason: ending.as_str(),
        }
    }
}

impl From<Abort> for Cut {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::Policy => Self::Policy,
            Abort::Drain => Self::Drain,
            Abort::Silence => Self::Silence,
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

    /// Counts connections that were not established.
    pub fn fail(&self, labels: &TcpLabels, reason: Reason, connections: u64) {
        let labels = TcpLabels {
            response_flags: reason.flag().map_or("-", Flag::as_str),
            ..labels.clone()
        };
        self.failed.get_or_create(&labels).inc_by(connections);
        self.refused
            .get_or_create(&RefusedLabels {
                reporter: labels.reporter,
                reason: reason.as_str(),
            })
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

/// How enrolment stands.
#[derive(Clone, Default)]
pub struct EnrolmentMetrics {
    /// Pods that should be captured and are not.
    pub missing: Gauge,
    /// Pods that are captured.
    pub captured: Gauge,
    /// Captured pods whose source addresses are not guarded by our own program.
    pub unguarded: Gauge,
    /// Pods that were let go because their namespace was deserted.
    pub deserted: Counter,
    /// Addresses that the cluster gave to two pods of the node.
    pub disputed: Gauge,
    repaired: Family<RepairedLabels, Counter>,
    refused: Family<KeptLabels, Counter>,
    /// Captured pods whose interfaces are not all behind the wall.
    pub unwalled: Gauge,
    failed: Family<KeptLabels, Counter>,
    /// How often the list of pods could not be kept for the next agent.
    pub unkept: Counter,
    kept: Family<KeptLabels, Counter>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KeptLabels {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RepairedLabels {
    kind: &'static str,
}

/// What the audit found undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repaired {
    /// A routing rule came before ours, or ours was another or gone.
    Rule,
    /// Our routing table held something else than our route.
    Route,
    /// A setting of the namespace.
    Setting,
    /// What is counted of the listening ports.
    Listening,
    /// A program of the pod was not attached, or its state was another.
    Programs,
}

impl Repaired {
    const ALL: [Self; 5] = [
        Self::Rule,
        Self::Route,
        Self::Setting,
        Self::Listening,
        Self::Programs,
    ];

    fn labels(self) -> RepairedLabels {
        let kind = match self {
            Self::Rule => "rule",
            Self::Route => "route",
            Self::Setting => "setting",
            Self::Listening => "listening",
            Self::Programs => "programs",
        };
        RepairedLabels { kind }
    }
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
                "keelson_pods_without_wall",
                "Captured pods of this node of which some interface is not behind the second wall",
                this.unwalled.clone(),
            );
            registry.register(
                "keelson_capture_failed",
                "Times that a pod could not be captured, by reason; repeated attempts with the same outcome count once",
                this.failed.clone(),
            );
            registry.register(
                "keelson_capture_repaired",
                "Times the audit found capture undone and repaired it, by what it was",
                this.repaired.clone(),
            );
            // All kinds are there from the start: a rate needs a value before the first.
            for kind in Repaired::ALL {
                drop(this.repaired.get_or_create(&kind.labels()));
            }
            registry.register(
                "keelson_addresses_disputed",
                "Addresses that the cluster gave to more than one pod of this node; they are nobody's",
                this.disputed.clone(),
            );
            registry.register(
                "keelson_pods_deserted",
                "Pods that were let go because their network namespace was gone and the CNI had said nothing",
                this.deserted.clone(),
            );
            registry.register(
                "keelson_capture_refused",
                "Pods that were found running and not captured although they should be, by reason",
                this.refused.clone(),
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

    /// Counts what the audit put right.
    pub fn repaired(&self, kind: Repaired) {
        self.repaired.get_or_create(&kind.labels()).inc();
    }

    /// Counts a running pod that is not captured although it should be.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&KeptLabels { reason }).inc();
    }

    /// Counts a pod that could not be captured.
    pub fn failed(&self, reason: &'static str) {
        self.failed.get_or_create(&KeptLabels { reason }).inc();
    }

    /// Counts a pod of an earlier agent that cannot be entered and is kept as it is.
    pub fn kept(&self, reason: &'static str) {
        self.kept.get_or_create(&KeptLabels { reason }).inc();
    }
}

/// Counts how often the calling thread, the control thread, was kept from its work for longer than
/// `STALL`: configuration, certificates, CNI and these pages wait meanwhile, and connections do not.
pub async fn count_stalls(stalls: Counter) {
    loop {
        let before = Instant::now();
        tokio::time::sleep(STALL_LOOK).await;
        let late = before.elapsed().saturating_sub(STALL_LOOK);
        if late >= STALL {
            stalls.inc();
            tracing::warn!(?late, "the control thread was kept from its work");
        }
    }
}

/// Registers the counter of [`count_stalls`].
#[must_use]
pub fn stalls(metrics: &Metrics) -> Counter {
    metrics.register(|registry| {
        let stalls = Counter::default();
        registry.register(
            "keelson_control_stalls",
            "Times that the control thread was kept from its work for 2 s or longer",
            stalls.clone(),
        );
        stalls
    })
}

const STALL: Duration = Duration::from_secs(2);
const STALL_LOOK: Duration = Duration::from_millis(500);

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
            "Decisions of the eBPF programs, by reason; with what was refused and told of nowhere else",
            none,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (reason, count) in self.0.counters() {
            let refusal = refusal::of(reason).map_or("", Reason::as_str);
            let labels = [("reason", reason.as_str()), ("refusal", refusal)];
            let labels = if refusal.is_empty() {
                &labels[..1]
            } else {
                &labels[..]
            };
            let metric = family.encode_family(&labels)?;
            let counter = prometheus_client::metrics::counter::ConstCounter::new(count);
            prometheus_client::encoding::EncodeMetric::encode(&counter, metric)?;
        }
        self.walls(&mut encoder)?;
        self.maps(&mut encoder)?;
        self.workers(&mut encoder)
    }
}

impl KernelCollector {
    /// How long ago each worker was alive last.
    fn workers(
        &self,
        encoder: &mut prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeMetric as _;
        use prometheus_client::metrics::{MetricType, gauge::ConstGauge};
        let mut family = encoder.encode_descriptor(
            "keelson_worker_silence_seconds",
            "How long ago a worker said last that it is alive; connections that it would take are refused from 2 s on",
            None,
            MetricType::Gauge,
        )?;
        for worker in 0..self.0.workers() {
            let age = self.0.heartbeat().age(worker).as_secs_f64();
            ConstGauge::new(age).encode(family.encode_family(&[("worker", worker)])?)?;
        }
        Ok(())
    }

    /// What the second wall has seen, and how much of it stands.
    fn walls(
        &self,
        encoder: &mut prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use abi::Reason::{WallInbound, WallInboundPassed, WallOutbound, WallOutboundPassed};
        use prometheus_client::encoding::EncodeMetric as _;
        use prometheus_client::metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge};
        let mut family = encoder.encode_descriptor(
            "keelson_plaintext_leak",
            "TCP packets between captured pods of two nodes that were in no tunnel, by direction and what became of them",
            None,
            MetricType::Counter,
        )?;
        for (direction, outcome, reason) in [
            ("outbound", "dropped", WallOutbound),
            ("outbound", "passed", WallOutboundPassed),
            ("inbound", "dropped", WallInbound),
            ("inbound", "passed", WallInboundPassed),
        ] {
            let labels = [("direction", direction), ("outcome", outcome)];
            let packets = self.0.counter(reason);
            ConstCounter::new(packets).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "keelson_wall",
            "Addresses and captured pods behind the second wall, by whether it is enforced or counts only",
            None,
            MetricType::Gauge,
        )?;
        let standing = self.0.walls().standing();
        for (of, wall, number) in standing {
            let labels = [("of", of), ("wall", wall)];
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            ConstGauge::new(number).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

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
