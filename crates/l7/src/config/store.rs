//! Resources as they are delivered, and the next [`Config`] made of them. Only services that something was said about
//! are compiled anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{Interner, ServiceKey};

use super::shared::Shared;
use super::{Config, Policies, PortRoutes, Routes, Rules, Served};
use crate::backend::{BackendRule, Cluster, ClusterKey, Endpoint, Member};
use crate::connections::Connections;
use crate::listener::Listener;
use crate::policy::{Policy, Scope};
use crate::route::{Attachment, RouteRule, Treatment};
use crate::service::Service;
use crate::table::Table;
use crate::table::kept::Kept;

/// One resource. Its name is what it is replaced and removed by.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A service; its name is its key.
    Service(Service),
    /// A workload; its name is its uid.
    Endpoint(Endpoint),
    /// What is said of the service whose key is its name.
    Backend(ServiceKey, BackendRule),
    /// A rule, by its name.
    Route(Arc<str>, RouteRule),
    /// A policy, by its name.
    Policy(Arc<str>, Policy),
    /// Where a gateway listens, by its name.
    Listener(Arc<str>, Listener),
}

/// The name of a resource, by its type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceName {
    /// A service.
    Service(ServiceKey),
    /// A workload.
    Endpoint(Arc<str>),
    /// What is said of a service.
    Backend(ServiceKey),
    /// A rule.
    Route(Arc<str>),
    /// A policy.
    Policy(Arc<str>),
    /// A listener.
    Listener(Arc<str>),
}

/// Everything that was delivered.
#[derive(Debug, Default)]
pub struct Store {
    services: BTreeMap<ServiceKey, Service>,
    endpoints: HashMap<Arc<str>, Arc<Endpoint>>,
    backends: HashMap<ServiceKey, BackendRule>,
    routes: HashMap<Arc<str>, Arc<Kept>>,
    policies: BTreeMap<Arc<str>, Arc<Policy>>,
    endpoints_of: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    routes_of: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    changed: HashSet<ServiceKey>,
    policies_changed: bool,
    listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    listeners_changed: bool,
    last: Arc<Config>,
    interner: Interner,
    attachments: Shared<[Attachment]>,
    treatments: Shared<Treatment>,
}

impl Store {
    /// Adds or replaces a resource.
    pub fn apply(&mut self, resource: Resource) {
        match resource {
            Resource::Service(service) => {
                self.changed.insert(service.key.clone());
                self.services.insert(service.key.clone(), service);
            }
            Resource::Endpoint(endpoint) => {
                let uid: Arc<str> = (&*endpoint.uid).into();
                self.set_endpoint(&uid, Some(endpoint));
            }
            Resource::Backend(key, rule) => {
                self.changed.insert(key.clone());
                self.backends.insert(key, rule);
            }
            Resource::Route(name, rule) => self.set_route(&name, Some(rule)),
            Resource::Policy(name, policy) => {
                self.policies_changed = true;
                self.policies.insert(name, Arc::new(policy));
            }
            Resource::Listener(name, listener) => {
                self.listeners_changed = true;
                self.listeners.insert(name, Arc::new(listener));
            }
        }
    }

    /// Removes a resource; one that is not there is no error.
    pub fn remove(&mut self, name: &ResourceName) {
        match name {
            ResourceName::Service(key) => {
                self.changed.insert(key.clone());
                self.services.remove(key);
            }
            ResourceName::Endpoint(uid) => self.set_endpoint(uid, None),
            ResourceName::Backend(key) => {
                self.changed.insert(key.clone());
                self.backends.remove(key);
            }
            ResourceName::Route(name) => self.set_route(name, None),
            ResourceName::Policy(name) => {
                self.policies_changed = true;
                self.policies.remove(name);
            }
            ResourceName::Listener(name) => {
                self.listeners_changed = true;
                self.listeners.remove(name);
            }
        }
    }

    /// All rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = RouteRule> {
        self.routes.values().map(|rule| rule.delivered())
    }

    /// What is known now.
    pub fn config(&mut self) -> Arc<Config> {
        let listeners_changed = std::mem::take(&mut self.listeners_changed);
        if self.changed.is_empty() && !self.policies_changed && !listeners_changed {
            return Arc::clone(&self.last);
        }
        let mut served = self.last.served.clone();
        for key in std::mem::take(&mut self.changed) {
            match self.services.get(&key) {
                Some(service) => drop(served.insert(key, Arc::new(self.serve(service)))),
                None => drop(served.remove(&key)),
            }
        }
        let policies = if std::mem::take(&mut self.policies_changed) {
            Arc::new(self.sorted_policies())
        } else {
            Arc::clone(&self.last.policies)
        };
        let config = Config {
            served,
            services_by_address: self.addresses(),
            services_by_host: self.hosts(),
            endpoints: self.endpoints_by_address(),
            policies,
            listeners: self.listeners_by_port(),
        };
        self.last = Arc::new(config);
        Arc::clone(&self.last)
    }

    fn set_endpoint(&mut self, uid: &Arc<str>, endpoint: Option<Endpoint>) {
        if let Some(old) = self.endpoints.remove(uid) {
            for port in &old.ports {
                if let Some(of) = self.endpoints_of.get_mut(&port.service) {
                    of.remove(uid);
                }
                self.changed.insert(port.service.clone());
            }
            // An endpoint without a service is known by its address.
            self.policies_changed |= old.ports.is_empty();
        }
        if let Some(endpoint) = endpoint {
            for port in &endpoint.ports {
                self.endpoints_of
                    .entry(port.service.clone())
                    .or_default()
                    .insert(Arc::clone(uid));
                self.changed.insert(port.service.clone());
            }
            self.policies_changed |= endpoint.ports.is_empty();
            self.endpoints.insert(Arc::clone(uid), Arc::new(endpoint));
        }
    }

    fn set_route(&mut self, name: &Arc<str>, rule: Option<RouteRule>) {
        if let Some(old) = self.routes.remove(name) {
            for attachment in old.attachments.iter() {
                if let Some(of) = self.routes_of.get_mut(&attachment.service) {
                    of.remove(name);
                }
                self.changed.insert(attachment.service.clone());
            }
        }
        if let Some(mut rule) = rule {
            rule.share_strings(&mut self.interner);
            let mut rule = Kept::new(rule);
            rule.attachments = self.attachments.share(rule.attachments);
            rule.rule.treatment = self.treatments.share(rule.rule.treatment);
            for attachment in rule.attachments.iter() {
                self.routes_of
                    .entry(attachment.service.clone())
                    .or_default()
                    .insert(Arc::clone(name));
                self.changed.insert(attachment.service.clone());
            }
            self.routes.insert(Arc::clone(name), Arc::new(rule));
        }
    }

    fn serve(&self, service: &Service) -> Served {
        Served {
            routes: self.routes(&service.key),
            clusters: self.clusters(service),
            service: service.clone(),
        }
    }

    fn routes(&self, key: &ServiceKey) -> Routes {
        let names = self.routes_of.get(key).into_iter().flatten();
        let rules: Vec<&Arc<Kept>> = names.filter_map(|name| self.routes.get(name)).collect();
        let attachments = || {
            rules
                .iter()
                .flat_map(|rule| rule.attachments.iter())
                .filter(|attachment| attachment.service == *key)
        };
        let ports: BTreeSet<u16> = attachments().filter_map(|a| a.port).collect();
        let clients: BTreeSet<&Arc<str>> = attachments()
            .filter_map(|a| a.client_namespace.as_ref())
            .collect();
        // Rules for this port and these clients, each once however often it is attached.
        let compiled = |port: Option<u16>, client: Option<&Arc<str>>| {
            let here = |rule: &&Arc<Kept>| {
                rule.attachments.iter().any(|a| {
                    a.service == *key
                        && (a.port.is_none() || a.port == port)
                        && a.client_namespace.as_ref() == client
                })
            };
            let here: Vec<&Arc<Kept>> = rules.iter().copied().filter(here).collect();
            let (connections, requests): (Vec<_>, Vec<_>) =
                here.into_iter().partition(|rule| rule.is_for_connections());
            Rules {
                requests: Table::of(requests),
                connections: Connections::compile(connections),
            }
        };
        let of_port = |port: Option<u16>| PortRoutes {
            everybody: compiled(port, None),
            clients: clients
                .iter()
                .map(|client| (Arc::clone(client), compiled(port, Some(client))))
                .filter(|(_, rules)| !rules.requests.is_empty() || !rules.connections.is_empty())
                .collect(),
        };
        Routes {
            other_ports: of_port(None),
            by_port: ports
                .into_iter()
                .map(|port| (port, of_port(Some(port))))
                .collect(),
        }
    }

    fn clusters(&self, service: &Service) -> HashMap<(u16, Option<Arc<str>>), Arc<Cluster>> {
        let none = BackendRule::default();
        let rule = self.backends.get(&service.key).unwrap_or(&none);
        let uids = self.endpoints_of.get(&service.key).into_iter().flatten();
        let endpoints: Vec<&Arc<Endpoint>> =
            uids.filter_map(|uid| self.endpoints.get(uid)).collect();
        // At a gateway the address of a service that has a waypoint stands for all its endpoints.
        let is_service = |endpoint: &Endpoint| {
            let mut addresses = endpoint.addresses.iter();
            addresses.any(|address| service.addresses.contains(address))
        };
        let has_address = endpoints.iter().any(|endpoint| is_service(endpoint));
        let names = rule.subsets.keys().map(|name| Some(Arc::clone(name)));
        let names: Vec<Option<Arc<str>>> = std::iter::once(None).chain(names).collect();
        let mut clusters = HashMap::new();
        for port in &service.ports {
            for name in &names {
                let Some(policy) = rule.policy(port.port, name.as_deref()) else {
                    continue;
                };
                let subset = name.as_ref().and_then(|name| rule.subsets.get(name));
                let members = endpoints
                    .iter()
                    .filter(|e| match subset {
                        Some(subset) => !is_service(e) && subset.selects(&e.labels),
                        None => is_service(e) || !has_address,
                    })
                    .flat_map(|endpoint| members(endpoint, &service.key, port.port));
                let cluster = Cluster {
                    key: ClusterKey {
                        service: service.key.clone(),
                        port: port.port,
                        subset: name.clone(),
                    },
                    origin: rule.origin.clone(),
                    policy,
                    protocol: port.app_protocol,
                    members: members.collect(),
                };
                clusters.insert((port.port, name.clone()), Arc::new(cluster));
            }
        }
        clusters
    }

    fn sorted_policies(&self) -> Policies {
        let mut sorted = Policies::default();
        for (name, policy) in &self.policies {
            match &policy.scope {
                Scope::All => sorted.all.push(Arc::clone(policy)),
                Scope::Namespace(namespace) => {
                    let of = sorted.by_namespace.entry(Arc::clone(namespace));
                    of.or_default().push(Arc::clone(policy));
                }
                Scope::Services(keys) => {
                    for key in keys {
                        let of = sorted.by_service.entry(key.clone());
                        of.or_default().push(Arc::clone(policy));
                    }
                }
                Scope::Endpoints => {}
            }
            sorted.by_name.insert(Arc::clone(name), Arc::clone(policy));
        }
        sorted
    }

    fn addresses(&self) -> HashMap<IpAddr, ServiceKey> {
        let of = |service: &Service| {
            let key = service.key.clone();
            let addresses = service.addresses.clone();
            addresses
                .into_iter()
                .map(move |ip| (ip.to_canonical(), key.clone()))
        };
        self.services.values().flat_map(of).collect()
    }

    fn hosts(&self) -> HashMap<Arc<str>, ServiceKey> {
        let keys = self.services.keys();
        keys.map(|key| (Arc::clone(&key.hostname), key.clone()))
            .collect()
    }

    fn listeners_by_port(&self) -> BTreeMap<u16, Vec<Arc<Listener>>> {
        let mut ports: BTreeMap<u16, Vec<Arc<Listener>>> = BTreeMap::new();
        for listener in self.listeners.values() {
            ports
                .entry(listener.port)
                .or_default()
                .push(Arc::clone(listener));
        }
        ports
    }

    fn endpoints_by_address(&self) -> HashMap<IpAddr, Arc<Endpoint>> {
        let of = |endpoint: &Arc<Endpoint>| {
            let this = Arc::clone(endpoint);
            let addresses = endpoint.addresses.clone();
            addresses
                .into_iter()
                .map(move |ip| (ip.to_canonical(), Arc::clone(&this)))
        };
        self.endpoints.values().flat_map(of).collect()
    }
}

/// Where an endpoint serves a port of a service: by its first address.
fn members(
    endpoint: &Arc<Endpoint>,
    service: &ServiceKey,
    port: u16,
) -> impl Iterator<Item = Member> {
    let address = endpoint.addresses.first().copied();
    endpoint
        .ports
        .iter()
        .filter(move |served| served.service == *service && served.port == port)
        .filter_map(move |served| {
            Some(Member {
                endpoint: Arc::clone(endpoint),
                address: SocketAddr::new(address?, served.target),
                ready: served.ready,
            })
        })
}
