//! Which waypoint connections to a pod or a Service have to go through, by Istio's label on it or on its namespace.
//!
//! There are no waypoints yet. What has to go through one is refused by the agents, at both ends.

use manifest::{Labels, NamespacedName, USE_WAYPOINT};
use proto::istio::workload::gateway_address::Destination;
use proto::istio::workload::{GatewayAddress, NamespacedHostname};

use super::{MeshConfig, service};
use crate::store::{GATEWAY_NAME, USE_WAYPOINT_NAMESPACE};

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
