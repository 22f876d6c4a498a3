//! Rebuilds what is marked, and keeps what came out the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use proto::istio::security::Scope;
use proto::istio::workload::{Address, PortList, address};
use proto::type_url;

use super::peer_authentication::{self, Effect, STATIC_STRICT, converted_name};
use super::workload::{self, Surroundings};
use super::{Changes, Dirty, Index, enrolment, service};
use crate::resource::Resource;
use crate::snapshot::{NodeEntry, Resources};
use crate::store::{NamespacedName, PodFacts};

impl Index {
    /// Rebuilds what changed since the last flush. Look at [`Index::snapshot`] for the result.
    pub fn flush(&mut self) -> Changes {
        let dirty = std::mem::take(&mut self.dirty);
        let mut changes = Changes {
            captured: dirty.captured,
            workloads_built: dirty.pods.len() + dirty.endpoints.len(),
            ..Changes::default()
        };
        changes.resources |= self.flush_policies(&dirty);
        for key in &dirty.services {
            let name = service::resource_name(key, &self.mesh);
            let built = self
                .services
                .get(key)
                .and_then(|facts| service::build(facts, &self.mesh));
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
        for (node, uid) in &dirty.node_pods {
            changes.resources |= self.flush_node_pod(node, uid);
        }
        changes.diagnostics = dirty.diagnostics.into_iter().collect();
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
            let name = format!("{root}/{STATIC_STRICT}");
            let built = (!self.peer_authentications.is_empty())
                .then(|| peer_authentication::static_strict(root));
            changed |= set(
                map,
                &name,
                built.map(|policy| Resource::new(type_url::AUTHORIZATION, &*name, &policy)),
            );
        }
        for key in &dirty.peer_authentications {
            let inherits_strict = self.inherits_strict(&key.namespace);
            let selecting = self.peer_authentications.get(key).filter(|policy| {
                !policy.selector.is_empty() && *key.namespace != *self.mesh.root_namespace
            });
            let built =
                selecting.and_then(|policy| peer_authentication::convert(inherits_strict, policy));
            let name = format!("{}/{}", key.namespace, converted_name(&key.name));
            let built = built.map(|policy| Resource::new(type_url::AUTHORIZATION, &*name, &policy));
            changed |= set(&mut self.snapshot.authorizations, &name, built);
        }
        changed
    }

    fn flush_pod(&mut self, uid: &Arc<str>) -> bool {
        let built = self.pods.get(uid).and_then(|pod| {
            let workload = workload::from_pod(uid, pod, &self.mesh, self.surroundings(uid, pod))?;
            let address = Address {
                r#type: Some(address::Type::Workload(workload)),
            };
            Some(Resource::new(type_url::ADDRESS, Arc::clone(uid), &address))
        });
        set(&mut self.snapshot.addresses, uid, built)
    }

    fn surroundings(&self, uid: &Arc<str>, pod: &PodFacts) -> Surroundings {
        let enrolment = enrolment::decide(pod, self.namespaces.get(&pod.key.namespace));
        let reported = self
            .captured
            .get(&pod.node)
            .is_some_and(|pods| pods.contains(uid));
        let (services, ready_in_slices) = self.services_of(uid, pod);
        Surroundings {
            captured: enrolment.capture && reported,
            locality: self.nodes.get(&pod.node).cloned().flatten(),
            policies: self.policies_of(pod, services.keys()),
            services: services
                .into_iter()
                .map(|(key, ports)| (service::resource_name(&key, &self.mesh), ports))
                .collect(),
            ready_in_slices,
        }
    }

    /// The Services that lead to a pod: by slice where there are slices, else by selector.
    fn services_of(
        &self,
        uid: &Arc<str>,
        pod: &PodFacts,
    ) -> (BTreeMap<NamespacedName, PortList>, Option<bool>) {
        let mut found = BTreeMap::new();
        for key in self
            .service_selectors
            .matching(&pod.key.namespace, &pod.labels)
        {
            if let (Some(facts), false) = (
                self.services.get(&key),
                self.slices_by_service.contains_key(&key),
            ) {
                found.insert(key, workload::ports_of_pod(facts, pod));
            }
        }
        let mut ready: Option<bool> = None;
        let by_pod = self.slices_by_pod.get(uid).into_iter().flatten();
        let addresses = pod.addresses.iter().filter(|_| !pod.host_network);
        let by_address = addresses
            .filter_map(|ip| self.slices_by_address.get(ip))
            .flatten();
        for slice in by_pod
            .chain(by_address)
            .filter_map(|key| self.slices.get(key))
        {
            let own = slice
                .endpoints
                .iter()
                .filter(|endpoint| match &endpoint.pod {
                    Some(target) => *target == pod.key,
                    None => endpoint
                        .addresses
                        .iter()
                        .any(|ip| pod.addresses.contains(ip)),
                });
            for endpoint in own {
                ready = Some(ready.unwrap_or(true) && endpoint.ready);
            }
            if let Some(facts) = self.services.get(&slice.service) {
                found.insert(
                    slice.service.clone(),
                    workload::ports_of_slice(facts, slice),
                );
            }
        }
        found.retain(|_, ports| !ports.ports.is_empty());
        (found, ready)
    }

    /// The policies that a pod names. Those of its whole namespace and of the mesh apply without being named.
    fn policies_of<'k>(
        &self,
        pod: &PodFacts,
        services: impl Iterator<Item = &'k NamespacedName>,
    ) -> Vec<String> {
        let root: Arc<str> = self.mesh.root_namespace.as_str().into();
        let mut keys = self
            .policy_selectors
            .matching(&pod.key.namespace, &pod.labels);
        if pod.key.namespace != root {
            keys.extend(self.policy_selectors.matching(&root, &pod.labels));
        }
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
        names.extend(self.peer_authentication_policy(pod));
        names.sort();
        names
    }

    fn peer_authentication_policy(&self, pod: &PodFacts) -> Option<String> {
        let namespace = &pod.key.namespace;
        let root = &self.mesh.root_namespace;
        let selecting = if **namespace == **root {
            Default::default()
        } else {
            self.peer_authentication_selectors
                .matching(namespace, &pod.labels)
        };
        let own = selecting
            .iter()
            .filter_map(|key| self.peer_authentications.get(key));
        let own = own.min_by(|a, b| a.rank().cmp(&b.rank()));
        match peer_authentication::effect(self.inherits_strict(namespace), own) {
            Effect::Permissive => None,
            Effect::Strict => Some(format!("{root}/{STATIC_STRICT}")),
            Effect::Converted => {
                own.map(|policy| format!("{namespace}/{}", converted_name(&policy.key.name)))
            }
        }
    }

    fn flush_endpoint(&mut self, slice_key: &NamespacedName, address: IpAddr) -> bool {
        let uid = workload::endpoint_uid(&self.mesh, slice_key, address);
        let built = self.slices.get(slice_key).and_then(|slice| {
            let mut own = slice
                .endpoints
                .iter()
                .filter(|e| e.pod.is_none() && e.addresses.contains(&address));
            let endpoint = own.next()?;
            let service = self.services.get(&slice.service)?;
            if self.pods_by_address.contains_key(&address) {
                return None;
            }
            let ports = workload::ports_of_slice(service, slice);
            let services = [(service::resource_name(&slice.service, &self.mesh), ports)].into();
            let workload =
                workload::from_endpoint(&uid, slice, address, endpoint.ready, &self.mesh, services);
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
            .filter(|pod| pod.node == *node && !node.is_empty() && !pod.finished);
        let built = here.map(|pod| {
            let enrolment = enrolment::decide(pod, self.namespaces.get(&pod.key.namespace));
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
fn set(map: &mut Resources, name: &str, built: Option<Resource>) -> bool {
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
