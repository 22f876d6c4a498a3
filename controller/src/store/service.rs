//! Facts of a `Service`.

use std::net::IpAddr;

use k8s_api::{IntOrString, Service};
use k8s_openapi::api::core::v1::ServicePort;

use super::{Labels, NamespacedName};

/// What the mesh needs to know of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// Who it is.
    pub key: NamespacedName,
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
    /// `spec.trafficDistribution`, else Istio's annotation of the same meaning.
    pub traffic_distribution: Option<String>,
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
            traffic_distribution: spec.traffic_distribution.or(annotation),
        }
    }
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

/// Istio's way to say `trafficDistribution` on clusters that lack the field.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
