//! Services and how their endpoints are chosen.

use model::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, ServicePort,
    Visibility, WeightedWaypoint,
};

use super::workload::gateway;
use super::{ConvertError, Problem, at, each, each_message, extension, port, required, value};
use crate::istio::workload as pb;

impl TryFrom<pb::Service> for Service {
    type Error = ConvertError;

    fn try_from(from: pb::Service) -> Result<Self, ConvertError> {
        let ip_families = match value("ip_families", from.ip_families)? {
            pb::IpFamilies::Automatic => IpFamilies::Automatic,
            pb::IpFamilies::Ipv4Only => IpFamilies::V4Only,
            pb::IpFamilies::Ipv6Only => IpFamilies::V6Only,
            pb::IpFamilies::Dual => IpFamilies::Dual,
        };
        let visibility = match value("visibility", from.visibility)? {
            pb::service::Visibility::Public => Visibility::Public,
            pb::service::Visibility::Namespace => Visibility::Namespace,
        };
        Ok(Self {
            name: from.name.into(),
            namespace: required("namespace", from.namespace)?.into(),
            hostname: required("hostname", from.hostname)?.into(),
            addresses: each_message("addresses", from.addresses, TryInto::try_into)?,
            ports: each_message("ports", from.ports, service_port)?,
            // A name that is not an identity can never be proved, so leaving it out accepts less.
            subject_alt_names: from
                .subject_alt_names
                .iter()
                .filter_map(|name| name.parse().ok())
                .collect(),
            waypoint: gateway("waypoint", from.waypoint)?,
            weighted_waypoints: each_message(
                "weighted_waypoints",
                from.weighted_waypoints,
                weighted_waypoint,
            )?,
            load_balancing: from
                .load_balancing
                .map(load_balancing)
                .transpose()
                .map_err(|e| e.within("load_balancing"))?
                .unwrap_or_default(),
            session_timeout: extension::session_timeout(&from.extensions)?,
            ip_families,
            canonical: from.canonical,
            ingress_use_waypoint: from.ingress_use_waypoint,
            visibility,
        })
    }
}

impl From<&Service> for pb::Service {
    fn from(from: &Service) -> Self {
        Self {
            name: from.name.to_string(),
            namespace: from.namespace.to_string(),
            hostname: from.hostname.to_string(),
            addresses: from.addresses.iter().map(Into::into).collect(),
            ports: from.ports.iter().map(Into::into).collect(),
            subject_alt_names: from
                .subject_alt_names
                .iter()
                .map(ToString::to_string)
                .collect(),
            waypoint: from.waypoint.as_ref().map(Into::into),
            load_balancing: (from.load_balancing != LoadBalancing::default())
                .then(|| (&from.load_balancing).into()),
            ip_families: match from.ip_families {
                IpFamilies::Automatic => pb::IpFamilies::Automatic,
                IpFamilies::V4Only => pb::IpFamilies::Ipv4Only,
                IpFamilies::V6Only => pb::IpFamilies::Ipv6Only,
                IpFamilies::Dual => pb::IpFamilies::Dual,
            }
            .into(),
            extensions: from
                .session_timeout
                .map(extension::session_affinity)
                .into_iter()
                .collect(),
            canonical: from.canonical,
            ingress_use_waypoint: from.ingress_use_waypoint,
            weighted_waypoints: from
                .weighted_waypoints
                .iter()
                .map(|waypoint| pb::WeightedWaypoint {
                    destination: Some((&waypoint.destination).into()),
                    weight: waypoint.weight,
                })
                .collect(),
            visibility: match from.visibility {
                Visibility::Public => pb::service::Visibility::Public,
                Visibility::Namespace => pb::service::Visibility::Namespace,
            }
            .into(),
        }
    }
}

impl From<&ServicePort> for pb::Port {
    fn from(from: &ServicePort) -> Self {
        Self {
            service_port: from.port.into(),
            target_port: from.target_port.into(),
            app_protocol: match from.app_protocol {
                AppProtocol::Unknown => pb::AppProtocol::Unknown,
                AppProtocol::Http11 => pb::AppProtocol::Http11,
                AppProtocol::Http2 => pb::AppProtocol::Http2,
                AppProtocol::Grpc => pb::AppProtocol::Grpc,
                AppProtocol::Tcp => pb::AppProtocol::Tcp,
                AppProtocol::Tls => pb::AppProtocol::Tls,
            }
            .into(),
        }
    }
}

impl From<&LoadBalancing> for pb::LoadBalancing {
    fn from(from: &LoadBalancing) -> Self {
        use pb::load_balancing as lb;

        let scope = |scope: &Scope| match scope {
            Scope::Region => lb::Scope::Region,
            Scope::Zone => lb::Scope::Zone,
            Scope::Subzone => lb::Scope::Subzone,
            Scope::Node => lb::Scope::Node,
            Scope::Cluster => lb::Scope::Cluster,
            Scope::Network => lb::Scope::Network,
        };
        Self {
            routing_preference: from
                .routing_preference
                .iter()
                .map(|s| scope(s).into())
                .collect(),
            mode: match from.mode {
                Mode::Any => lb::Mode::UnspecifiedMode,
                Mode::Strict => lb::Mode::Strict,
                Mode::Failover => lb::Mode::Failover,
                Mode::Passthrough => lb::Mode::Passthrough,
            }
            .into(),
            health_policy: match from.health_policy {
                HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
                HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
            }
            .into(),
        }
    }
}

fn service_port(from: pb::Port) -> Result<ServicePort, ConvertError> {
    Ok(ServicePort {
        port: port(from.service_port).map_err(|e| at("service_port", e))?,
        target_port: port(from.target_port).map_err(|e| at("target_port", e))?,
        // A protocol that is newer than this program is one that it does not know.
        app_protocol: match pb::AppProtocol::try_from(from.app_protocol) {
            Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
            Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
            Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
            Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
            Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
            Ok(pb::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
        },
    })
}

fn weighted_waypoint(from: pb::WeightedWaypoint) -> Result<WeightedWaypoint, ConvertError> {
    let destination = gateway("destination", from.destination)?
        .ok_or_else(|| at("destination", Problem::Missing))?;
    Ok(WeightedWaypoint {
        destination,
        weight: from.weight,
    })
}

fn load_balancing(from: pb::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use pb::load_balancing as lb;

    let mode = match value("mode", from.mode)? {
        lb::Mode::UnspecifiedMode => Mode::Any,
        lb::Mode::Strict => Mode::Strict,
        lb::Mode::Failover => Mode::Failover,
        lb::Mode::Passthrough => Mode::Passthrough,
    };
    let health_policy = match value("health_policy", from.health_policy)? {
        lb::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        lb::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    Ok(LoadBalancing {
        routing_preference: each("routing_preference", from.routing_preference, scope)?,
        mode,
        health_policy,
    })
}

fn scope(number: i32) -> Result<Scope, Problem> {
    use pb::load_balancing::Scope as Pb;

    match Pb::try_from(number) {
        Ok(Pb::Region) => Ok(Scope::Region),
        Ok(Pb::Zone) => Ok(Scope::Zone),
        Ok(Pb::Subzone) => Ok(Scope::Subzone),
        Ok(Pb::Node) => Ok(Scope::Node),
        Ok(Pb::Cluster) => Ok(Scope::Cluster),
        Ok(Pb::Network) => Ok(Scope::Network),
        Ok(Pb::UnspecifiedScope) => Err(Problem::Unsupported("UNSPECIFIED_SCOPE")),
        Err(_) => Err(Problem::UnknownValue(number)),
    }
}
