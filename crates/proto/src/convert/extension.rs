//! Our extensions of Istio's workload API: endpoints that differ by family or readiness, session
//! affinity, and who makes a workload STRICT. Whoever does not know them ignores them.

use std::collections::BTreeMap;
use std::time::Duration;

use model::PolicyKey;
use model::address::Family;
use model::service::ServiceKey;
use model::workload::{Health, Isolated, PortMapping, ServicePorts};
use prost::Message;

use super::{ConvertError, Problem, at, each_message, pack, port, value};
use crate::agent::{self, service_endpoint as pb_endpoint};
use crate::istio::workload::Extension;
use crate::type_url;

/// Name of the extension of a workload that says how it serves each port of each service, where
/// `Workload.services` cannot. Its content is a `keelson.agent.v1.Endpoints`.
pub const ENDPOINTS: &str = "keelson.io/endpoints";
/// Name of the extension of a service whose clients keep their endpoints. Its content is a
/// `keelson.agent.v1.SessionAffinity`.
pub const SESSION_AFFINITY: &str = "keelson.io/session-affinity";
/// Name of the extension of a workload that is STRICT on every port. Its content is a `google.protobuf.StringValue`: the
/// `PeerAuthentication` that makes it so, `namespace/name`.
pub const STRICT_BY: &str = "keelson.io/strict-by";

/// Name of the extension of a workload that may connect to nobody that the mesh does not know. It has no content.
pub const EGRESS_CLOSED: &str = "keelson.io/egress-closed";

/// Name of the extension of a waypoint's pod to which the cluster's network may let tunnels alone. It has no content.
pub const ISOLATED_INGRESS: &str = "keelson.io/isolated-ingress";
/// Name of the extension of a workload from which the cluster's network may let tunnels alone. It has no content.
pub const ISOLATED_EGRESS: &str = "keelson.io/isolated-egress";

type Services = BTreeMap<ServiceKey, Vec<PortMapping>>;

/// The extension of a workload.
pub fn endpoints(endpoints: Vec<agent::ServiceEndpoint>) -> Extension {
    let message = agent::Endpoints { endpoints };
    Extension {
        name: ENDPOINTS.to_owned(),
        config: Some(pack(type_url::ENDPOINTS, &message)),
    }
}

/// The extension of a service.
pub fn session_affinity(timeout: Duration) -> Extension {
    let message = agent::SessionAffinity {
        timeout_seconds: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX),
    };
    Extension {
        name: SESSION_AFFINITY.to_owned(),
        config: Some(pack(type_url::SESSION_AFFINITY, &message)),
    }
}

/// The extension of a workload that this `PeerAuthentication` makes STRICT.
pub fn strict_by(object: &PolicyKey) -> Extension {
    let name = format!("{}/{}", object.namespace, object.name);
    Extension {
        name: STRICT_BY.to_owned(),
        config: Some(pack(type_url::STRING_VALUE, &name)),
    }
}

/// The extension of a workload whose egress is closed.
pub fn egress_closed() -> Extension {
    Extension {
        name: EGRESS_CLOSED.to_owned(),
        config: None,
    }
}

/// Whether a workload's extensions say that its egress is closed.
pub(super) fn egress_closed_in(extensions: &[Extension]) -> bool {
    extensions.iter().any(|one| one.name == EGRESS_CLOSED)
}

/// The extensions of a workload that the cluster's network isolates.
pub fn isolated(by: Isolated) -> impl Iterator<Item = Extension> {
    let ways = [(by.ingress, ISOLATED_INGRESS), (by.egress, ISOLATED_EGRESS)];
    let said = ways.into_iter().filter(|(is_so, _)| *is_so);
    said.map(|(_, name)| Extension {
        name: name.to_owned(),
        config: None,
    })
}

/// Which ways a workload's extensions say that the cluster's network isolates it.
pub(super) fn isolated_in(extensions: &[Extension]) -> Isolated {
    let has = |name: &str| extensions.iter().any(|one| one.name == name);
    Isolated {
        ingress: has(ISOLATED_INGRESS),
        egress: has(ISOLATED_EGRESS),
    }
}

/// The `PeerAuthentication` that a workload's extensions name. It is for people, so what cannot be read is left out.
pub(super) fn strict_by_in(extensions: &[Extension]) -> Option<PolicyKey> {
    let name = content::<String>(extensions, STRICT_BY).ok().flatten()?;
    let (namespace, name) = name.split_once('/')?;
    Some(PolicyKey::peer_authentication(namespace, name))
}

/// What a workload's extensions say of its services, if anything.
pub(super) fn services_in(extensions: &[Extension]) -> Result<Option<Services>, ConvertError> {
    let Some(message) = content::<agent::Endpoints>(extensions, ENDPOINTS)? else {
        return Ok(None);
    };
    let read = each_message("endpoints", message.endpoints, |endpoint| {
        let service: ServiceKey = endpoint
            .service
            .parse()
            .map_err(|e: model::NameError| at("service", e))?;
        Ok((service, mapping_in(&endpoint)?))
    });
    let mut services = Services::new();
    for (service, mapping) in read.map_err(|e| e.within(ENDPOINTS))? {
        services.entry(service).or_default().push(mapping);
    }
    Ok(Some(services))
}

/// The extension that a workload with these services needs, if it needs one.
pub(super) fn services_out(services: &ServicePorts) -> Vec<Extension> {
    let all = || {
        services
            .iter()
            .flat_map(|(key, mappings)| mappings.iter().map(move |mapping| (key, mapping)))
    };
    if all().all(|(_, mapping)| mapping.family.is_none() && mapping.status.is_none()) {
        return Vec::new();
    }
    vec![endpoints(
        all()
            .map(|(key, mapping)| mapping_out(key, mapping))
            .collect(),
    )]
}

/// The time that a service's extensions say, if any.
pub(super) fn session_timeout(extensions: &[Extension]) -> Result<Option<Duration>, ConvertError> {
    let message = content::<agent::SessionAffinity>(extensions, SESSION_AFFINITY)?;
    Ok(message.map(|message| Duration::from_secs(message.timeout_seconds.into())))
}

fn content<M: Message + Default>(
    extensions: &[Extension],
    name: &str,
) -> Result<Option<M>, ConvertError> {
    let Some(extension) = extensions.iter().find(|extension| extension.name == name) else {
        return Ok(None);
    };
    let config = extension.config.as_ref();
    let config = config.ok_or_else(|| at(name, Problem::Missing))?;
    M::decode(&*config.value).map(Some).map_err(|e| at(name, e))
}

fn mapping_in(from: &agent::ServiceEndpoint) -> Result<PortMapping, ConvertError> {
    Ok(PortMapping {
        service_port: port(from.service_port).map_err(|e| at("service_port", e))?,
        target_port: port(from.target_port).map_err(|e| at("target_port", e))?,
        family: match value("family", from.family)? {
            pb_endpoint::Family::Any => None,
            pb_endpoint::Family::V4 => Some(Family::V4),
            pb_endpoint::Family::V6 => Some(Family::V6),
        },
        status: match value("readiness", from.readiness)? {
            pb_endpoint::Readiness::AsWorkload => None,
            pb_endpoint::Readiness::Ready => Some(Health::Healthy),
            pb_endpoint::Readiness::NotReady => Some(Health::Unhealthy),
        },
    })
}

fn mapping_out(service: &ServiceKey, from: &PortMapping) -> agent::ServiceEndpoint {
    agent::ServiceEndpoint {
        service: service.to_string(),
        service_port: from.service_port.into(),
        target_port: from.target_port.into(),
        family: match from.family {
            None => pb_endpoint::Family::Any,
            Some(Family::V4) => pb_endpoint::Family::V4,
            Some(Family::V6) => pb_endpoint::Family::V6,
        }
        .into(),
        readiness: match from.status {
            None => pb_endpoint::Readiness::AsWorkload,
            Some(Health::Healthy) => pb_endpoint::Readiness::Ready,
            Some(Health::Unhealthy) => pb_endpoint::Readiness::NotReady,
        }
        .into(),
    }
}
