//! Which endpoints a workload is: of which port of which Service, on which of its addresses and ports,
//! and whether new connections may go there. All of it is what the slices say, or the selector of a
//! Service without slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use manifest::{NamespacedName, PodFacts};
use model::address::Family;
use proto::agent;
use proto::agent::service_endpoint::{Family as PbFamily, Readiness as PbReadiness};
use proto::convert::extension;
use proto::istio::workload::{Extension, Port, PortList};

use super::{Index, MeshConfig, service};
use crate::store::{Readiness, ServiceFacts, ServicePortFacts, SliceFacts, TargetPort};

/// One way in which a workload serves a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    service_port: u16,
    target_port: u16,
    family: Family,
    readiness: Readiness,
}

/// The endpoints that a workload is, by Service; no list is empty.
pub(super) type Endpoints = BTreeMap<NamespacedName, Vec<Endpoint>>;

/// Endpoints as the workload API says them.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    /// Ports by resource name of the service.
    pub(super) services: BTreeMap<String, PortList>,
    /// Whether the workload is ready for anything; nothing where it is no endpoint.
    pub(super) ready: Option<bool>,
    /// What the two do not say.
    pub(super) extensions: Vec<Extension>,
}

impl Index {
    /// The endpoints that a pod with these addresses is: by slice where there are slices, else by selector.
    pub(super) fn endpoints_of_pod(
        &self,
        uid: &Arc<str>,
        pod: &PodFacts,
        addresses: &[IpAddr],
    ) -> Endpoints {
        let mut found = Endpoints::new();
        let selecting = self
            .service_selectors
            .matching(&pod.key.namespace, &pod.labels);
        for key in selecting {
            if let (Some(facts), false) = (
                self.services.get(&key),
                self.slices_by_service.contains_key(&key),
            ) {
                let readiness = self.readiness(facts, uid, pod);
                found.insert(key, selected(facts, pod, addresses, readiness));
            }
        }
        let by_pod = self.slices_by_pod.get(uid).into_iter().flatten();
        let by_address = addresses
            .iter()
            .filter(|_| !pod.host_network)
            .filter_map(|ip| self.slices_by_address.get(ip))
            .flatten();
        for slice in by_pod
            .chain(by_address)
            .filter_map(|key| self.slices.get(key))
        {
            let Some(facts) = self.services.get(&slice.service) else {
                continue;
            };
            let own = slice.endpoints.iter().filter(|endpoint| {
                endpoint
                    .pod
                    .as_ref()
                    .is_none_or(|target| *target == pod.key)
            });
            for endpoint in own {
                // An address that is not the pod's own says nothing about the pod.
                for ip in endpoint
                    .addresses
                    .iter()
                    .filter(|ip| addresses.contains(ip))
                {
                    let endpoints = listed(facts, slice, *ip, endpoint.readiness);
                    found
                        .entry(slice.service.clone())
                        .or_default()
                        .extend(endpoints);
                }
            }
        }
        self.decide_draining(&mut found, &pod.node);
        found
    }

    /// The endpoints of an address that a slice lists and no pod has.
    pub(super) fn endpoints_of_address(&self, slice: &SliceFacts, ip: IpAddr) -> Option<Endpoints> {
        let own = |endpoint: &&crate::store::SliceEndpoint| {
            endpoint.pod.is_none() && endpoint.addresses.contains(&ip)
        };
        let facts = self.services.get(&slice.service)?;
        let node = Arc::clone(&slice.endpoints.iter().find(own)?.node);
        let listed = slice
            .endpoints
            .iter()
            .filter(own)
            .flat_map(|endpoint| listed(facts, slice, ip, endpoint.readiness));
        let mut found = Endpoints::from([(slice.service.clone(), listed.collect())]);
        self.decide_draining(&mut found, &node);
        Some(found)
    }

    /// The wire's view of endpoints of a workload with these addresses, in a namespace; `otherwise` is whether it is ready
    /// where no Service of its namespace says so. What those of others say, in slices that are written by hand, is about
    /// their own connections only.
    pub(super) fn publish(
        &self,
        endpoints: &Endpoints,
        addresses: &[IpAddr],
        (namespace, otherwise): (&Arc<str>, bool),
    ) -> Published {
        let all = || endpoints.values().flatten();
        if all().next().is_none() {
            return Published::default();
        }
        let is_ready = |endpoint: &Endpoint| endpoint.readiness == Readiness::Ready;
        let own = endpoints
            .iter()
            .filter(|(key, _)| key.namespace == *namespace);
        let mut own = own.flat_map(|(_, list)| list).peekable();
        let ready = match own.peek() {
            Some(_) => own.any(is_ready),
            None => otherwise,
        };
        let mixed = all().any(|endpoint| is_ready(endpoint) != ready);
        let exact = endpoints.iter().all(|(key, list)| {
            let families = families(self.services.get(key), addresses);
            is_expressible(list, &families)
        });
        let mut services = BTreeMap::new();
        for (key, list) in endpoints {
            // Who reads only this knows one readiness for the whole workload.
            let told = list.iter().filter(|endpoint| is_ready(endpoint) == ready);
            let ports = port_list(self.services.get(key), told);
            if !ports.ports.is_empty() {
                services.insert(service::resource_name(key, &self.mesh), ports);
            }
        }
        let extensions = if mixed || !exact {
            vec![extension::endpoints(said(endpoints, &self.mesh))]
        } else {
            Vec::new()
        };
        Published {
            services,
            ready: Some(ready),
            extensions,
        }
    }

    /// Leaves every endpoint once, and decides whether those that are ending still count: as long as
    /// the port has no other, as with kube-proxy.
    fn decide_draining(&self, found: &mut Endpoints, node: &str) {
        for (key, list) in found.iter_mut() {
            list.sort_by_key(|e| {
                (
                    e.service_port,
                    e.target_port,
                    e.family == Family::V6,
                    e.readiness,
                )
            });
            list.dedup_by_key(|e| (e.service_port, e.target_port, e.family));
            for endpoint in list.iter_mut() {
                if endpoint.readiness == Readiness::Draining {
                    endpoint.readiness = if self.has_ready(key, endpoint, node) {
                        Readiness::NotReady
                    } else {
                        Readiness::Ready
                    };
                }
            }
        }
        found.retain(|_, list| !list.is_empty());
    }

    /// Whether the port has a ready endpoint of this family; where only those of the client's node
    /// count, whether it has one on this node.
    fn has_ready(&self, key: &NamespacedName, endpoint: &Endpoint, node: &str) -> bool {
        let Some(facts) = self.services.get(key) else {
            return false;
        };
        let ports = facts.ports.iter();
        let Some(port) = ports.clone().find(|p| p.port == endpoint.service_port) else {
            return false;
        };
        let is_here = |other: &str| !facts.node_local || other == node;
        if let Some(slices) = self.slices_by_service.get(key) {
            let slices = slices.iter().filter_map(|key| self.slices.get(key));
            return slices
                .filter(|slice| slice.ports.contains_key(&port.name))
                .flat_map(|slice| &slice.endpoints)
                .filter(|other| other.readiness == Readiness::Ready && is_here(&other.node))
                .flat_map(|other| &other.addresses)
                .any(|ip| Family::of(*ip) == endpoint.family);
        }
        self.pod_labels
            .carrying(&key.namespace, &facts.selector)
            .iter()
            .filter_map(|uid| Some((uid, self.pods.get(uid)?)))
            .filter(|(uid, pod)| {
                is_here(&pod.node)
                    && self.readiness(facts, uid, pod) == Readiness::Ready
                    && target(port, pod).is_some()
            })
            .flat_map(|(_, pod)| &pod.addresses)
            .any(|ip| Family::of(*ip) == endpoint.family)
    }

    /// What the endpoint slice controller would say of a pod. One that is over, or whose object is gone while its
    /// node holds it, serves nobody new.
    fn readiness(&self, service: &ServiceFacts, uid: &Arc<str>, pod: &PodFacts) -> Readiness {
        if pod.finished || self.departed.contains(uid) {
            return Readiness::NotReady;
        }
        let is_ready = pod.ready.unwrap_or(true);
        Readiness::of(
            Some(service.publish_not_ready || (is_ready && !pod.terminating)),
            Some(is_ready),
            Some(pod.terminating),
        )
    }
}

/// Service port, own port and readiness of the endpoints that are at an address.
pub(super) fn at_address(
    endpoints: &[Endpoint],
    address: IpAddr,
) -> impl Iterator<Item = (u16, u16, bool)> {
    let family = Family::of(address);
    let here = endpoints
        .iter()
        .filter(move |endpoint| endpoint.family == family);
    here.map(|endpoint| {
        let ready = endpoint.readiness == Readiness::Ready;
        (endpoint.service_port, endpoint.target_port, ready)
    })
}

/// The endpoints that a pod is for a Service that selects it; a port whose name the pod does not have is
/// left out.
fn selected(
    service: &ServiceFacts,
    pod: &PodFacts,
    addresses: &[IpAddr],
    readiness: Readiness,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for port in &service.ports {
        let Some(target_port) = target(port, pod) else {
            continue;
        };
        endpoints.extend(addresses.iter().map(|ip| Endpoint {
            service_port: port.port,
            target_port,
            family: Family::of(*ip),
            readiness,
        }));
    }
    endpoints
}

fn target(port: &ServicePortFacts, pod: &PodFacts) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let named = pod.ports.iter().find(|port| port.name == *name);
            named.map(|port| port.port)
        }
    }
}

/// The endpoints of an address that a slice lists.
fn listed(
    service: &ServiceFacts,
    slice: &SliceFacts,
    ip: IpAddr,
    readiness: Readiness,
) -> impl Iterator<Item = Endpoint> {
    service.ports.iter().filter_map(move |port| {
        Some(Endpoint {
            service_port: port.port,
            target_port: slice.ports.get(&port.name).copied()?,
            family: Family::of(ip),
            readiness,
        })
    })
}

/// The families by which a Service reaches a workload with these addresses.
fn families(service: Option<&ServiceFacts>, addresses: &[IpAddr]) -> Vec<Family> {
    let accepts = |family: &Family| {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let listed = service.map_or(&[][..], |service| &service.ip_families);
        listed.is_empty() || listed.iter().any(|f| f == name)
    };
    [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| addresses.iter().any(|ip| Family::of(*ip) == *family))
        .filter(accepts)
        .collect()
}

/// Whether a list of ports says as much: one target for each port, on all of the addresses that count.
fn is_expressible(list: &[Endpoint], families: &[Family]) -> bool {
    list.iter().all(|endpoint| {
        let same = || {
            list.iter()
                .filter(|other| other.service_port == endpoint.service_port)
        };
        same().all(|other| other.target_port == endpoint.target_port)
            && families
                .iter()
                .all(|family| same().any(|other| other.family == *family))
    })
}

fn port_list<'e>(
    service: Option<&ServiceFacts>,
    endpoints: impl Iterator<Item = &'e Endpoint>,
) -> PortList {
    let mut ports: Vec<Port> = Vec::new();
    for endpoint in endpoints {
        let service_port = u32::from(endpoint.service_port);
        // The first of several targets: a list has room for one.
        if ports
            .last()
            .is_some_and(|port| port.service_port == service_port)
        {
            continue;
        }
        let declared = service
            .into_iter()
            .flat_map(|service| &service.ports)
            .find(|port| port.port == endpoint.service_port);
        let protocol = declared.map_or("", |port| &port.protocol);
        ports.push(Port {
            service_port,
            target_port: endpoint.target_port.into(),
            app_protocol: service::app_protocol(protocol).into(),
        });
    }
    PortList { ports }
}

fn said(endpoints: &Endpoints, mesh: &MeshConfig) -> Vec<agent::ServiceEndpoint> {
    let of_service = |(key, list): (&NamespacedName, &Vec<Endpoint>)| {
        let name = service::resource_name(key, mesh);
        let say = move |endpoint: &Endpoint| agent::ServiceEndpoint {
            service: name.clone(),
            service_port: endpoint.service_port.into(),
            target_port: endpoint.target_port.into(),
            family: match endpoint.family {
                Family::V4 => PbFamily::V4,
                Family::V6 => PbFamily::V6,
            }
            .into(),
            readiness: match endpoint.readiness {
                Readiness::Ready => PbReadiness::Ready,
                Readiness::Draining | Readiness::NotReady => PbReadiness::NotReady,
            }
            .into(),
        };
        list.iter().map(say).collect::<Vec<_>>()
    };
    endpoints.iter().flat_map(of_service).collect()
}
