//! Which waypoint connections to a pod or a Service have to go through, by Istio's label on it or on its namespace.
//!
//! What a waypoint is for, Services or workloads, is a label of its `Gateway`. Without a `Gateway` nobody has said that it
//! is not for something: then it is required for both, and what has to go through one that is not there is refused.

use k8s_api::Gateway;
use manifest::{Labels, NamespacedName, USE_WAYPOINT};
use proto::istio::workload::gateway_address::Destination;
use proto::istio::workload::{GatewayAddress, NamespacedHostname};

use super::{MeshConfig, service};
use crate::l7::gateway::{self, From};
use crate::store::{GATEWAY_NAME, USE_WAYPOINT_NAMESPACE};

/// What a waypoint is for: `istio.io/waypoint-for` of its `Gateway`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Serves {
    /// Connections to Services.
    pub(super) services: bool,
    /// Connections to addresses of pods.
    pub(super) workloads: bool,
    /// It was made for whoever says `keelson.io/l7: auto`, and has been ready.
    pub(super) auto: bool,
    /// The namespaces that may use it: `allowedRoutes` of its listener.
    pub(super) from: From,
}

impl Serves {
    /// Reads a `Gateway`; `None` for one that is no waypoint.
    pub(super) fn read(gateway: &Gateway) -> Option<Self> {
        if !is_waypoint_class(&gateway.spec.gateway_class_name) {
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
            auto: is_auto_made(gateway) && says(gateway.metadata.annotations.as_ref(), ATTACHED),
            from: from(gateway),
        })
    }
}

/// Which namespaces may use a waypoint, as its listener for the mesh says. Its own may, if it says nothing, as in Istio.
fn from(gateway: &Gateway) -> From {
    let listeners = gateway.spec.listeners.iter();
    let of_mesh = listeners.clone().find(|one| one.protocol == "HBONE");
    let listener = of_mesh.or_else(|| listeners.clone().next());
    let allowed = listener.and_then(|listener| listener.allowed_routes.as_ref());
    gateway::from(allowed).unwrap_or(From::None)
}

/// Whether Gateways of a class are waypoints.
pub fn is_waypoint_class(class: &str) -> bool {
    class == WAYPOINT_CLASS || class == ISTIO_CLASS
}

/// Whether a `Gateway` was made by the controller for whoever says `keelson.io/l7: auto`.
pub fn is_auto_made(gateway: &Gateway) -> bool {
    let labels = gateway.metadata.labels.as_ref();
    gateway.metadata.name.as_deref() == Some(AUTO_NAME)
        && labels
            .and_then(|all| all.get(L7))
            .is_some_and(|is| is == AUTO)
}

fn says(all: Option<&Labels>, key: &str) -> bool {
    all.and_then(|all| all.get(key))
        .is_some_and(|value| value == "true")
}

/// Whether somebody with these labels in a namespace with those gets a waypoint when an L7 object needs one. A waypoint that
/// is named, and `none`, count more.
pub(super) fn is_auto(own: &Labels, of_namespace: Option<&Labels>) -> bool {
    let mut labels = [Some(own), of_namespace].into_iter().flatten();
    let word = labels.find_map(|labels| labels.get(L7));
    word.is_some_and(|word| word == AUTO) && name_of(own, of_namespace).is_none()
}

/// The waypoint that labels name, or `none`, with the labels that do.
fn name_of<'l>(
    own: &'l Labels,
    of_namespace: Option<&'l Labels>,
) -> Option<(&'l Labels, &'l String)> {
    let labels = [Some(own), of_namespace].into_iter().flatten();
    labels
        .filter_map(|labels| Some((labels, labels.get(USE_WAYPOINT)?)))
        .find(|(_, name)| !name.is_empty())
}

/// The name of the waypoint that an address leads to.
pub(super) fn named(address: &GatewayAddress) -> Option<NamespacedName> {
    let Some(Destination::Hostname(host)) = &address.destination else {
        return None;
    };
    let name = host.hostname.split('.').next().unwrap_or_default();
    Some(NamespacedName::new(&host.namespace, name))
}

/// The waypoint of an object with these labels in a namespace with those, which has one of its own that was made for
/// `keelson.io/l7: auto`, or not.
pub(super) fn required(
    mesh: &MeshConfig,
    namespace: &str,
    own: &Labels,
    of_namespace: Option<&Labels>,
    has_auto: impl FnOnce() -> bool,
) -> Option<GatewayAddress> {
    // A waypoint itself is behind none.
    if own.contains_key(GATEWAY_NAME) {
        return None;
    }
    let (namespace, name) = match name_of(own, of_namespace) {
        Some((_, name)) if name == "none" => return None,
        Some((labels, name)) => {
            let of = labels.get(USE_WAYPOINT_NAMESPACE);
            (of.map_or(namespace, |of| of), name.as_str())
        }
        None if is_auto(own, of_namespace) && has_auto() => (namespace, AUTO_NAME),
        None => return None,
    };
    let hostname = NamespacedHostname {
        namespace: namespace.to_owned(),
        hostname: service::hostname(&NamespacedName::new(namespace, name), mesh),
    };
    Some(GatewayAddress {
        destination: Some(Destination::Hostname(hostname)),
        hbone_mtls_port: HBONE_PORT,
    })
}

/// The label that asks for a waypoint when an L7 object needs one.
pub const L7: &str = "keelson.io/l7";
/// Its value.
pub const AUTO: &str = "auto";
/// The name of the `Gateway` that is made then.
pub const AUTO_NAME: &str = "keelson-l7";
/// Its annotation, once its pods have been ready: from then on it is required.
pub const ATTACHED: &str = "keelson.io/attached";
const HBONE_PORT: u32 = 15008;
/// Istio's label on a `Gateway`.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// The class of waypoints.
pub const WAYPOINT_CLASS: &str = "keelson-waypoint";
/// Istio's, which means the same where the cluster has no other controller for it.
pub const ISTIO_CLASS: &str = "istio-waypoint";
