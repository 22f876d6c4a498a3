//! Puts together what one waypoint is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use l7::backend::{EndpointPort, Locality};
use l7::route::{Action, Backend, RouteRule};
use l7::{Endpoint, Service};
use manifest::{NamespacedName, WEIGHT};
use model::service::{AppProtocol, ServicePort};
use model::{Identity, ServiceKey};
use proto::convert::l7::backend_out;
use proto::istio::workload as workload_api;
use proto::{l7 as pb, type_url};

use super::super::entries::own_port;
use super::super::flush::set;
use super::super::{Index, service, workload};
use super::Waypoint;
use super::routes::Attached;
use crate::l7::hosts;
use crate::resource::Resource;
use crate::snapshot::{Resources, WaypointEntry};
use crate::store::Place;

/// What a waypoint has to know of.
#[derive(Debug, Default)]
pub(super) struct Need {
    pub(super) attached: BTreeSet<NamespacedName>,
    /// Also those that routes lead to, whether they exist or not.
    services: BTreeSet<NamespacedName>,
    /// Services whose addresses are those of endpoints.
    looked_up: BTreeSet<NamespacedName>,
    /// Namespaces of endpoints.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// Policies that endpoints name.
    pub(super) policies: BTreeSet<String>,
    /// A rule asks for labels of clients.
    clients: bool,
    /// It is a gateway at the edge, where the endpoints' own nodes ask their policies.
    pub(super) edge: bool,
}

impl Index {
    /// Puts a waypoint together anew. Returns whether it is told something else than before.
    pub(super) fn flush_waypoint(&mut self, waypoint: &Waypoint) -> bool {
        let name: Arc<str> = waypoint.to_string().into();
        let attached = self.waypoints.attached.get(waypoint).cloned();
        let pods = self.waypoints.pods.get(waypoint).cloned();
        let before = self.snapshot.waypoints.get(&name).map(Arc::clone);
        if attached.is_none() && pods.is_none() {
            self.remember(waypoint, &Need::default(), &BTreeSet::new());
            self.forget_patterns(waypoint);
            self.snapshot.waypoints.remove(&name);
            return before.is_some();
        }
        let accounts = pods.iter().flatten().filter_map(|uid| {
            let pod = self.pods.get(uid).filter(|pod| !pod.finished)?;
            Some(Arc::clone(&pod.service_account))
        });
        let accounts: OrdSet<Arc<str>> = accounts.collect();
        let mut need = Need {
            attached: attached.unwrap_or_default(),
            ..Need::default()
        };
        need.services.clone_from(&need.attached);
        let mut routed = Attached::default();
        for service in &need.attached {
            self.attach_routes(waypoint, service, &mut routed);
        }
        let mut rules = self.attached_rules(&routed);
        let edge = self.at_edge(waypoint, pods.as_ref());
        need.edge = edge.is_some();
        let edge = edge.unwrap_or_default();
        self.remember_found(waypoint, edge.found);
        rules.extend(edge.rules);
        self.bound_patterns(waypoint, &mut rules);
        for (_, rule) in &rules {
            self.look_at(rule, &mut need);
        }
        let behind = self.waypoints.behind.get(waypoint).into_iter().flatten();
        // A waypoint learns from its own pods where it is itself.
        let known = behind.chain(pods.iter().flatten()).cloned().collect();
        let (endpoints, uids) = self.endpoints_for(&mut need, known);
        let policies = match need.edge {
            true => self.policies_of_gateway(waypoint, pods.as_ref()),
            false => self.policies_at(waypoint, &need),
        };
        let old = before.as_deref().cloned().unwrap_or_default();
        let routes = rules.iter().map(|(name, rule)| {
            Resource::new(type_url::L7_ROUTE, name.as_str(), &pb::Route::from(rule))
        });
        let policies = policies
            .iter()
            .map(|(name, policy)| Resource::new(type_url::L7_POLICY, name.as_str(), policy));
        let entry = WaypointEntry {
            namespace: Arc::clone(&waypoint.namespace),
            accounts,
            services: replaced(
                old.services,
                self.services_for(&need).into_iter().chain(edge.services),
            ),
            endpoints: replaced(old.endpoints, endpoints),
            backends: replaced(old.backends, self.backends_for(waypoint, &need)),
            policies: replaced(old.policies, policies),
            routes: replaced(old.routes, routes),
            listeners: replaced(old.listeners, edge.listeners),
        };
        self.remember(waypoint, &need, &uids);
        if before.as_deref() == Some(&entry) {
            return false;
        }
        self.snapshot.waypoints.insert(name, Arc::new(entry));
        true
    }

    /// Notes which changes will concern the waypoint.
    fn remember(&mut self, waypoint: &Waypoint, need: &Need, uids: &BTreeSet<Arc<str>>) {
        let waypoints = &mut self.waypoints;
        for known in waypoints.involved.values_mut() {
            known.remove(waypoint);
        }
        for known in waypoints.knowing.values_mut() {
            known.remove(waypoint);
        }
        waypoints.involved.retain(|_, known| !known.is_empty());
        waypoints.knowing.retain(|_, known| !known.is_empty());
        for service in need.services.iter().chain(&need.looked_up) {
            let known = waypoints.involved.entry(service.clone()).or_default();
            known.insert(waypoint.clone());
        }
        for uid in uids {
            let known = waypoints.knowing.entry(Arc::clone(uid)).or_default();
            known.insert(waypoint.clone());
        }
        if need.clients {
            waypoints.curious.insert(waypoint.clone());
        } else {
            waypoints.curious.remove(waypoint);
        }
    }

    /// What a rule leads to.
    fn look_at(&self, rule: &RouteRule, need: &mut Need) {
        need.clients |= rule.matches.iter().any(|m| !m.client_labels.is_empty());
        let Action::Forward(forward) = &rule.rule.action else {
            return;
        };
        let backends = forward
            .backends
            .iter()
            .filter_map(|one| match &one.backend {
                Backend::Cluster(key) => Some(key),
                Backend::Invalid { .. } => None,
            });
        let mirrors = forward.mirrors.iter().map(|mirror| &mirror.backend);
        for key in backends.chain(mirrors) {
            let name = service::name_of(&key.service, &self.mesh);
            need.services.insert(name);
        }
    }

    fn services_for(&self, need: &Need) -> Vec<Resource> {
        let known = need
            .services
            .iter()
            .filter_map(|name| Some((name, self.services.get(name)?)));
        let built = known
            .filter(|(_, facts)| !facts.external_name)
            .map(|(name, facts)| {
                let ports = facts.ports.iter().map(|port| ServicePort {
                    port: port.port,
                    target_port: 0,
                    app_protocol: match service::app_protocol(&port.protocol) {
                        workload_api::AppProtocol::Http11 => AppProtocol::Http11,
                        workload_api::AppProtocol::Http2 => AppProtocol::Http2,
                        workload_api::AppProtocol::Grpc => AppProtocol::Grpc,
                        workload_api::AppProtocol::Tcp => AppProtocol::Tcp,
                        workload_api::AppProtocol::Tls => AppProtocol::Tls,
                        workload_api::AppProtocol::Unknown => AppProtocol::Unknown,
                    },
                });
                let service = Service {
                    key: self.service_key(name),
                    addresses: facts.addresses.clone(),
                    ports: ports.collect(),
                    attached: need.attached.contains(name),
                };
                let resource = service::resource_name(name, &self.mesh);
                Resource::new(type_url::L7_SERVICE, resource, &pb::Service::from(&service))
            });
        built.collect()
    }

    /// What the `DestinationRule` of each service says: of the waypoint's namespace, else of the service's, else of
    /// the root namespace; there the most specific host counts, then the oldest object.
    fn backends_for(&self, waypoint: &Waypoint, need: &Need) -> Vec<Resource> {
        let mut built = Vec::new();
        for name in need
            .services
            .iter()
            .filter(|name| self.services.contains_key(name))
        {
            let key = self.service_key(name);
            let root: Arc<str> = self.mesh.root_namespace.as_str().into();
            let namespaces = [&waypoint.namespace, &name.namespace, &root];
            let found = namespaces.into_iter().find_map(|namespace| {
                let all = self.waypoints.destination_rules.iter();
                let here = all.filter(|(object, aged)| {
                    object.namespace == *namespace
                        && aged.compiled.host.holds(&key.hostname)
                        && (object.namespace == waypoint.namespace
                            || aged.compiled.export.holds(&waypoint.namespace))
                });
                here.min_by_key(|(object, aged)| {
                    let aged_rank = (aged.created.is_none(), aged.created.clone());
                    (aged.compiled.host.rank(), aged_rank, (*object).clone())
                })
            });
            if let Some((_, aged)) = found {
                let resource = service::resource_name(name, &self.mesh);
                let rule = self.rooted(&waypoint.namespace, &aged.compiled.rule);
                let message = backend_out(&key, &rule);
                built.push(Resource::new(type_url::L7_BACKEND, resource, &message));
            }
        }
        built
    }

    /// The endpoints of all services, and of pods that are known for themselves, with what they name; and who they are.
    fn endpoints_for(
        &self,
        need: &mut Need,
        mut pods: BTreeSet<Arc<str>>,
    ) -> (Vec<Resource>, BTreeSet<Arc<str>>) {
        let mut addresses: BTreeSet<(NamespacedName, IpAddr)> = BTreeSet::new();
        let mut built = Vec::new();
        let mut looked_up = BTreeSet::new();
        for service in &need.services {
            if let Some(endpoint) = self.by_its_waypoint(service).filter(|_| need.edge) {
                let message = pb::Endpoint::from(&endpoint);
                let name = endpoint.uid.to_string();
                built.push(Resource::new(type_url::L7_ENDPOINT, name, &message));
            }
            // Where a waypoint stands for the service, these are the endpoints of its subsets.
            self.members_of(service, &mut pods, &mut addresses);
            for endpoint in self.endpoints_by_name(service, &mut looked_up) {
                let message = pb::Endpoint::from(&endpoint);
                let name = endpoint.uid.to_string();
                built.push(Resource::new(type_url::L7_ENDPOINT, name, &message));
            }
        }
        need.looked_up = looked_up;
        if need.clients {
            pods.extend(self.pods.keys().cloned());
        }
        let mut uids = BTreeSet::new();
        for uid in pods {
            let Some(endpoint) = self.endpoint_of_pod(&uid, need) else {
                continue;
            };
            need.namespaces.insert(Arc::clone(&endpoint.namespace));
            let policies = endpoint.policies.iter().map(ToString::to_string);
            need.policies.extend(policies);
            let message = pb::Endpoint::from(&endpoint);
            built.push(Resource::new(
                type_url::L7_ENDPOINT,
                Arc::clone(&uid),
                &message,
            ));
            uids.insert(uid);
        }
        for (slice, address) in addresses {
            let uid: Arc<str> = workload::endpoint_uid(&self.mesh, &slice, address).into();
            if let Some(endpoint) = self.endpoint_without_pod(&uid, &slice, address, need) {
                let message = pb::Endpoint::from(&endpoint);
                built.push(Resource::new(
                    type_url::L7_ENDPOINT,
                    Arc::clone(&uid),
                    &message,
                ));
            }
            uids.insert(uid);
        }
        (built, uids)
    }

    fn members_of(
        &self,
        service: &NamespacedName,
        pods: &mut BTreeSet<Arc<str>>,
        addresses: &mut BTreeSet<(NamespacedName, IpAddr)>,
    ) {
        if !self.services.contains_key(service) {
            return;
        }
        let Some(slices) = self.slices_by_service.get(service) else {
            let facts = self.services.get(service);
            if let Some(facts) = facts.filter(|facts| !facts.selector.is_empty()) {
                pods.extend(
                    self.pod_labels
                        .carrying(&service.namespace, &facts.selector),
                );
            }
            return;
        };
        for slice in slices.iter().filter_map(|key| self.slices.get(key)) {
            for endpoint in &slice.endpoints {
                match &endpoint.pod {
                    Some(pod) => drop(pods.insert(self.uid(pod))),
                    None => {
                        for address in &endpoint.addresses {
                            let owners = self.pods_by_address.get(address);
                            pods.extend(owners.into_iter().flatten().cloned());
                            addresses.insert((slice.key.clone(), *address));
                        }
                    }
                }
            }
        }
    }

    fn endpoint_of_pod(&self, uid: &Arc<str>, need: &Need) -> Option<Endpoint> {
        let pod = self.pods.get(uid)?;
        if !self.is_present(uid, pod) {
            return None;
        }
        let addresses = self.addresses_of(uid, pod);
        if addresses.is_empty() {
            return None;
        }
        let endpoints = self.endpoints_of_pod(uid, pod, &addresses);
        let ports = self.ports_of(&endpoints, &need.services, *addresses.first()?);
        let locality = self
            .nodes
            .get(&pod.node)
            .cloned()
            .flatten()
            .unwrap_or_default();
        let domain = self.mesh.trust_domain.parse().ok();
        let identity = domain.filter(|_| self.is_captured(uid, pod)).map(|domain| {
            Identity::new(
                domain,
                Arc::clone(&pod.key.namespace),
                Arc::clone(&pod.service_account),
            )
        });
        let weight = pod
            .annotations
            .get(WEIGHT)
            .and_then(|text| text.parse().ok());
        Some(Endpoint {
            uid: (&**uid).into(),
            addresses,
            hostname: None,
            identity,
            namespace: Arc::clone(&pod.key.namespace),
            labels: Arc::new(shared(&pod.labels)),
            node: Arc::clone(&pod.node),
            locality: Locality {
                region: locality.region.into(),
                zone: locality.zone.into(),
                subzone: locality.subzone.into(),
            },
            weight: weight.unwrap_or(1),
            ports,
            policies: match need.edge {
                true => Vec::new(),
                false => {
                    let names = self.http_policies_of(pod);
                    names.into_iter().map(Arc::from).collect()
                }
            },
        })
    }

    fn endpoint_without_pod(
        &self,
        uid: &Arc<str>,
        slice: &NamespacedName,
        address: IpAddr,
        need: &Need,
    ) -> Option<Endpoint> {
        let slice = self.slices.get(slice)?;
        if self.pods_by_address.contains_key(&address) || self.is_orphaned(address) {
            return None;
        }
        let endpoints = self.endpoints_of_address(slice, address)?;
        let mut listed = slice.endpoints.iter();
        let listed = listed.find(|one| one.pod.is_none() && one.addresses.contains(&address));
        let traits = listed.and_then(|one| one.traits.as_deref());
        Some(Endpoint {
            uid: (&**uid).into(),
            addresses: vec![address],
            hostname: None,
            identity: None,
            namespace: Arc::clone(&slice.key.namespace),
            labels: Arc::new(
                traits
                    .map(|traits| shared(&traits.labels))
                    .unwrap_or_default(),
            ),
            node: "".into(),
            locality: traits
                .map(|traits| traits.locality.clone())
                .unwrap_or_default(),
            weight: traits.map_or(1, |traits| traits.weight),
            ports: self.ports_of(&endpoints, &need.services, address),
            policies: Vec::new(),
        })
    }

    /// Endpoints of a `ServiceEntry` that have names: the address of a Service of this cluster is known, others are looked
    /// up by who uses them.
    fn endpoints_by_name(
        &self,
        service: &NamespacedName,
        looked_up: &mut BTreeSet<NamespacedName>,
    ) -> Vec<Endpoint> {
        let facts = self.services.get(service);
        let Some((facts, declared)) =
            facts.and_then(|facts| Some((facts, facts.declared.as_ref()?)))
        else {
            return Vec::new();
        };
        let mut built = Vec::new();
        for endpoint in &declared.named {
            let Place::Host(host) = &endpoint.place else {
                continue;
            };
            let full = hosts::full(host, &service.namespace, &self.mesh.cluster_domain);
            let of_cluster = hosts::service(&full, &self.mesh.cluster_domain);
            let of_cluster = of_cluster.map(|key| service::name_of(&key, &self.mesh));
            let addresses = of_cluster
                .as_ref()
                .and_then(|name| self.services.get(name))
                .map(|facts| facts.addresses.clone())
                .unwrap_or_default();
            looked_up.extend(of_cluster);
            let ports = facts.ports.iter().map(|port| EndpointPort {
                service: self.service_key(service),
                port: port.port,
                target: own_port(port, endpoint),
                ready: true,
            });
            let uid = format!(
                "{}/networking.istio.io/ServiceEntry/{}/{}/{}/{host}",
                self.mesh.cluster_id, declared.object.namespace, declared.object.name, service.name
            );
            built.push(Endpoint {
                uid: uid.as_str().into(),
                hostname: addresses.is_empty().then(|| full.as_str().into()),
                addresses,
                identity: None,
                namespace: Arc::clone(&service.namespace),
                labels: Arc::new(shared(&endpoint.labels)),
                node: "".into(),
                locality: endpoint.locality.clone(),
                weight: endpoint.weight,
                ports: ports.collect(),
                policies: Vec::new(),
            });
        }
        built
    }

    fn ports_of(
        &self,
        endpoints: &super::super::endpoints::Endpoints,
        services: &BTreeSet<NamespacedName>,
        first: IpAddr,
    ) -> Vec<EndpointPort> {
        let mut ports = Vec::new();
        for (name, list) in endpoints.iter().filter(|(name, _)| services.contains(name)) {
            for (port, target, ready) in super::super::endpoints::at_address(list, first) {
                ports.push(EndpointPort {
                    service: self.service_key(name),
                    port,
                    target,
                    ready,
                });
            }
        }
        ports
    }

    pub(super) fn service_key(&self, name: &NamespacedName) -> ServiceKey {
        let hostname = service::hostname(name, &self.mesh);
        ServiceKey::new(Arc::clone(&name.namespace), hostname)
    }
}

fn shared(labels: &manifest::Labels) -> BTreeMap<Arc<str>, Arc<str>> {
    let labels = labels.iter();
    labels
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect()
}

/// The resources that are there now; those with the same content as before are the same.
fn replaced(mut old: Resources, now: impl IntoIterator<Item = Resource>) -> Resources {
    let mut names = BTreeSet::new();
    for resource in now {
        let name = Arc::clone(&resource.name);
        set(&mut old, &name, Some(resource));
        names.insert(name);
    }
    let gone = old.keys().filter(|name| !names.contains(*name));
    for name in gone.cloned().collect::<Vec<_>>() {
        old.remove(&name);
    }
    old
}
