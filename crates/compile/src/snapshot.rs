//! Everything that is served at one moment. Cheap to clone, and two of them are cheap to compare: they share what is
//! the same.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

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
    /// Namespaces whose labels enrol their pods.
    pub mesh_namespaces: OrdSet<Arc<str>>,
    /// By node, the pods that are to be captured and that no node says it has captured. For people only.
    pub unreported: OrdMap<Arc<str>, OrdSet<Arc<str>>>,
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
    /// Whether a pod that is not finished on `node` has this identity.
    pub fn node_has_identity(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let pods = self.nodes.get(node).into_iter().flat_map(OrdMap::values);
        let mut matching = pods
            .filter(|pod| &*pod.namespace == namespace && &*pod.service_account == service_account);
        matching.next().is_some()
    }
}
