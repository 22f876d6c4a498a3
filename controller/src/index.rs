//! Objects in, resources out: pure, synchronous, and incremental. A change marks what it can affect, and
//! [`Index::flush`] rebuilds exactly that; a resource whose content came out the same keeps its version.

pub mod authorization;
pub mod enrolment;
mod flush;
pub mod peer_authentication;
mod selectors;
pub mod service;
mod track;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use proto::agent;
use proto::istio::workload::Locality;
use serde::{Deserialize, Serialize};

use self::authorization::Compiled;
use self::selectors::{PodLabels, Selectors};
use crate::diagnostics::Diagnostic;
use crate::object::{Object, ObjectKey};
use crate::snapshot::Snapshot;
use crate::source::Upsert;
use crate::store::{
    Labels, NamespacedName, PeerAuthenticationFacts, PodFacts, PolicyFacts, ServiceFacts,
    SliceFacts,
};

/// What is the same for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Name of this cluster in workload names.
    pub cluster_id: String,
    /// DNS suffix of Services.
    pub cluster_domain: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: String,
    /// How captured pods of one node talk to each other; agents decide where it is not said.
    pub same_node: agent::SameNode,
}

impl Default for MeshConfig {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            same_node: agent::SameNode::Unsaid,
        }
    }
}

/// Which pods each node said it captured: the names of their resources by node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Captured(pub BTreeMap<String, BTreeSet<String>>);

/// What a flush did.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Whether any resource appeared, changed or went.
    pub resources: bool,
    /// Whether a node reported other captured pods than before.
    pub captured: bool,
    /// Workloads that were built anew, whether or not they came out the same.
    pub workloads_built: usize,
    /// What there is to say about objects that changed; an empty list takes back what was said.
    pub diagnostics: Vec<(ObjectKey, Vec<Diagnostic>)>,
}

/// The index. It holds facts and the resources made of them.
#[derive(Debug, Default)]
pub struct Index {
    mesh: MeshConfig,
    namespaces: HashMap<Arc<str>, Labels>,
    nodes: HashMap<Arc<str>, Option<Locality>>,

    /// By the name of their resource.
    pods: HashMap<Arc<str>, Arc<PodFacts>>,
    pods_by_namespace: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    pods_by_node: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    pods_by_address: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    pod_labels: PodLabels,

    services: BTreeMap<NamespacedName, ServiceFacts>,
    service_selectors: Selectors<NamespacedName>,

    slices: HashMap<NamespacedName, SliceFacts>,
    slices_by_service: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    slices_by_pod: HashMap<Arc<str>, BTreeSet<NamespacedName>>,
    /// Endpoints that name no pod.
    slices_by_address: HashMap<IpAddr, BTreeSet<NamespacedName>>,

    peer_authentications: BTreeMap<NamespacedName, PeerAuthenticationFacts>,
    /// The object that counts for a whole namespace; in the root namespace for the mesh.
    peer_authentication_of: HashMap<Arc<str>, NamespacedName>,
    peer_authentication_selectors: Selectors<NamespacedName>,

    policies: HashMap<NamespacedName, (PolicyFacts, Compiled)>,
    policy_selectors: Selectors<NamespacedName>,
    policies_by_service: HashMap<NamespacedName, BTreeSet<NamespacedName>>,

    captured: HashMap<Arc<str>, HashSet<Arc<str>>>,

    dirty: Dirty,
    snapshot: Snapshot,
}

/// What the next flush rebuilds.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<Arc<str>>,
    endpoints: BTreeSet<(NamespacedName, IpAddr)>,
    services: BTreeSet<NamespacedName>,
    policies: BTreeSet<NamespacedName>,
    peer_authentications: BTreeSet<NamespacedName>,
    /// Where a pod was or is, to tell that node.
    node_pods: BTreeSet<(Arc<str>, Arc<str>)>,
    static_strict: bool,
    captured: bool,
    diagnostics: BTreeMap<ObjectKey, Vec<Diagnostic>>,
}

impl Index {
    /// An empty index.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            mesh,
            ..Self::default()
        }
    }

    /// Adds or replaces an object.
    pub fn apply(&mut self, upsert: &Upsert) {
        match &upsert.object {
            Object::Namespace(namespace) => self.set_namespace(namespace, upsert),
            Object::Node(node) => {
                let labels = node.metadata.labels.clone().unwrap_or_default();
                self.set_node(
                    &name(node.metadata.name.as_deref()),
                    Some(workload::locality(&labels)),
                );
            }
            Object::ServiceAccount(_) => {}
            Object::Pod(pod) => self.set_pod(&pod.key, Some(Arc::clone(pod))),
            Object::Service(service) => {
                let facts = ServiceFacts::read(service);
                self.set_service(&facts.key.clone(), Some(facts));
            }
            Object::EndpointSlice(slice) => {
                self.set_slice(
                    &NamespacedName::of(&slice.metadata),
                    SliceFacts::read(slice),
                );
            }
            Object::PeerAuthentication(policy) => {
                let facts = PeerAuthenticationFacts::read(policy);
                self.set_peer_authentication(&facts.key.clone(), Some(facts));
            }
            Object::AuthorizationPolicy(policy) => {
                let facts = PolicyFacts::read(policy, upsert.origin.clone(), upsert.lines.clone());
                self.set_policy(&facts.key.clone(), Some(facts));
            }
            Object::Broken(broken) if broken.key.kind() == "PeerAuthentication" => {
                let facts = PeerAuthenticationFacts::broken(broken);
                self.set_peer_authentication(&facts.key.clone(), Some(facts));
            }
            Object::Broken(broken) => {
                let facts = PolicyFacts::broken(broken, upsert.origin.clone());
                self.set_policy(&facts.key.clone(), Some(facts));
            }
        }
    }

    /// Removes an object; one that is not there is no error.
    pub fn remove(&mut self, key: &ObjectKey) {
        let named = NamespacedName::new(key.namespace(), key.name());
        match key.kind() {
            "Namespace" => self.unset_namespace(key),
            "Node" => self.set_node(&named.name, None),
            "Pod" => self.set_pod(&named, None),
            "Service" => self.set_service(&named, None),
            "EndpointSlice" => self.set_slice(&named, None),
            "PeerAuthentication" => self.set_peer_authentication(&named, None),
            "AuthorizationPolicy" => self.set_policy(&named, None),
            _ => {}
        }
    }

    /// Takes a node's word for which of its pods are captured: the full set. Returns the names that are none of its
    /// pods, which do not count.
    pub fn report(
        &mut self,
        node: &str,
        captured: impl IntoIterator<Item = String>,
    ) -> Vec<String> {
        let node: Arc<str> = node.into();
        let own = self.pods_by_node.get(&node).cloned().unwrap_or_default();
        let (known, strange): (Vec<_>, Vec<_>) = captured
            .into_iter()
            .partition(|uid| own.contains(uid.as_str()));
        let now: HashSet<Arc<str>> = known.into_iter().map(Arc::from).collect();
        let before = self.captured.insert(node, now.clone()).unwrap_or_default();
        self.dirty.captured |= before != now;
        self.dirty
            .pods
            .extend(before.symmetric_difference(&now).cloned());
        strange
    }

    /// Which pods count as captured, to be given to [`Index::report`] after a restart.
    pub fn captured(&self) -> Captured {
        let nodes = self.captured.iter().filter(|(_, pods)| !pods.is_empty());
        Captured(
            nodes
                .map(|(node, pods)| {
                    (
                        node.to_string(),
                        pods.iter().map(ToString::to_string).collect(),
                    )
                })
                .collect(),
        )
    }

    /// The resources as of the last flush.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

fn name(text: Option<&str>) -> Arc<str> {
    text.unwrap_or_default().into()
}

#[cfg(test)]
mod tests;
