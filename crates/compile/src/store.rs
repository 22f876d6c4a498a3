//! What the index needs to know of each object: small, typed facts, read once when the object arrives.

mod endpoint_slice;
mod network_policy;
mod policy;
mod service;
mod service_entry;

use manifest::Labels;

pub use endpoint_slice::{Readiness, SliceEndpoint, SliceFacts, Traits};
pub use network_policy::{Allowance, NetworkPolicyFacts, Peer, Ports, Selector};
pub use policy::{PeerAuthenticationFacts, PolicyFacts, PolicyWish};
pub use service::{Declared, ServiceFacts, ServicePortFacts, TargetPort};
pub use service_entry::{EntryEndpoint, EntryFacts, Place, Resolution};

/// The namespace of that waypoint, if it is another.
pub(crate) const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// The label of what a Gateway was made into.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The label by which a gateway's pods say of which class it is.
pub(crate) const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
