//! What the words of nodes mean for resources: who is reached by tunnel, and which addresses nobody's object has while
//! a node holds them.

use std::net::IpAddr;
use std::sync::Arc;

use manifest::{NamespacedName, PodFacts};
use model::Tombstone;
use proto::istio::workload::{self as pb, Address, address};
use proto::type_url;

use super::authorization::octets;
use super::enrolment::{self, Enrolment};
use super::holdings::{Captured, Difference, Sandbox, Word};
use super::{Index, workload};
use crate::resource::Resource;

impl Index {
    /// Takes a node's word for which of its pods are captured. Returns the names of those that are none of its pods:
    /// nothing is known of them but that their addresses are not to be reached in plain.
    pub fn report(&mut self, node: &str, word: Word) -> Vec<String> {
        let node: Arc<str> = node.into();
        let own = self.pods_by_node.get(&node);
        let names = word.pods.iter().map(|sandbox| self.uid(&sandbox.pod));
        let strange = names.filter(|uid| own.is_none_or(|own| !own.contains(uid)));
        let strange = strange.map(|uid| uid.to_string()).collect();
        let is_first = !self.holdings.has_spoken(&node);
        let (mesh, pods) = (&self.mesh, &self.pods);
        let difference = self.holdings.hear(&node, word, |pod| {
            let uid: Arc<str> = workload::pod_uid(mesh, pod).into();
            let object = pods.get(&uid).filter(|pod| pod.node == node);
            let object = object.map(Arc::as_ref);
            (uid, object)
        });
        self.dirty.captured |= is_first || !difference.pods.is_empty();
        if is_first {
            // Until now the pods' own annotations counted.
            let own = self.pods_by_node.get(&node).into_iter().flatten();
            self.dirty.pods.extend(own.cloned());
        }
        self.touch_held(&node, difference);
        strange
    }

    /// What is to be kept over a restart, for [`Index::restore`].
    pub fn captured(&self) -> Captured {
        let departed = self.departed.iter().filter_map(|uid| self.pods.get(uid));
        let mut departed: Vec<PodFacts> = departed.map(|pod| PodFacts::clone(pod)).collect();
        departed.sort_by(|a, b| a.key.cmp(&b.key));
        Captured {
            nodes: self.holdings.to_keep(),
            departed,
        }
    }

    /// What a node holds, as far as it is known; in an order that is always the same.
    pub fn held_by(&self, node: &str) -> Vec<Sandbox> {
        self.holdings.kept_of(node)
    }

    /// Takes in what was kept before a restart, when the objects of now are known. Of a node that has spoken since, the
    /// later word counts.
    pub fn restore(&mut self, captured: Captured) {
        for (node, pods) in captured.nodes {
            if self.holdings.has_spoken(&node) {
                continue;
            }
            let word = Word {
                pods,
                partial: false,
            };
            let _gone: Vec<String> = self.report(&node, word);
        }
        for pod in captured.departed {
            let uid = self.uid(&pod.key);
            if !self.pods.contains_key(&uid) && self.is_held(&uid, &pod) {
                self.departed.insert(uid);
                self.set_pod(&pod.key.clone(), Some(Arc::new(pod)));
            }
        }
    }

    pub(super) fn uid(&self, pod: &NamespacedName) -> Arc<str> {
        workload::pod_uid(&self.mesh, pod).into()
    }

    /// Whether the node of a pod said that it holds this very pod, and has not left it out since.
    pub(super) fn is_held(&self, uid: &str, pod: &PodFacts) -> bool {
        let own = self.holdings.of(&pod.node, uid).iter();
        own.filter(|own| !own.lost).any(|own| own.is_of(pod))
    }

    /// Whether a pod is reached by tunnel only: its node holds it, or holds one of its addresses. Where no agent of
    /// ours speaks for the node, another mesh's mark on the pod counts.
    pub(super) fn is_captured(&self, uid: &str, pod: &PodFacts) -> bool {
        if pod.host_network {
            return false;
        }
        if !self.holdings.has_spoken(&pod.node) {
            return pod.is_redirected();
        }
        let mut own = self.holdings.of(&pod.node, uid).iter();
        own.any(|own| own.is_of(pod))
            || pod
                .addresses
                .iter()
                .any(|ip| self.holdings.has_address(&pod.node, *ip))
    }

    /// Whether a pod has a resource: it is not over, or its node holds it all the same.
    pub(super) fn is_present(&self, uid: &str, pod: &PodFacts) -> bool {
        !pod.finished || self.is_held(uid, pod)
    }

    /// The addresses of a pod: those of its object, and before it has any, those that its node knows.
    pub(super) fn addresses_of(&self, uid: &str, pod: &PodFacts) -> Vec<IpAddr> {
        let is_departed = self.departed.contains(uid);
        let mut addresses = pod.addresses.clone();
        if addresses.is_empty() && !pod.host_network {
            let own = self.holdings.of(&pod.node, uid).iter();
            let own = own.filter(|own| !own.lost && own.is_of(pod));
            addresses.extend(own.flat_map(|own| own.addresses.iter().copied()));
            addresses.retain(|ip| self.owner(*ip).is_none());
        } else if is_departed {
            addresses.retain(|ip| self.owner(*ip).is_none_or(|(owner, _)| **owner == *uid));
        }
        addresses
    }

    /// The pod whose object has an address; one that is there goes before one that is held without an object.
    fn owner(&self, address: IpAddr) -> Option<(&Arc<str>, &Arc<PodFacts>)> {
        let uids = self.pods_by_address.get(&address).into_iter().flatten();
        let present = uids
            .filter_map(|uid| Some((uid, self.pods.get(uid)?)))
            .filter(|(uid, pod)| self.is_present(uid, pod));
        present.min_by_key(|(uid, _)| self.departed.contains(*uid))
    }

    pub(super) fn enrolment(&self, uid: &str, pod: &PodFacts) -> Enrolment {
        if self.departed.contains(uid) {
            return Enrolment {
                capture: true,
                reason: format!("pod {} is deleted, and its node still holds it", pod.key),
            };
        }
        enrolment::decide(
            pod,
            self.namespaces.get(&pod.key.namespace),
            self.mesh.ambient_label,
        )
    }

    /// Whether an address that no pod's object has is a captured pod's all the same.
    pub(super) fn is_orphaned(&self, address: IpAddr) -> bool {
        self.orphan(address).is_some()
    }

    /// Who has an address that no resource of a pod has.
    fn orphan(&self, address: IpAddr) -> Option<(&Arc<str>, &Sandbox)> {
        let holders = self.holdings.at(address).filter(|(node, sandbox)| {
            let uid = self.uid(&sandbox.pod);
            let pod = self.pods.get(&uid).filter(|pod| pod.node == **node);
            // Announced with the pod itself, whose object has no address yet.
            pod.is_none_or(|pod| {
                !sandbox.is_of(pod)
                    || sandbox.lost
                    || !self.addresses_of(&uid, pod).contains(&address)
            })
        });
        let holder = holders.min_by_key(|(_, sandbox)| sandbox.lost)?;
        self.owner(address).is_none().then_some(holder)
    }

    /// Rebuilds what is said of an address that no pod's object has.
    pub(super) fn flush_address(&mut self, address: IpAddr) -> bool {
        let built = self
            .orphan(address)
            .map(|(node, sandbox)| orphan_workload(&self.mesh, node, sandbox, address));
        let before = self.orphans.remove(&address);
        let mut changed = false;
        if let Some(before) = before.filter(|before| {
            built
                .as_ref()
                .is_none_or(|built| built.uid.as_str() != &**before)
        }) {
            changed |= self.snapshot.addresses.remove(&before).is_some();
        }
        if let Some(workload) = built {
            let name: Arc<str> = workload.uid.as_str().into();
            self.orphans.insert(address, Arc::clone(&name));
            let message = Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            let resource = Resource::new(type_url::ADDRESS, Arc::clone(&name), &message);
            changed |= super::flush::set(&mut self.snapshot.addresses, &name, Some(resource));
        }
        changed
    }

    /// Marks what a node's new word can affect, and lets go who is gone with it.
    pub(super) fn touch_held(&mut self, node: &Arc<str>, difference: Difference) {
        for uid in difference.pods {
            let gone = self.departed.contains(&uid)
                && self
                    .pods
                    .get(&uid)
                    .is_some_and(|pod| pod.node == *node && !self.is_held(&uid, pod));
            if gone && let Some(pod) = self.pods.get(&uid).cloned() {
                self.set_pod(&pod.key, None);
            }
            self.dirty
                .node_pods
                .insert((Arc::clone(node), Arc::clone(&uid)));
            self.dirty.pods.insert(uid);
        }
        for address in difference.addresses {
            // Whether its node holds the address decides how each of them is reached.
            let pods = self.pods_by_address.get(&address).into_iter().flatten();
            self.dirty.pods.extend(pods.cloned());
            self.touch_address(address);
        }
    }

    /// Marks the addresses of the sandboxes that go by a pod's name on a node.
    pub(super) fn touch_sandboxes(&mut self, node: &str, uid: &str) {
        let own = self.holdings.of(node, uid).iter();
        let addresses: Vec<IpAddr> = own.flat_map(|own| own.addresses.iter().copied()).collect();
        for address in addresses {
            self.touch_address(address);
        }
    }

    /// Marks what is said of an address, but for the pods whose objects have it.
    pub(super) fn touch_address(&mut self, address: IpAddr) {
        if !self.departed.is_empty() {
            let pods = self.pods_by_address.get(&address).into_iter().flatten();
            let departed = pods.filter(|uid| self.departed.contains(*uid));
            self.dirty.pods.extend(departed.cloned());
        }
        let holders = self.holdings.at(address);
        let uids: Vec<_> = holders.map(|(_, sandbox)| self.uid(&sandbox.pod)).collect();
        self.dirty.pods.extend(uids);
        self.dirty.addresses.insert(address);
        self.touch_endpoints_at(address);
    }
}

/// Who has an address that is in no object: reached by tunnel as who it was, or a tombstone where it is not known who
/// that was, or whether it is still there.
fn orphan_workload(
    mesh: &super::MeshConfig,
    node: &Arc<str>,
    sandbox: &Sandbox,
    address: IpAddr,
) -> pb::Workload {
    let NamespacedName { namespace, name } = &sandbox.pod;
    let known = sandbox.service_account.as_deref().filter(|_| !sandbox.lost);
    let uid = match known {
        Some(_) => format!(
            "{}/keelson.io/Sandbox/{namespace}/{name}/{address}",
            mesh.cluster_id
        ),
        None => Tombstone::uid(&mesh.cluster_id, namespace, name, address).to_string(),
    };
    pb::Workload {
        uid,
        name: name.to_string(),
        namespace: namespace.to_string(),
        addresses: vec![octets(address)],
        tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
        trust_domain: workload::unless_default(&mesh.trust_domain, "cluster.local"),
        service_account: workload::unless_default(known.unwrap_or("default"), "default"),
        node: node.to_string(),
        status: pb::WorkloadStatus::Unhealthy.into(),
        cluster_id: workload::unless_default(&mesh.cluster_id, "Kubernetes"),
        ..pb::Workload::default()
    }
}
