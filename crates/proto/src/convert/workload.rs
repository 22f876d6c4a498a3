//! Workloads, gateways and addresses.

use std::collections::BTreeMap;

use model::Tombstone;
use model::address::{GatewayAddress, GatewayDestination, NetworkAddress};
use model::service::ServiceKey;
use model::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, PortMapping,
    TunnelProtocol, Workload, WorkloadType,
};

use super::{
    Address, ConvertError, Problem, at, each, each_message, extension, ip, ip_bytes, port, prefix,
    required, value,
};
use crate::istio::workload as pb;

/// A workload, or the tombstone that its uid says it is.
pub(super) fn address(from: pb::Workload) -> Result<Address, ConvertError> {
    let is_tombstone = Tombstone::is_uid(&from.uid);
    let workload: Workload = from.try_into()?;
    if !is_tombstone {
        return Ok(Address::Workload(workload));
    }
    Ok(Address::Tombstone(Tombstone {
        uid: workload.uid,
        namespace: workload.namespace,
        name: workload.name,
        network: workload.network,
        addresses: workload.addresses,
    }))
}

impl TryFrom<pb::Workload> for Workload {
    type Error = ConvertError;

    fn try_from(from: pb::Workload) -> Result<Self, ConvertError> {
        let status = match value("status", from.status)? {
            pb::WorkloadStatus::Healthy => Health::Healthy,
            pb::WorkloadStatus::Unhealthy => Health::Unhealthy,
        };
        let network_mode = match value("network_mode", from.network_mode)? {
            pb::NetworkMode::Standard => NetworkMode::Standard,
            pb::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        };
        Ok(Self {
            uid: required("uid", from.uid)?.into(),
            name: from.name.into(),
            namespace: from.namespace.into(),
            addresses: each("addresses", &from.addresses, |bytes| {
                ip(bytes).map(|ip| ip.to_canonical())
            })?,
            hostname: from.hostname.into(),
            network: from.network.into(),
            tunnel: tunnel(from.tunnel_protocol)?,
            trust_domain: or(from.trust_domain, TRUST_DOMAIN)
                .parse()
                .map_err(|e: model::identity::IdentityError| at("trust_domain", e))?,
            service_account: or(from.service_account, SERVICE_ACCOUNT).into(),
            waypoint: gateway("waypoint", from.waypoint)?,
            network_gateway: gateway("network_gateway", from.network_gateway)?,
            node: from.node.into(),
            canonical_name: from.canonical_name.into(),
            canonical_revision: from.canonical_revision.into(),
            workload_type: workload_type(from.workload_type),
            workload_name: from.workload_name.into(),
            native_tunnel: from.native_tunnel,
            application_tunnel: from
                .application_tunnel
                .map(application_tunnel)
                .transpose()?,
            services: match extension::services_in(&from.extensions)? {
                Some(services) => services.into(),
                None => services(from.services)?.into(),
            },
            authorization_policies: each(
                "authorization_policies",
                &from.authorization_policies,
                |name| Ok(name.parse()?),
            )?,
            strict_by: extension::strict_by_in(&from.extensions).map(Box::new),
            egress_closed: extension::egress_closed_in(&from.extensions),
            isolated: extension::isolated_in(&from.extensions),
            status,
            cluster_id: or(from.cluster_id, CLUSTER).into(),
            locality: from.locality.map(locality).unwrap_or_default(),
            network_mode,
            capacity: from.capacity.unwrap_or(1),
        })
    }
}

impl From<&Workload> for pb::Workload {
    fn from(from: &Workload) -> Self {
        Self {
            uid: from.uid.to_string(),
            name: from.name.to_string(),
            namespace: from.namespace.to_string(),
            addresses: from.addresses.iter().copied().map(ip_bytes).collect(),
            hostname: from.hostname.to_string(),
            network: from.network.to_string(),
            tunnel_protocol: match from.tunnel {
                TunnelProtocol::None => pb::TunnelProtocol::None,
                TunnelProtocol::Hbone => pb::TunnelProtocol::Hbone,
            }
            .into(),
            trust_domain: unless(from.trust_domain.as_str(), TRUST_DOMAIN),
            service_account: unless(&from.service_account, SERVICE_ACCOUNT),
            waypoint: from.waypoint.as_ref().map(Into::into),
            network_gateway: from.network_gateway.as_ref().map(Into::into),
            node: from.node.to_string(),
            canonical_name: from.canonical_name.to_string(),
            canonical_revision: from.canonical_revision.to_string(),
            workload_type: match from.workload_type {
                WorkloadType::Deployment => pb::WorkloadType::Deployment,
                WorkloadType::CronJob => pb::WorkloadType::Cronjob,
                WorkloadType::Pod => pb::WorkloadType::Pod,
                WorkloadType::Job => pb::WorkloadType::Job,
            }
            .into(),
            workload_name: from.workload_name.to_string(),
            native_tunnel: from.native_tunnel,
            application_tunnel: from.application_tunnel.map(|tunnel| pb::ApplicationTunnel {
                protocol: match tunnel.protocol {
                    ApplicationProtocol::None => pb::application_tunnel::Protocol::None,
                    ApplicationProtocol::Proxy => pb::application_tunnel::Protocol::Proxy,
                }
                .into(),
                port: tunnel.port.unwrap_or(0).into(),
            }),
            services: from.services.iter().map(service_ports).collect(),
            authorization_policies: from
                .authorization_policies
                .iter()
                .map(ToString::to_string)
                .collect(),
            status: match from.status {
                Health::Healthy => pb::WorkloadStatus::Healthy,
                Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
            }
            .into(),
            cluster_id: unless(&from.cluster_id, CLUSTER),
            locality: (from.locality != Locality::default()).then(|| pb::Locality {
                region: from.locality.region.to_string(),
                zone: from.locality.zone.to_string(),
                subzone: from.locality.subzone.to_string(),
            }),
            network_mode: match from.network_mode {
                NetworkMode::Standard => pb::NetworkMode::Standard,
                NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
            }
            .into(),
            extensions: extension::services_out(&from.services)
                .into_iter()
                .chain(from.strict_by.as_deref().map(extension::strict_by))
                .chain(from.egress_closed.then(extension::egress_closed))
                .chain(extension::isolated(from.isolated))
                .collect(),
            capacity: (from.capacity != 1).then_some(from.capacity),
        }
    }
}

impl TryFrom<pb::GatewayAddress> for GatewayAddress {
    type Error = ConvertError;

    fn try_from(from: pb::GatewayAddress) -> Result<Self, ConvertError> {
        use pb::gateway_address::Destination;

        let destination = match from.destination {
            None => return Err(at("destination", Problem::Missing)),
            Some(Destination::Hostname(name)) => {
                GatewayDestination::Hostname(ServiceKey::new(name.namespace, name.hostname))
            }
            Some(Destination::Address(address)) => GatewayDestination::Address(
                address
                    .try_into()
                    .map_err(|e: ConvertError| e.within("address"))?,
            ),
        };
        Ok(Self {
            destination,
            hbone_port: port(from.hbone_mtls_port).map_err(|e| at("hbone_mtls_port", e))?,
        })
    }
}

impl From<&GatewayAddress> for pb::GatewayAddress {
    fn from(from: &GatewayAddress) -> Self {
        use pb::gateway_address::Destination;

        let destination = match &from.destination {
            GatewayDestination::Hostname(key) => Destination::Hostname(pb::NamespacedHostname {
                namespace: key.namespace.to_string(),
                hostname: key.hostname.to_string(),
            }),
            GatewayDestination::Address(address) => Destination::Address(address.into()),
        };
        Self {
            destination: Some(destination),
            hbone_mtls_port: from.hbone_port.into(),
        }
    }
}

impl TryFrom<pb::NetworkAddress> for NetworkAddress {
    type Error = ConvertError;

    fn try_from(from: pb::NetworkAddress) -> Result<Self, ConvertError> {
        let ip = ip(&from.address).map_err(|e| at("address", e))?;
        let prefix = from
            .length
            .map(|length| prefix(ip, length))
            .transpose()
            .map_err(|e| at("length", e))?;
        Ok(Self {
            network: from.network.into(),
            // The prefix of a range counts from the start of the address as it was sent.
            ip: if prefix.is_none() {
                ip.to_canonical()
            } else {
                ip
            },
            prefix,
        })
    }
}

impl From<&NetworkAddress> for pb::NetworkAddress {
    fn from(from: &NetworkAddress) -> Self {
        Self {
            network: from.network.to_string(),
            address: ip_bytes(from.ip),
            length: from.prefix.map(Into::into),
        }
    }
}

pub(super) fn gateway(
    field: &str,
    from: Option<pb::GatewayAddress>,
) -> Result<Option<GatewayAddress>, ConvertError> {
    from.map(TryInto::try_into)
        .transpose()
        .map_err(|e: ConvertError| e.within(field))
}

fn tunnel(number: i32) -> Result<TunnelProtocol, ConvertError> {
    match value("tunnel_protocol", number)? {
        pb::TunnelProtocol::None => Ok(TunnelProtocol::None),
        pb::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        pb::TunnelProtocol::LegacyIstioMtls => Err(at(
            "tunnel_protocol",
            Problem::Unsupported("LEGACY_ISTIO_MTLS"),
        )),
    }
}

/// For telemetry only, so a kind that is newer than this program is no reason to refuse.
fn workload_type(number: i32) -> WorkloadType {
    match pb::WorkloadType::try_from(number) {
        Ok(pb::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(pb::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(pb::WorkloadType::Job) => WorkloadType::Job,
        Ok(pb::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
    }
}

fn application_tunnel(from: pb::ApplicationTunnel) -> Result<ApplicationTunnel, ConvertError> {
    use pb::application_tunnel::Protocol;

    let protocol = match value("application_tunnel.protocol", from.protocol)? {
        Protocol::None => ApplicationProtocol::None,
        Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    let port = port(from.port).map_err(|e| at("application_tunnel.port", e))?;
    Ok(ApplicationTunnel {
        protocol,
        port: (port != 0).then_some(port),
    })
}

fn services(
    from: BTreeMap<String, pb::PortList>,
) -> Result<BTreeMap<ServiceKey, Vec<PortMapping>>, ConvertError> {
    from.into_iter()
        .map(|(name, list)| {
            let field = format!("services[{name:?}]");
            let key = name.parse().map_err(|e: model::NameError| at(&field, e))?;
            let ports = each_message("ports", list.ports, mapping).map_err(|e| e.within(&field))?;
            Ok((key, ports))
        })
        .collect()
}

fn mapping(from: pb::Port) -> Result<PortMapping, ConvertError> {
    let service_port = port(from.service_port).map_err(|e| at("service_port", e))?;
    let target_port = port(from.target_port).map_err(|e| at("target_port", e))?;
    Ok(PortMapping::new(service_port, target_port))
}

fn service_ports((key, ports): (&ServiceKey, &Vec<PortMapping>)) -> (String, pb::PortList) {
    let ports = ports
        .iter()
        .map(|mapping| pb::Port {
            service_port: mapping.service_port.into(),
            target_port: mapping.target_port.into(),
            app_protocol: pb::AppProtocol::Unknown.into(),
        })
        .collect();
    (key.to_string(), pb::PortList { ports })
}

fn locality(from: pb::Locality) -> Locality {
    Locality {
        region: from.region.into(),
        zone: from.zone.into(),
        subzone: from.subzone.into(),
    }
}

/// What the API means by an empty string.
fn or(text: String, default: &str) -> String {
    if text.is_empty() {
        default.to_owned()
    } else {
        text
    }
}

/// The reverse: what is meant by an empty string need not be sent.
fn unless(text: &str, default: &str) -> String {
    if text == default {
        String::new()
    } else {
        text.to_owned()
    }
}

const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";
const CLUSTER: &str = "Kubernetes";
