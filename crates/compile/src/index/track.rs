//! Which resources a change of an object can affect.
//!
//! Each `set_*` compares the new facts with the old, keeps the maps from one kind to another (`slices_by_pod`,
//! `policies_by_service`, selectors) and marks what may come out differently. It marks before and after: what the
//! object named and what it names now. Marking too much costs a build whose result is thrown away, because a
//! resource with the same content keeps its version; marking too little is a stale mesh. So where it is not plain
//! which, more is marked.
//!
//! | what changed | marked pods | also marked |
//! |---|---|---|
//! | labels of a namespace | all of the namespace | its Services, and its nodes' lists of pods |
//! | locality of a Node | those on it | |
//! | a Node goes | those that it held and nobody else has | addresses that it held |
//! | a Pod | itself, and pods of its namespace that are terminating | its addresses before and after, its node's list |
//! | a Service | those that it selects or that its slices name | itself, and endpoints without a pod |
//! | an `EndpointSlice` | those behind its Service before and after | endpoints without a pod |
//! | a `ServiceEntry` | as Services and `EndpointSlice` objects that it stands for | waypoints that look up a Service's address for it |
//! | a `PeerAuthentication` | those that it selects | itself as a policy; all that inherit from it, where that changes |
//! | an `AuthorizationPolicy` | those that name it: by selector, or behind the Services that it targets | itself |
//! | a `NetworkPolicy`, and while there is one a pod, a namespace or a node | those that name another policy of it then | all that `NetworkPolicy` objects mean |
//! | a node's report | those that it holds or held | their addresses |
//! | an L7 object | | all waypoints; what else concerns waypoints: [`super::waypoints`] |
//!
//! That this is enough is a property: after any changes in any order the index has what one has that is built
//! from what is left alone (`index::tests::incremental`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use k8s_api::Namespace;
use manifest::{Diagnostic, Kind, NamespacedName, ObjectKey, PodFacts, Severity, Upsert};
use proto::istio::workload::Locality;

use super::enrolment::{DATAPLANE_MODE, EGRESS, MESH};
use super::trust_domains::TrustDomains;
use super::{Index, authorization, name, peer_authentication, workload};
use crate::store::{PeerAuthenticationFacts, PolicyFacts, ServiceFacts, SliceFacts};

impl Index {
    pub(super) fn set_namespace(&mut self, namespace: &Namespace, upsert: &Upsert) {
        let key = ObjectKey::new(
            Kind::Namespace,
            "",
            namespace.metadata.name.as_deref().unwrap_or_default(),
        );
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        let mut notes = Vec::new();
        for (label, right) in [(MESH, "enabled"), (DATAPLANE_MODE, "ambient")] {
            if let Some(value) = labels
                .get(label)
                .filter(|value| ![right, "disabled", "none"].contains(&value.as_str()))
            {
                let message = format!(
                    "{label}={value} means nothing; write {right} to enrol the namespace or disabled to leave it out"
                );
                let note = Diagnostic::new(Severity::Warning, &upsert.origin, Some(&key), message);
                notes.push(note.field(format!("metadata.labels[{label:?}]")));
            }
        }
        if let Some(value) = labels
            .get(EGRESS)
            .filter(|value| !["open", "closed"].contains(&value.as_str()))
        {
            let message = format!("{EGRESS}={value} means nothing; write open or closed");
            let note = Diagnostic::new(Severity::Error, &upsert.origin, Some(&key), message);
            notes.push(note.field(format!("metadata.labels[{EGRESS:?}]")));
        }
        self.dirty.diagnostics.insert(key, notes);
        let namespace = name(namespace.metadata.name.as_deref());
        let before = self
            .namespaces
            .insert(Arc::clone(&namespace), labels.clone());
        if before.as_ref() != Some(&labels) {
            self.touch_namespace(&namespace);
            self.dirty.network |= self.has_network_policies();
        }
        let known = &mut self.snapshot.mesh_namespaces;
        self.dirty.namespaces |= if super::enrolment::enrols(&labels, self.mesh.ambient_label) {
            known.insert(namespace).is_none()
        } else {
            known.remove(&namespace).is_some()
        };
    }

    pub(super) fn unset_namespace(&mut self, key: &ObjectKey) {
        self.dirty.diagnostics.insert(key.clone(), Vec::new());
        if self.namespaces.remove(key.name()).is_some() {
            self.touch_namespace(&key.name().into());
            self.dirty.network |= self.has_network_policies();
        }
        self.dirty.namespaces |= self.snapshot.mesh_namespaces.remove(key.name()).is_some();
    }

    pub(super) fn set_node(&mut self, node: &Arc<str>, locality: Option<Option<Locality>>) {
        let before = self.nodes.get(node).cloned().flatten();
        let now = locality.clone().flatten();
        match locality {
            Some(locality) => {
                self.nodes.insert(Arc::clone(node), locality);
            }
            None if self.nodes.remove(node).is_some() => {
                self.dirty.network |= self.node_addresses.remove(node).is_some();
                self.forget_node(node);
            }
            None => {}
        }
        if before != now {
            self.dirty
                .pods
                .extend(self.pods_by_node.get(node).into_iter().flatten().cloned());
        }
    }

    /// The node is no more, and with it what it held, but for pods whose objects say otherwise.
    fn forget_node(&mut self, node: &Arc<str>) {
        let (pods, departed) = (&self.pods, &self.departed);
        let difference = self.holdings.forget(node, |uid, sandbox| {
            let object = pods.get(uid).filter(|_| !departed.contains(uid));
            !sandbox.lost && object.is_some_and(|pod| pod.node == *node && sandbox.is_of(pod))
        });
        self.dirty.captured |= !difference.pods.is_empty();
        self.touch_held(node, difference);
    }

    pub(super) fn set_pod(&mut self, key: &NamespacedName, facts: Option<Arc<PodFacts>>) {
        let uid = self.uid(key);
        let Some(facts) = self.or_departed(&uid, facts) else {
            return;
        };
        if let Some(old) = self.pods.remove(&uid) {
            self.dirty
                .node_pods
                .insert((Arc::clone(&old.node), Arc::clone(&uid)));
            unlink(&mut self.pods_by_namespace, &old.key.namespace, &uid);
            unlink(&mut self.pods_by_node, &old.node, &uid);
            self.touch_sandboxes(&old.node, &uid);
            for address in &old.addresses {
                unlink(&mut self.pods_by_address, address, &uid);
                self.touch_address(*address);
            }
            self.pod_labels
                .remove(&old.key.namespace, &old.labels, &uid);
            self.terminating.remove(&uid);
            self.touch_terminating_beside(&old);
        }
        if let Some(new) = facts {
            self.dirty
                .node_pods
                .insert((Arc::clone(&new.node), Arc::clone(&uid)));
            link(&mut self.pods_by_namespace, &new.key.namespace, &uid);
            link(&mut self.pods_by_node, &new.node, &uid);
            for address in new.addresses.iter().filter(|_| !new.host_network) {
                link(&mut self.pods_by_address, address, &uid);
                if !new.finished && !self.departed.contains(&uid) {
                    self.dirty.captured |= self.holdings.pass_on(*address, &new.node);
                }
                self.touch_address(*address);
            }
            self.dirty.captured |= self.holdings.bind(&uid, &new);
            self.touch_sandboxes(&new.node, &uid);
            self.pod_labels
                .insert(&new.key.namespace, &new.labels, &uid);
            if new.terminating {
                self.terminating.insert(Arc::clone(&uid));
            }
            self.touch_terminating_beside(&new);
            self.pods.insert(Arc::clone(&uid), new);
        }
        self.dirty.pods.insert(uid);
    }

    /// What takes the place of a pod's facts: the facts of its object, or its own without one while its node holds it.
    /// None if nothing changes.
    fn or_departed(
        &mut self,
        uid: &Arc<str>,
        facts: Option<Arc<PodFacts>>,
    ) -> Option<Option<Arc<PodFacts>>> {
        let known = self.pods.get(uid).cloned();
        let facts = match (facts, known) {
            // What was kept over a restart is put in as departed.
            (Some(facts), None) => return Some(Some(facts)),
            (Some(facts), Some(known)) => {
                let is_back = self.departed.remove(uid);
                self.dirty.captured |= is_back;
                return (is_back || known != facts).then_some(Some(facts));
            }
            (None, known) => known?,
        };
        if !self.is_held(uid, &facts) {
            self.dirty.captured |= self.departed.remove(uid);
            return Some(None);
        }
        // A pod that was terminating already stays as it is, and its node is told why it is kept.
        let is_news = self.departed.insert(Arc::clone(uid));
        self.dirty.captured |= is_news;
        let mut departed = PodFacts::clone(&facts);
        departed.terminating = true;
        (is_news || departed != *facts).then(|| Some(Arc::new(departed)))
    }

    /// A pod is or was an endpoint of Services that count those which are ending only where no other is ready.
    fn touch_terminating_beside(&mut self, pod: &PodFacts) {
        let beside = self.terminating.iter().filter(|uid| {
            let other = self.pods.get(*uid);
            other.is_some_and(|other| other.key.namespace == pod.key.namespace)
        });
        self.dirty.pods.extend(beside.cloned());
    }

    pub(super) fn set_service(&mut self, key: &NamespacedName, facts: Option<ServiceFacts>) {
        if self.services.get(key) == facts.as_ref() {
            return;
        }
        self.touch_pods_of(key);
        if let Some(old) = self
            .services
            .remove(key)
            .filter(|old| !old.selector.is_empty())
        {
            self.service_selectors
                .remove(&key.namespace, &old.selector, key);
        }
        if let Some(new) = facts {
            if !new.selector.is_empty() {
                self.service_selectors
                    .insert(&key.namespace, &new.selector, key.clone());
            }
            self.services.insert(key.clone(), new);
        }
        self.touch_pods_of(key);
        self.dirty.services.insert(key.clone());
    }

    pub(super) fn set_slice(&mut self, key: &NamespacedName, facts: Option<SliceFacts>) {
        if self.slices.get(key) == facts.as_ref() {
            return;
        }
        let services: BTreeSet<_> = self
            .slices
            .get(key)
            .into_iter()
            .chain(&facts)
            .map(|f| f.service.clone())
            .collect();
        // Before and after: the first slice of a Service ends, and the last one begins, that its selector counts.
        services
            .iter()
            .for_each(|service| self.touch_pods_of(service));
        // A pod that a slice names may be no endpoint by that, and is one that waypoints look at.
        services
            .iter()
            .for_each(|service| self.mark_involved(service));
        if let Some(old) = self.slices.remove(key) {
            unlink(&mut self.slices_by_service, &old.service, key);
            for endpoint in &old.endpoints {
                match &endpoint.pod {
                    Some(pod) => unlink(
                        &mut self.slices_by_pod,
                        &workload::pod_uid(&self.mesh, pod).into(),
                        key,
                    ),
                    None => endpoint
                        .addresses
                        .iter()
                        .for_each(|ip| unlink(&mut self.slices_by_address, ip, key)),
                }
            }
        }
        if let Some(new) = facts {
            link(&mut self.slices_by_service, &new.service, key);
            for endpoint in &new.endpoints {
                match &endpoint.pod {
                    Some(pod) => link(
                        &mut self.slices_by_pod,
                        &workload::pod_uid(&self.mesh, pod).into(),
                        key,
                    ),
                    None => endpoint
                        .addresses
                        .iter()
                        .for_each(|ip| link(&mut self.slices_by_address, ip, key)),
                }
            }
            self.slices.insert(key.clone(), new);
        }
        services
            .iter()
            .for_each(|service| self.touch_pods_of(service));
    }

    pub(super) fn set_peer_authentication(
        &mut self,
        key: &NamespacedName,
        facts: Option<PeerAuthenticationFacts>,
    ) {
        if self.peer_authentications.get(key) == facts.as_ref() {
            return;
        }
        let namespace = &key.namespace;
        let was_strict = self.inherited_strict(namespace).cloned();
        let had_any = !self.peer_authentications.is_empty();
        if let Some(old) = self
            .peer_authentications
            .remove(key)
            .filter(|old| !old.selector.is_empty())
        {
            self.peer_authentication_selectors
                .remove(namespace, &old.selector, key);
            self.dirty
                .pods
                .extend(self.pod_labels.carrying(namespace, &old.selector));
        }
        if let Some(new) = facts {
            if !new.selector.is_empty() {
                self.peer_authentication_selectors
                    .insert(namespace, &new.selector, key.clone());
                self.dirty
                    .pods
                    .extend(self.pod_labels.carrying(namespace, &new.selector));
            }
            self.peer_authentications.insert(key.clone(), new);
        }
        let wide = self
            .peer_authentications
            .values()
            .filter(|p| p.key.namespace == *namespace && p.selector.is_empty());
        match wide
            .min_by(|a, b| a.rank().cmp(&b.rank()))
            .map(|winner| winner.key.clone())
        {
            Some(winner) => self
                .peer_authentication_of
                .insert(Arc::clone(namespace), winner),
            None => self.peer_authentication_of.remove(namespace),
        };
        self.dirty.static_strict |= had_any == self.peer_authentications.is_empty();
        self.dirty.peer_authentications.insert(key.clone());
        if was_strict.as_ref() != self.inherited_strict(namespace) {
            self.touch_inheriting(namespace);
        }
    }

    /// What a namespace inherits changed; in the root namespace, what every namespace inherits.
    fn touch_inheriting(&mut self, namespace: &Arc<str>) {
        let everywhere = **namespace == self.mesh.root_namespace;
        if everywhere {
            self.dirty.pods.extend(self.pods.keys().cloned());
        } else {
            self.touch_namespace(namespace);
        }
        let converted = self
            .peer_authentications
            .keys()
            .filter(|key| everywhere || key.namespace == *namespace);
        self.dirty.peer_authentications.extend(converted.cloned());
    }

    /// The object that makes workloads of a namespace strict where no object of their own says otherwise.
    pub(super) fn inherited_strict(&self, namespace: &str) -> Option<&NamespacedName> {
        let of = |namespace: &str| {
            self.peer_authentication_of
                .get(namespace)
                .and_then(|key| self.peer_authentications.get(key))
        };
        let root = self.mesh.root_namespace.as_str();
        let own = if namespace == root {
            None
        } else {
            of(namespace)
        };
        peer_authentication::inherited(of(root), own)
    }

    pub(super) fn set_policy(&mut self, key: &NamespacedName, facts: Option<PolicyFacts>) {
        if self.policies.get(key).map(|(known, _)| known) == facts.as_ref() {
            return;
        }
        self.touch_pods_under(key);
        if let Some((old, compiled)) = self.policies.remove(key) {
            if let Some(selector) = old.selector().filter(|selector| !selector.is_empty()) {
                self.policy_selectors.remove(&key.namespace, selector, key);
            }
            for service in &compiled.services {
                unlink(
                    &mut self.policies_by_service,
                    &NamespacedName::new(&key.namespace, service),
                    key,
                );
            }
        }
        let object = ObjectKey::new(Kind::AuthorizationPolicy, &key.namespace, &key.name);
        self.dirty.diagnostics.insert(object.clone(), Vec::new());
        if let Some(new) = facts {
            let domains = TrustDomains::of(&self.mesh);
            let compiled = authorization::compile(&new, &self.mesh.root_namespace, &domains);
            if let Some(selector) = new.selector().filter(|selector| !selector.is_empty()) {
                self.policy_selectors
                    .insert(&key.namespace, selector, key.clone());
            }
            for service in &compiled.services {
                link(
                    &mut self.policies_by_service,
                    &NamespacedName::new(&key.namespace, service),
                    key,
                );
            }
            let notes = compiled.notes.iter().map(|note| {
                let origin = new.origin.at_line(new.lines.line(&note.field));
                Diagnostic::new(note.severity, &origin, Some(&object), &note.message)
                    .field(&note.field)
            });
            self.dirty
                .diagnostics
                .insert(object.clone(), notes.collect());
            self.policies.insert(key.clone(), (new, compiled));
        }
        let http = self.policies.get(key).and_then(|(facts, _)| {
            let domains = TrustDomains::of(&self.mesh);
            authorization::http::compile(facts, &self.mesh, &domains)
        });
        self.set_http_policy(key, http);
        self.touch_pods_under(key);
        self.dirty.policies.insert(key.clone());
    }

    /// Marks the pods that name a policy: those it selects, in the root namespace of all namespaces, and those behind
    /// the Services it targets.
    fn touch_pods_under(&mut self, policy: &NamespacedName) {
        let Some((facts, compiled)) = self.policies.get(policy) else {
            return;
        };
        let services: Vec<_> = compiled
            .services
            .iter()
            .map(|name| NamespacedName::new(&policy.namespace, name))
            .collect();
        if let Some(selector) = facts.selector().filter(|selector| !selector.is_empty()) {
            let namespaces: Vec<_> = if *policy.namespace == *self.mesh.root_namespace {
                self.pods_by_namespace.keys().cloned().collect()
            } else {
                vec![Arc::clone(&policy.namespace)]
            };
            for namespace in &namespaces {
                self.dirty
                    .pods
                    .extend(self.pod_labels.carrying(namespace, selector));
            }
        }
        services
            .iter()
            .for_each(|service| self.touch_pods_of(service));
    }

    fn touch_namespace(&mut self, namespace: &Arc<str>) {
        let pods = self
            .pods_by_namespace
            .get(namespace)
            .cloned()
            .unwrap_or_default();
        for uid in &pods {
            if let Some(pod) = self.pods.get(uid) {
                self.dirty
                    .node_pods
                    .insert((Arc::clone(&pod.node), Arc::clone(uid)));
            }
        }
        self.dirty.pods.extend(pods);
        // Waypoints are inherited.
        let from = NamespacedName::new(namespace, "");
        let services = self.services.range(from..).map(|(key, _)| key);
        let services = services.take_while(|key| key.namespace == *namespace);
        self.dirty.services.extend(services.cloned());
        self.recheck_entries();
    }

    /// Marks everything that lists its ports of a Service: pods and endpoints.
    fn touch_pods_of(&mut self, service: &NamespacedName) {
        let Some(slices) = self.slices_by_service.get(service) else {
            if let Some(facts) = self
                .services
                .get(service)
                .filter(|facts| !facts.selector.is_empty())
            {
                self.dirty.pods.extend(
                    self.pod_labels
                        .carrying(&service.namespace, &facts.selector),
                );
            }
            return;
        };
        for slice in slices.iter().filter_map(|key| self.slices.get(key)) {
            for endpoint in &slice.endpoints {
                if let Some(pod) = &endpoint.pod {
                    self.dirty
                        .pods
                        .insert(workload::pod_uid(&self.mesh, pod).into());
                    continue;
                }
                for address in &endpoint.addresses {
                    self.dirty.pods.extend(
                        self.pods_by_address
                            .get(address)
                            .into_iter()
                            .flatten()
                            .cloned(),
                    );
                    self.dirty.endpoints.insert((slice.key.clone(), *address));
                }
            }
        }
    }

    /// A pod came to or left an address that slices list without naming a pod.
    pub(super) fn touch_endpoints_at(&mut self, address: std::net::IpAddr) {
        let slices = self.slices_by_address.get(&address).into_iter().flatten();
        self.dirty
            .endpoints
            .extend(slices.map(|slice| (slice.clone(), address)));
    }
}

fn link<K: Clone + Eq + Hash, V: Clone + Ord>(
    map: &mut HashMap<K, BTreeSet<V>>,
    key: &K,
    value: &V,
) {
    map.entry(key.clone()).or_default().insert(value.clone());
}

pub(super) fn unlink_ordered<K: Ord, V: Ord>(
    map: &mut BTreeMap<K, BTreeSet<V>>,
    key: &K,
    value: &V,
) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}

fn unlink<K: Eq + Hash, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
