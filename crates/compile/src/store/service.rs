//! Facts of a `Service`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_api::{IntOrString, ObjectMeta, Service};
use k8s_openapi::api::core::v1::ServicePort;
use manifest::{Labels, NamespacedName, USE_WAYPOINT};

use super::{EntryEndpoint, GATEWAY_NAME, USE_WAYPOINT_NAMESPACE};
use crate::index::waypoint::L7;

/// What the mesh needs to know of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// The labels that name its waypoint.
    pub labels: Labels,
    /// The pods behind it; empty when its endpoints are written by hand.
    pub selector: Labels,
    /// Its virtual addresses; none for a headless Service.
    pub addresses: Vec<IpAddr>,
    /// Whether it says `clusterIP: None`.
    pub headless: bool,
    /// Whether it is only a DNS alias.
    pub external_name: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePortFacts>,
    /// `IPv4`, `IPv6` as listed.
    pub ip_families: Vec<String>,
    /// Whether endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// Whether only endpoints of the client's own node count.
    pub node_local: bool,
    /// How long a client keeps its endpoint after its last connection, with `sessionAffinity: ClientIP`.
    pub session_timeout: Option<Duration>,
    /// `spec.trafficDistribution`, else Istio's annotation of the same meaning.
    pub traffic_distribution: Option<String>,
    /// What a `ServiceEntry` says beyond that; nothing for a Service.
    pub declared: Option<Box<Declared>>,
}

/// What a service is that a `ServiceEntry` declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// The object.
    pub object: NamespacedName,
    /// Ranges of addresses.
    pub ranges: Vec<IpNet>,
    /// Connections go to the address that was dialled.
    pub passes_through: bool,
    /// Only clients of its own namespace may use it.
    pub own_namespace_only: bool,
    /// Endpoints that are found by their names.
    pub named: Vec<EntryEndpoint>,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePortFacts {
    /// Its name, empty when it is the only one.
    pub name: String,
    /// The port that clients use.
    pub port: u16,
    /// The port that pods listen on.
    pub target: TargetPort,
    /// What is spoken on it, as `appProtocol` or the name's prefix say; empty when neither does.
    pub protocol: String,
}

/// The port of a pod that a Service port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number on every pod.
    Number(u16),
    /// The port of this name, of each pod's own choice.
    Name(String),
}

impl ServiceFacts {
    /// Reads a Service.
    pub fn read(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let annotation = service
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(TRAFFIC_DISTRIBUTION))
            .cloned();
        let mut listed = spec.cluster_ips.unwrap_or_default();
        if let Some(first) = spec.cluster_ip.filter(|ip| !listed.contains(ip)) {
            listed.insert(0, first);
        }
        Self {
            key: NamespacedName::of(&service.metadata),
            labels: waypoint_labels(&service.metadata),
            selector: spec.selector.unwrap_or_default(),
            headless: listed.iter().any(|ip| ip == "None"),
            addresses: listed.iter().filter_map(|ip| ip.parse().ok()).collect(),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            ports: spec
                .ports
                .unwrap_or_default()
                .iter()
                .filter_map(port)
                .collect(),
            ip_families: spec.ip_families.unwrap_or_default(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            session_timeout: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let configured = spec
                    .session_affinity_config
                    .and_then(|config| config.client_ip?.timeout_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok());
                configured.map_or(SESSION_TIMEOUT, Duration::from_secs)
            }),
            traffic_distribution: spec.traffic_distribution.or(annotation),
            declared: None,
        }
    }
}

/// The labels of an object that decide which waypoint it has.
pub(super) fn waypoint_labels(metadata: &ObjectMeta) -> Labels {
    let labels = metadata.labels.iter().flatten();
    labels
        .filter(|(name, _)| WAYPOINT_LABELS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn port(port: &ServicePort) -> Option<ServicePortFacts> {
    if port
        .protocol
        .as_deref()
        .is_some_and(|protocol| protocol != "TCP")
    {
        return None;
    }
    let number = u16::try_from(port.port).ok()?;
    let name = port.name.clone().unwrap_or_default();
    let prefix = name.split('-').next().unwrap_or_default().to_owned();
    let target = match &port.target_port {
        None => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).ok()?),
        Some(IntOrString::String(text)) => match text.parse() {
            Ok(target) => TargetPort::Number(target),
            Err(_) => TargetPort::Name(text.clone()),
        },
    };
    Some(ServicePortFacts {
        protocol: port.app_protocol.clone().unwrap_or(prefix),
        name,
        port: number,
        target,
    })
}

/// The labels that decide which waypoint a Service has.
const WAYPOINT_LABELS: &[&str] = &[USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, GATEWAY_NAME, L7];
/// What Kubernetes fills in for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10_800);
/// Istio's way to say `trafficDistribution` on clusters that lack the field.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
