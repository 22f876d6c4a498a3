//! A Service as the workload API describes it.

use manifest::NamespacedName;
use model::ServiceKey;
use proto::convert::extension;
use proto::istio::workload::load_balancing::{HealthPolicy, Mode, Scope};
use proto::istio::workload::{self as pb, AppProtocol, IpFamilies, LoadBalancing};

use super::MeshConfig;
use super::authorization::octets;
use crate::l7::hosts;
use crate::store::ServiceFacts;

/// The resource of a Service that is behind this waypoint; `None` for those that are only a DNS alias, which need no mesh.
pub fn build(
    service: &ServiceFacts,
    mesh: &MeshConfig,
    waypoint: Option<pb::GatewayAddress>,
) -> Option<pb::Service> {
    if service.external_name {
        return None;
    }
    let ports = service.ports.iter().map(|port| pb::Port {
        service_port: port.port.into(),
        // 0 tells the client to look at the endpoint's own port list: an endpoint that does not list the
        // port does not serve it.
        target_port: 0,
        app_protocol: app_protocol(&port.protocol).into(),
    });
    let declared = service.declared.as_deref();
    let addresses = service.addresses.iter().map(|ip| pb::NetworkAddress {
        network: String::new(),
        address: octets(*ip),
        length: None,
    });
    let ranges = declared.into_iter().flat_map(|declared| &declared.ranges);
    let ranges = ranges.map(|range| pb::NetworkAddress {
        network: String::new(),
        address: octets(range.network()),
        length: Some(range.prefix_len().into()),
    });
    Some(pb::Service {
        name: service.key.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: hostname(&service.key, mesh),
        addresses: addresses.chain(ranges).collect(),
        ports: ports.collect(),
        load_balancing: load_balancing(service),
        ip_families: ip_families(&service.ip_families).into(),
        extensions: service
            .session_timeout
            .map(extension::session_affinity)
            .into_iter()
            .collect(),
        canonical: declared.is_none(),
        waypoint,
        visibility: match declared.is_some_and(|declared| declared.own_namespace_only) {
            true => pb::service::Visibility::Namespace,
            false => pb::service::Visibility::Public,
        }
        .into(),
        ..pb::Service::default()
    })
}

/// `cart.shop.svc.cluster.local`; what a `ServiceEntry` declares has its host for a name, which has a dot, as no Service's has.
pub fn hostname(key: &NamespacedName, mesh: &MeshConfig) -> String {
    if key.name.contains('.') {
        return key.name.to_string();
    }
    format!("{}.{}.svc.{}", key.name, key.namespace, mesh.cluster_domain)
}

/// The name of the resource, `shop/cart.shop.svc.cluster.local`.
pub fn resource_name(key: &NamespacedName, mesh: &MeshConfig) -> String {
    format!("{}/{}", key.namespace, hostname(key, mesh))
}

/// The name of a service by its host name.
pub(super) fn name_of(key: &ServiceKey, mesh: &MeshConfig) -> NamespacedName {
    let name = match hosts::service(&key.hostname, &mesh.cluster_domain) {
        Some(of) if of.namespace == key.namespace => key.hostname.split('.').next(),
        _ => Some(&*key.hostname),
    };
    NamespacedName::new(&key.namespace, name.unwrap_or_default())
}

/// What Istio makes of a port's `appProtocol` or name prefix.
pub(super) fn app_protocol(text: &str) -> AppProtocol {
    match text.to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn ip_families(listed: &[String]) -> IpFamilies {
    let has = |family: &str| listed.iter().any(|f| f == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

/// `internalTrafficPolicy: Local` is a fence, `trafficDistribution` a preference.
fn load_balancing(service: &ServiceFacts) -> Option<LoadBalancing> {
    const CLOSE: &[Scope] = &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone];
    const SAME_NODE: &[Scope] = &[
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
    ];
    let declared = service.declared.as_deref();
    let (scopes, mode): (&[Scope], Mode) = match service.traffic_distribution.as_deref() {
        _ if declared.is_some_and(|declared| declared.passes_through) => (&[], Mode::Passthrough),
        _ if service.node_local => (&[Scope::Node], Mode::Strict),
        Some("PreferClose" | "PreferSameZone") => (CLOSE, Mode::Failover),
        Some("PreferSameNode") => (SAME_NODE, Mode::Failover),
        _ => (&[], Mode::UnspecifiedMode),
    };
    let health = if service.publish_not_ready {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    let says_something =
        !scopes.is_empty() || service.publish_not_ready || mode == Mode::Passthrough;
    says_something.then(|| LoadBalancing {
        routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}
