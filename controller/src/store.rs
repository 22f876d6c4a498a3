//! What the index needs to know of each object: small, typed facts, read once when the object arrives.

mod endpoint_slice;
mod pod;
mod policy;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use endpoint_slice::{SliceEndpoint, SliceFacts};
pub use pod::{ContainerPort, OwnerType, PodFacts};
pub(crate) use pod::{POD_IPS, WEIGHT};
pub use policy::{PeerAuthenticationFacts, PolicyFacts, PolicyWish};
pub use service::{ServiceFacts, ServicePortFacts, TargetPort};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// From an object's metadata; what is absent reads as empty.
    pub(crate) fn of(metadata: &k8s_api::ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }
}

/// `shop/cart`
impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
