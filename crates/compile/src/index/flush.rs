//! Rebuilds what is marked, and keeps what came out the same.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use manifest::{NamespacedName, PodFacts};
use model::PolicyKey;
use proto::istio::security::Scope;
use proto::istio::workload::{Address, GatewayAddress, address};
use proto::type_url;

use super::peer_authentication::{self, Effect, converted, strict_key};
use super::waypoints::edge;
use super::workload::{self, Surroundings};
use super::{Changes, Dirty, Index, enrolment, service, waypoint};
use crate::resource::Resource;
use crate::snapshot::{NodeEntry, Resources};
use crate::store::{GATEWAY_NAME, ServiceFacts};

impl Index {
    /// Rebuilds what changed since the last flush. Look at [`Index::snapshot`] for the result.
    pub fn flush(&mut self) -> Changes {
        self.settle_entries();
        let mut dirty = std::mem::take(&mut self.dirty);
        // Nearly everything that a pod or a namespace says can be what a NetworkPolicy asks for.
        dirty.network |= self.has_network_policies() && !dirty.pods.is_empty();
        let network = dirty.network && self.flush_network_policies(&mut dirty.pods);
        let mut changes = Changes {
            captured: dirty.captured,
            workloads_built: dirty.pods.len() + dirty.endpoints.len(),
            ..Changes::default()
        };
        changes.resources |= network;
        changes.resources |= self.flush_policies(&dirty);
        for key in &dirty.services {
            let name = service::resource_name(key, &self.mesh);
            let built = self
                .services
                .get(key)
                .and_then(|facts| service::build(facts, &self.mesh, self.waypoint_of(facts)));
            let built = built.map(|service| Address {
                r#type: Some(address::Type::Service(service)),
            });
            let built = built.map(|address| Resource::new(type_url::ADDRESS, &*name, &address));
            changes.resources |= set(&mut self.snapshot.addresses, &name, built);
        }
        for uid in &dirty.pods {
            changes.resources |= self.flush_pod(uid);
        }
        for (slice, address) in &dirty.endpoints {
            changes.resources |= self.flush_endpoint(slice, *address);
        }
        for address in &dirty.addresses {
            changes.resources |= self.flush_address(*address);
        }
        changes.resources |= self.flush_waypoints(&dirty);
        for (node, uid) in &dirty.node_pods {
            changes.resources |= self.flush_node_pod(node, uid);
        }
        changes.resources |= dirty.namespaces;
        let mut diagnostics = dirty.diagnostics;
        self.say_of_services(&dirty.services, &mut diagnostics);
        self.say_of_gateways(&mut diagnostics);
        self.say_of_patterns(&mut diagnostics);
        changes.diagnostics = diagnostics.into_iter().collect();
        self.snapshot.generation += u64::from(changes.resources);
        changes
    }

    fn flush_policies(&mut self, dirty: &Dirty) -> bool {
        let mut changed = false;
        let map = &mut self.snapshot.authorizations;
        for key in &dirty.policies {
            let name = key.to_string();
            let compiled = self
                .policies
                .get(key)
                .and_then(|(_, compiled)| compiled.authorization.as_ref());
            changed |= set(
                map,
                &name,
                compiled.map(|policy| Resource::new(type_url::AUTHORIZATION, &*name, policy)),
            );
        }
        if dirty.static_strict {
            let root = &self.mesh.root_namespace;
            let name = strict_key(root).to_string();
            let built = (!self.peer_authentications.is_empty())
                .then(|| peer_authentication::static_strict(root));
            changed |= set(
                map,
                &name,
                built.map(|policy| Resource::new(type_url::AUTHORIZATION, &*name, &policy)),
            );
        }
        for key in &dirty.peer_authentications {
            let inherits_strict = self.inherited_strict(&key.namespace).is_some();
            let own = self.peer_authentications.get(key);
            let selecting = own.filter(|policy| !policy.selector.is_empty());
            let built =
                selecting.and_then(|policy| peer_authentication::convert(inherits_strict, policy));
            let name = converted(key).to_string();
            let built = built.map(|policy| Resource::new(type_url::AUTHORIZATION, &*name, &policy));
            changed |= set(&mut self.snapshot.authorizations, &name, built);
        }
        changed
    }

    fn flush_pod(&mut self, uid: &Arc<str>) -> bool {
        let built = self.pods.get(uid).and_then(|pod| {
            let workload = workload::from_pod(uid, pod, &self.mesh, self.surroundings(uid, pod)?)?;
            let address = Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            Some(Resource::new(type_url::ADDRESS, Arc::clone(uid), &address))
        });
        let changed = set(&mut self.snapshot.addresses, uid, built);
        let announced = self.announce(uid, changed);
        changed | announced | self.flush_unreported(uid) | self.flush_mark(uid)
    }

    /// Follows what the snapshot says of a pod; `changed`: the next generation says it first.
    fn announce(&mut self, uid: &Arc<str>, changed: bool) -> bool {
        let generation = self.snapshot.generation + u64::from(changed);
        let pod = self.pods.get(uid).map(Arc::clone);
        match pod.filter(|pod| self.is_present(uid, pod) && self.is_captured(uid, pod)) {
            None => self.announcements.gone(uid),
            Some(pod) if self.enrolment(uid, &pod).capture => {
                let addresses = self.addresses_of(uid, &pod);
                self.announcements.captured(uid, &addresses, generation);
            }
            // What is taken back now is taken back in the next generation.
            Some(_) => {
                let next = self.snapshot.generation + 1;
                self.announcements.leaving(uid, next);
            }
        }
        let built = self.announcements.resource(uid);
        set(&mut self.snapshot.announced, uid, built)
    }

    pub(super) fn waypoint_of(&self, service: &ServiceFacts) -> Option<GatewayAddress> {
        let declared = service.declared.as_deref();
        if declared.is_some_and(|declared| declared.passes_through) {
            // It would not know where to.
            return None;
        }
        let namespace = &service.key.namespace;
        let of_namespace = self.namespaces.get(namespace);
        let has_auto = || self.has_auto(namespace);
        waypoint::required(
            &self.mesh,
            namespace,
            &service.labels,
            of_namespace,
            has_auto,
        )
        .filter(|address| self.serves(address).is_none_or(|serves| serves.services))
        .filter(|address| self.lets_in(address, namespace))
    }

    /// The waypoint that connections to a pod's own addresses have to go through.
    pub(super) fn waypoint_of_pod(&self, pod: &PodFacts) -> Option<GatewayAddress> {
        let namespace = &pod.key.namespace;
        let of_namespace = self.namespaces.get(namespace);
        let has_auto = || self.has_auto(namespace);
        waypoint::required(&self.mesh, namespace, &pod.labels, of_namespace, has_auto)
            .filter(|address| self.serves(address).is_none_or(|serves| serves.workloads))
            .filter(|address| self.lets_in(address, namespace))
    }

    /// Whether a pod may connect to nobody that the mesh does not know, as its namespace says. Gateways and waypoints are the
    /// way out.
    fn is_egress_closed(&self, pod: &PodFacts) -> bool {
        let labels = self.namespaces.get(&pod.key.namespace);
        let word = labels.and_then(|labels| labels.get(enrolment::EGRESS));
        word.is_some_and(|word| word != "open") && !pod.labels.contains_key(GATEWAY_NAME)
    }

    /// Whether a namespace has a waypoint that was made for `keelson.io/l7: auto` and has been ready.
    fn has_auto(&self, namespace: &Arc<str>) -> bool {
        let name = NamespacedName::new(namespace, waypoint::AUTO_NAME);
        self.gateways.get(&name).is_some_and(|serves| serves.auto)
    }

    /// What the `Gateway` of a waypoint says that it is for.
    pub(super) fn serves(&self, address: &GatewayAddress) -> Option<&waypoint::Serves> {
        self.gateways.get(&waypoint::named(address)?)
    }

    /// Whether a waypoint lets a namespace use it. One whose `Gateway` is not there has refused nobody.
    pub(super) fn lets_in(&self, address: &GatewayAddress, namespace: &Arc<str>) -> bool {
        let (Some(serves), Some(waypoint)) = (self.serves(address), waypoint::named(address))
        else {
            return true;
        };
        self.may_attach(&serves.from, &waypoint.namespace, namespace)
    }

    /// None for a pod that is over.
    fn surroundings(&self, uid: &Arc<str>, pod: &PodFacts) -> Option<Surroundings> {
        if !self.is_present(uid, pod) {
            return None;
        }
        let addresses = self.addresses_of(uid, pod);
        let endpoints = self.endpoints_of_pod(uid, pod, &addresses);
        // Another namespace's Service may name any pod as its endpoint, in a slice that is written by hand: where its
        // connections go is its own business, and who may connect to the pod is not.
        let own = |key: &&NamespacedName| key.namespace == pod.key.namespace;
        let (policies, strict_by) = self.policies_of(uid, pod, endpoints.keys().filter(own));
        Some(Surroundings {
            captured: self.is_captured(uid, pod),
            locality: self.nodes.get(&pod.node).cloned().flatten(),
            waypoint: self.waypoint_of_pod(pod),
            egress_closed: self.is_egress_closed(pod),
            isolated: self.isolated(pod),
            policies,
            strict_by,
            endpoints: self.publish(
                &endpoints,
                &addresses,
                (&pod.key.namespace, workload::takes_connections(pod)),
            ),
            addresses,
        })
    }

    /// The policies that a pod names, and who makes it strict on every port. Policies of its whole namespace and of the
    /// mesh apply without being named.
    fn policies_of<'k>(
        &self,
        uid: &str,
        pod: &PodFacts,
        services: impl Iterator<Item = &'k NamespacedName>,
    ) -> (Vec<String>, Option<PolicyKey>) {
        let root: Arc<str> = self.mesh.root_namespace.as_str().into();
        // A gateway asks the policies that select it itself, request by request.
        let mut keys = match edge::is_gateway(&pod.labels) {
            true => BTreeSet::new(),
            false => self.selecting(&root, pod),
        };
        keys.extend(
            services
                .filter_map(|service| self.policies_by_service.get(service))
                .flatten()
                .cloned(),
        );
        let named = keys.into_iter().filter(|key| {
            let compiled = self
                .policies
                .get(key)
                .and_then(|(_, compiled)| compiled.authorization.as_ref());
            compiled.is_some_and(|policy| policy.scope() == Scope::WorkloadSelector)
        });
        let mut names: Vec<_> = named.map(|key| key.to_string()).collect();
        let (strict, strict_by) = match self.peer_authentication_of_pod(pod) {
            Effect::Permissive => (None, None),
            Effect::Strict { by } => (Some(strict_key(&root)), Some(converted(by))),
            Effect::Converted { from } => (Some(converted(from)), None),
        };
        names.extend(strict.map(|key| key.to_string()));
        names.extend(self.network.of(uid).cloned());
        names.sort();
        (names, strict_by)
    }

    /// The policies that select a pod.
    pub(super) fn selecting(&self, root: &Arc<str>, pod: &PodFacts) -> BTreeSet<NamespacedName> {
        let namespace = &pod.key.namespace;
        let mut keys = self.policy_selectors.matching(namespace, &pod.labels);
        if namespace != root {
            keys.extend(self.policy_selectors.matching(root, &pod.labels));
        }
        keys
    }

    pub(super) fn peer_authentication_of_pod(&self, pod: &PodFacts) -> Effect<'_> {
        let namespace = &pod.key.namespace;
        let selecting = self
            .peer_authentication_selectors
            .matching(namespace, &pod.labels);
        let own = selecting
            .iter()
            .filter_map(|key| self.peer_authentications.get(key));
        let own = own.min_by(|a, b| a.rank().cmp(&b.rank()));
        peer_authentication::effect(self.inherited_strict(namespace), own)
    }

    fn flush_endpoint(&mut self, slice_key: &NamespacedName, address: IpAddr) -> bool {
        let uid = workload::endpoint_uid(&self.mesh, slice_key, address);
        let built = self.slices.get(slice_key).and_then(|slice| {
            let endpoints = self.endpoints_of_address(slice, address)?;
            if self.pods_by_address.contains_key(&address) || self.is_orphaned(address) {
                return None;
            }
            let endpoints = self.publish(&endpoints, &[address], (&slice.key.namespace, false));
            let workload = workload::from_endpoint(&uid, slice, address, &self.mesh, endpoints);
            let address = Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            Some(Resource::new(type_url::ADDRESS, &*uid, &address))
        });
        set(&mut self.snapshot.addresses, &uid, built)
    }

    /// Tells a node of a pod that is there, and takes it from a node where it is not.
    fn flush_node_pod(&mut self, node: &Arc<str>, uid: &Arc<str>) -> bool {
        let here = self
            .pods
            .get(uid)
            .filter(|pod| pod.node == *node && !node.is_empty() && self.is_present(uid, pod));
        let built = here.map(|pod| {
            let mut enrolment = self.enrolment(uid, pod);
            if !enrolment.capture && self.announcements.is_held(uid) {
                enrolment.capture = true;
                enrolment.reason += "; it leaves the mesh when all nodes know";
            }
            let message = workload::node_pod(uid, pod, &self.mesh, enrolment);
            NodeEntry {
                resource: Arc::new(Resource::new(type_url::NODE_POD, Arc::clone(uid), &message)),
                namespace: Arc::clone(&pod.key.namespace),
                service_account: Arc::clone(&pod.service_account),
            }
        });
        let pods = self.snapshot.nodes.get(node).cloned().unwrap_or_default();
        if pods.get(uid).map(|known| &**known) == built.as_ref() {
            return false;
        }
        let pods: OrdMap<_, _> = match built {
            Some(entry) => pods.update(Arc::clone(uid), Arc::new(entry)),
            None => pods.without(uid),
        };
        if pods.is_empty() {
            self.snapshot.nodes.remove(node);
        } else {
            self.snapshot.nodes.insert(Arc::clone(node), pods);
        }
        true
    }
}

/// Puts a resource into its map, unless the same content is there. Returns whether the map changed.
pub(super) fn set(map: &mut Resources, name: &str, built: Option<Resource>) -> bool {
    match built {
        None => map.remove(name).is_some(),
        Some(resource) => {
            if map
                .get(name)
                .is_some_and(|known| known.version == resource.version)
            {
                return false;
            }
            map.insert(Arc::clone(&resource.name), Arc::new(resource));
            true
        }
    }
}
