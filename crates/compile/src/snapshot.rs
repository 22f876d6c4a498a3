//! Everything that is served at one moment. Cheap to clone, and two of them are cheap to compare: they share what is
//! the same.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use manifest::NamespacedName;

use crate::resource::Resource;

/// Resources by name.
pub type Resources = OrdMap<Arc<str>, Arc<Resource>>;

/// The resources of one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change.
    pub generation: u64,
    /// `istio.workload.Address`.
    pub addresses: Resources,
    /// `istio.security.Authorization`.
    pub authorizations: Resources,
    /// `keelson.agent.v1.Announced`.
    pub announced: Resources,
    /// `keelson.agent.v1.NodePod` by node.
    pub nodes: OrdMap<Arc<str>, OrdMap<Arc<str>, Arc<NodeEntry>>>,
    /// By waypoint, `namespace/name`, what it is told.
    pub waypoints: OrdMap<Arc<str>, Arc<WaypointEntry>>,
    /// Namespaces whose labels enrol their pods.
    pub mesh_namespaces: OrdSet<Arc<str>>,
    /// By node, the pods that are to be captured and that no node says it has captured. For people only.
    pub unreported: OrdMap<Arc<str>, OrdSet<Arc<str>>>,
    /// By resource name, the pods whose objects do not say what their nodes say of their capture.
    pub marks: OrdMap<Arc<str>, Mark>,
}

/// How a pod's object is to be marked for another control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The pod.
    pub pod: NamespacedName,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Whether its node holds it captured.
    pub captured: bool,
}

/// What a waypoint is told. `keelson.l7.v1`, each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaypointEntry {
    /// Namespace of its pods.
    pub namespace: Arc<str>,
    /// Service accounts of its pods.
    pub accounts: OrdSet<Arc<str>>,
    /// `Service`.
    pub services: Resources,
    /// `Endpoint`.
    pub endpoints: Resources,
    /// `Backend`.
    pub backends: Resources,
    /// `Policy`.
    pub policies: Resources,
    /// `Route`.
    pub routes: Resources,
    /// `Listener`; none for a waypoint that is no gateway.
    pub listeners: Resources,
}

/// A pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The `NodePod`.
    pub resource: Arc<Resource>,
    /// Namespace of the pod's identity.
    pub namespace: Arc<str>,
    /// Service account of the pod's identity.
    pub service_account: Arc<str>,
}

impl Snapshot {
    /// The waypoint whose pods have this identity. If several have it, that of the account's name, as Istio names
    /// accounts, or else the first.
    pub fn waypoint_of(&self, namespace: &str, service_account: &str) -> Option<&Arc<str>> {
        let has = |entry: &WaypointEntry| {
            *entry.namespace == *namespace && entry.accounts.contains(service_account)
        };
        let own = format!("{namespace}/{service_account}");
        let own = self.waypoints.get_key_value(own.as_str());
        let own = own.filter(|(_, entry)| has(entry));
        let first = || self.waypoints.iter().find(|(_, entry)| has(entry));
        own.or_else(first).map(|(name, _)| name)
    }

    /// Whether a pod that is not finished on `node` has this identity.
    pub fn node_has_identity(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let pods = self.nodes.get(node).into_iter().flat_map(OrdMap::values);
        let mut matching = pods
            .filter(|pod| &*pod.namespace == namespace && &*pod.service_account == service_account);
        matching.next().is_some()
    }
}
