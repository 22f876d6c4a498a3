//! What the controller counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One label, the xDS type.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TypeLabel {
    /// The message name, such as `istio.workload.Address`.
    pub r#type: String,
}

/// One label, why something was refused.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A fixed word for each reason.
    pub reason: &'static str,
}

/// One label, how much a diagnostic matters.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SeverityLabel {
    /// `info`, `warning` or `error`.
    pub severity: &'static str,
}

/// The metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Open discovery streams.
    pub connected_nodes: Gauge,
    /// Discovery responses sent.
    pub pushes: Family<TypeLabel, Counter>,
    /// Responses that a client took.
    pub acks: Family<TypeLabel, Counter>,
    /// Responses that a client refused, at least in part.
    pub nacks: Family<TypeLabel, Counter>,
    /// Certificates issued.
    pub certificates_issued: Counter,
    /// Certificates refused.
    pub certificates_refused: Family<ReasonLabel, Counter>,
    /// Calls without a valid token.
    pub unauthenticated: Counter,
    /// Connections that were over before their callers were known, by reason.
    pub visitors_dropped: Family<ReasonLabel, Counter>,
    /// Objects that the API server asked about before it stored them, by answer.
    pub admissions: Family<ReasonLabel, Counter>,
    /// Current findings about the configuration.
    pub diagnostics: Family<SeverityLabel, Gauge>,
    /// From a change in the source to the ACK of each client, in seconds.
    pub convergence: Histogram,
    /// Objects read from the source.
    pub objects: Gauge,
    /// Nodes with pods that are to be captured and that nobody has reported.
    pub unreported_nodes: Gauge,
    /// Those pods.
    pub unreported_pods: Gauge,
    /// 1 while the settings file is refused and an earlier one is in force.
    pub settings_refused: Gauge,
    /// Resources served to every node.
    pub resources: Family<TypeLabel, Gauge>,
}

impl Metrics {
    /// Registers everything under `keelson_controller_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            connected_nodes: Gauge::default(),
            pushes: Family::default(),
            acks: Family::default(),
            nacks: Family::default(),
            certificates_issued: Counter::default(),
            certificates_refused: Family::default(),
            unauthenticated: Counter::default(),
            visitors_dropped: Family::default(),
            admissions: Family::default(),
            diagnostics: Family::default(),
            convergence: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            objects: Gauge::default(),
            unreported_nodes: Gauge::default(),
            unreported_pods: Gauge::default(),
            settings_refused: Gauge::default(),
            resources: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("keelson_controller");
        let m = &metrics;
        registry.register(
            "connected_nodes",
            "Open discovery streams",
            m.connected_nodes.clone(),
        );
        registry.register("xds_pushes", "Discovery responses sent", m.pushes.clone());
        registry.register(
            "xds_acks",
            "Discovery responses accepted by clients",
            m.acks.clone(),
        );
        registry.register(
            "xds_nacks",
            "Discovery responses refused by clients",
            m.nacks.clone(),
        );
        registry.register(
            "certificates_issued",
            "Certificates issued",
            m.certificates_issued.clone(),
        );
        registry.register(
            "certificates_refused",
            "Certificates refused, by reason",
            m.certificates_refused.clone(),
        );
        registry.register(
            "unauthenticated_calls",
            "Calls without a valid token",
            m.unauthenticated.clone(),
        );
        registry.register(
            "visitors_dropped",
            "Connections that ended before a valid token was shown, by reason",
            m.visitors_dropped.clone(),
        );
        registry.register(
            "admissions",
            "Objects that the API server asked about before it stored them, by answer",
            m.admissions.clone(),
        );
        registry.register(
            "diagnostics",
            "Findings about the configuration, by severity",
            m.diagnostics.clone(),
        );
        registry.register(
            "config_convergence_seconds",
            "From a change in the source to a client's ACK",
            m.convergence.clone(),
        );
        registry.register("objects", "Objects read from the source", m.objects.clone());
        registry.register(
            "unreported_nodes",
            "Nodes with pods that are to be captured and that no agent says it has captured",
            m.unreported_nodes.clone(),
        );
        registry.register(
            "unreported_pods",
            "Pods that are to be captured and that no agent says it has captured",
            m.unreported_pods.clone(),
        );
        registry.register(
            "settings_refused",
            "Whether the settings file is refused, so that an earlier one is in force",
            m.settings_refused.clone(),
        );
        registry.register(
            "resources",
            "Resources served, by type",
            m.resources.clone(),
        );
        metrics
    }
}

/// The label of a type URL.
pub fn type_label(type_url: &str) -> TypeLabel {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    TypeLabel {
        r#type: name.to_owned(),
    }
}
