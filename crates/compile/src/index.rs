//! Objects in, resources out: pure, synchronous, and incremental. A change marks what it can affect, and
//! [`Index::flush`] rebuilds exactly that; a resource whose content came out the same keeps its version.

mod announce;
pub mod authorization;
mod endpoints;
pub mod enrolment;
mod entries;
mod flush;
mod held;
pub mod holdings;
mod lint;
mod marks;
mod mesh;
mod network_policy;
pub mod peer_authentication;
mod selectors;
pub mod service;
mod service_notes;
mod track;
mod trust_domains;
mod unreported;
pub mod waypoint;
mod waypoints;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::announce::Announcements;
use self::authorization::Compiled;
pub use self::enrolment::AmbientLabel;
use self::holdings::Holdings;
pub use self::holdings::{Captured, Sandbox, Word};
pub use self::mesh::{Canary, FixedSetting, MeshConfig};
use self::selectors::{PodLabels, Selectors};
pub use self::waypoints::view::{self, Verdict};
use crate::snapshot::Snapshot;
use crate::store::{
    NetworkPolicyFacts, PeerAuthenticationFacts, PolicyFacts, ServiceFacts, SliceFacts,
};
use manifest::{
    Diagnostic, Kind, Labels, NamespacedName, Object, ObjectKey, ObjectKind, PodFacts, PolicyKind,
    Upsert,
};
use proto::istio::workload::Locality;

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

    /// Those of Kubernetes, and those that `ServiceEntry` objects declare.
    services: BTreeMap<NamespacedName, ServiceFacts>,
    entries: entries::Entries,
    service_selectors: Selectors<NamespacedName>,
    services_said: service_notes::Said,

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

    network_policies: BTreeMap<NamespacedName, NetworkPolicyFacts>,
    network: network_policy::Compiled,
    node_addresses: HashMap<Arc<str>, Vec<IpAddr>>,

    holdings: Holdings,
    /// Pods whose objects are gone while their nodes hold them; their facts are kept.
    departed: HashSet<Arc<str>>,
    /// Pods that are being deleted: whether they still take connections depends on others.
    terminating: BTreeSet<Arc<str>>,
    /// The resources of addresses that no pod's object has while a node holds them.
    orphans: HashMap<IpAddr, Arc<str>>,
    /// The node of each pod that is to be captured and that nobody has reported.
    unreported: HashMap<Arc<str>, Arc<str>>,
    announcements: Announcements,
    waypoints: waypoints::Waypoints,
    /// What each waypoint is for, as its `Gateway` says.
    gateways: HashMap<NamespacedName, waypoint::Serves>,

    dirty: Dirty,
    snapshot: Snapshot,
}

/// What the next flush rebuilds.
#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<Arc<str>>,
    endpoints: BTreeSet<(NamespacedName, IpAddr)>,
    addresses: BTreeSet<IpAddr>,
    services: BTreeSet<NamespacedName>,
    policies: BTreeSet<NamespacedName>,
    peer_authentications: BTreeSet<NamespacedName>,
    /// Where a pod was or is, to tell that node.
    node_pods: BTreeSet<(Arc<str>, Arc<str>)>,
    static_strict: bool,
    network: bool,
    captured: bool,
    /// Which namespaces enrol their pods.
    namespaces: bool,
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
                self.set_node_addresses(node);
            }
            Object::ServiceAccount(_) => {}
            Object::Pod(pod) => self.set_pod(&pod.key, Some(Arc::clone(pod))),
            Object::Service(service) => {
                let facts = ServiceFacts::read(service);
                self.note_service(&facts.key, service, upsert);
                self.set_service_of_kubernetes(&facts.key.clone(), Some(facts));
            }
            Object::ServiceEntry(entry) => self.set_entry(entry, upsert),
            Object::EndpointSlice(slice) => {
                self.set_slice(
                    &NamespacedName::of(&slice.metadata),
                    SliceFacts::read(slice),
                );
            }
            Object::NetworkPolicy(policy) => {
                let facts = NetworkPolicyFacts::read(policy);
                self.set_network_policy(&facts.key.clone(), Some(facts));
            }
            Object::PeerAuthentication(policy) => {
                let facts = PeerAuthenticationFacts::read(policy);
                self.set_peer_authentication(&facts.key.clone(), Some(facts));
            }
            Object::AuthorizationPolicy(policy) => {
                let facts = PolicyFacts::read(policy, upsert.origin.clone(), upsert.lines.clone());
                self.set_policy(&facts.key.clone(), Some(facts));
            }
            Object::Gateway(gateway) => {
                let key = NamespacedName::of(&gateway.metadata);
                self.set_gateway(&key, waypoint::Serves::read(gateway));
                self.set_listeners(&key, gateway, upsert);
            }
            Object::IstioGateway(_)
            | Object::ReferenceGrant(_)
            | Object::Secret(_)
            | Object::IngressClass(_)
            | Object::Ingress(_) => {
                self.set_edge(upsert);
            }
            Object::VirtualService(_)
            | Object::DestinationRule(_)
            | Object::HttpRoute(_)
            | Object::GrpcRoute(_)
            | Object::TlsRoute(_)
            | Object::TcpRoute(_) => self.set_l7(upsert),
            Object::Broken(broken) => match broken.kind {
                PolicyKind::PeerAuthentication => {
                    let facts = PeerAuthenticationFacts::broken(broken);
                    self.set_peer_authentication(&broken.key, Some(facts));
                }
                PolicyKind::AuthorizationPolicy => {
                    let facts = PolicyFacts::broken(broken, upsert.origin.clone());
                    self.set_policy(&broken.key, Some(facts));
                }
            },
        }
    }

    /// Removes an object; one that is not there is no error.
    pub fn remove(&mut self, key: &ObjectKey) {
        let named = NamespacedName::new(key.namespace(), key.name());
        let kind = match key.kind() {
            ObjectKind::Known(kind) => *kind,
            // It was never applied.
            ObjectKind::Foreign { .. } => return,
        };
        match kind {
            Kind::Namespace => self.unset_namespace(key),
            Kind::Node => self.set_node(&named.name, None),
            // Nothing is compiled from them.
            Kind::ServiceAccount => {}
            Kind::Pod => self.set_pod(&named, None),
            Kind::Service => {
                self.set_service_of_kubernetes(&named, None);
                self.services_said.forget(&named);
            }
            Kind::ServiceEntry => self.unset_entry(&named),
            Kind::EndpointSlice => self.set_slice(&named, None),
            Kind::NetworkPolicy => self.set_network_policy(&named, None),
            Kind::PeerAuthentication => self.set_peer_authentication(&named, None),
            Kind::AuthorizationPolicy => self.set_policy(&named, None),
            Kind::Gateway => {
                self.set_gateway(&named, None);
                self.unset_edge(kind, &named);
            }
            Kind::IstioGateway
            | Kind::ReferenceGrant
            | Kind::Secret
            | Kind::IngressClass
            | Kind::Ingress => {
                self.unset_edge(kind, &named);
            }
            Kind::VirtualService
            | Kind::DestinationRule
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute => self.unset_l7(kind, &named),
        }
    }

    /// Every node that is served has taken the snapshot of this generation, or a later one. Says whether there is
    /// something to flush.
    pub fn settle(&mut self, generation: u64) -> bool {
        let changed = self.announcements.settle(generation);
        self.touch_pods(changed)
    }

    /// Some node has not taken for too long what it was told of pods that leave the mesh: they leave now. Says whether
    /// there is something to flush.
    pub fn stop_waiting(&mut self) -> bool {
        let changed = self.announcements.stop_waiting();
        self.touch_pods(changed)
    }

    /// Whether pods that leave the mesh wait for nodes.
    pub fn is_waiting(&self) -> bool {
        self.announcements.is_waiting()
    }

    fn touch_pods(&mut self, pods: Vec<Arc<str>>) -> bool {
        let any = !pods.is_empty();
        for uid in pods {
            if let Some(pod) = self.pods.get(&uid) {
                let at = (Arc::clone(&pod.node), Arc::clone(&uid));
                self.dirty.node_pods.insert(at);
            }
            self.dirty.pods.insert(uid);
        }
        any
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
