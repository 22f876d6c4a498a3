//! Which waypoint connections to a pod or a Service have to go through, by Istio's label on it or on its namespace.
//!
//! What a waypoint is for, Services or workloads, is a label of its `Gateway`. Without a `Gateway` nobody has said that it
//! is not for something: then it is required for both, and what has to go through one that is not there is refused.

use k8s_api::Gateway;
use manifest::{Labels, NamespacedName, USE_WAYPOINT};
use proto::istio::workload::gateway_address::Destination;
use proto::istio::workload::{GatewayAddress, NamespacedHostname};

use super::{MeshConfig, service};
use crate::store::{GATEWAY_NAME, USE_WAYPOINT_NAMESPACE};

/// What a waypoint is for: `istio.io/waypoint-for` of its `Gateway`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serves {
    /// Connections to Services.
    pub(super) services: bool,
    /// Connections to addresses of pods.
    pub(super) workloads: bool,
}

impl Serves {
    /// Reads a `Gateway`; `None` for one that is no waypoint.
    pub(super) fn read(gateway: &Gateway) -> Option<Self> {
        if !CLASSES.contains(&gateway.spec.gateway_class_name.as_str()) {
            return None;
        }
        let labels = gateway.metadata.labels.as_ref();
        let word = labels.and_then(|labels| labels.get(WAYPOINT_FOR));
        let (services, workloads) = match word.map_or("service", |word| word) {
            "workload" => (false, true),
            "all" => (true, true),
            "none" => (false, false),
            _ => (true, false),
        };
        Some(Self {
            services,
            workloads,
        })
    }
}

/// The name of the waypoint that an address leads to.
pub(super) fn named(address: &GatewayAddress) -> Option<NamespacedName> {
    let Some(Destination::Hostname(host)) = &address.destination else {
        return None;
    };
    let name = host.hostname.split('.').next().unwrap_or_default();
    Some(NamespacedName::new(&host.namespace, name))
}

/// The waypoint of an object with these labels in a namespace with those.
pub(super) fn required(
    mesh: &MeshConfig,
    namespace: &str,
    own: &Labels,
    of_namespace: Option<&Labels>,
) -> Option<GatewayAddress> {
    // A waypoint itself is behind none.
    if own.contains_key(GATEWAY_NAME) {
        return None;
    }
    let labels = [Some(own), of_namespace].into_iter().flatten();
    let (labels, name) = labels
        .filter_map(|labels| Some((labels, labels.get(USE_WAYPOINT)?)))
        .find(|(_, name)| !name.is_empty())?;
    if name == "none" {
        return None;
    }
    let namespace = labels.get(USE_WAYPOINT_NAMESPACE).map_or(namespace, |n| n);
    let hostname = NamespacedHostname {
        namespace: namespace.to_owned(),
        hostname: service::hostname(&NamespacedName::new(namespace, name), mesh),
    };
    Some(GatewayAddress {
        destination: Some(Destination::Hostname(hostname)),
        hbone_mtls_port: HBONE_PORT,
    })
}

const HBONE_PORT: u32 = 15008;
/// Istio's label on a `Gateway`.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Classes of waypoints.
const CLASSES: [&str; 2] = ["keelson-waypoint", "istio-waypoint"];
