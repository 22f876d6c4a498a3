//! What the agent counts of itself: capture, the kernel half, and the control thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use model::Reason;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use runtime::metrics::Metrics;

use crate::telemetry::refusal;

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
    /// Pods that ran outside of the mesh before they were captured.
    pub late: Counter,
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
                "keelson_pods_captured_late",
                "Pods that were found running and captured then: the CNI plugin had not asked about them",
                this.late.clone(),
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
