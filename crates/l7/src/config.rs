//! All that a waypoint knows, as one value that never changes, and the store that makes the next one.

mod shared;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use model::ServiceKey;
use model::service::AppProtocol;

pub use self::store::{Resource, ResourceName, Store};
use crate::backend::{Cluster, ClusterKey, Endpoint, Member};
use crate::connections::Connections;
use crate::listener::{self, Listener};
use crate::policy::{Action, Denial, Policy, Target, Verdict, verdict};
use crate::request::{Client, Destination, Request};
use crate::rewrite::Taken;
use crate::route::Rule;
use crate::service::Service;
use crate::table::Table;

/// All that a waypoint knows. A request is decided with one of them from beginning to end.
#[derive(Debug, Default)]
pub struct Config {
    served: HashMap<ServiceKey, Arc<Served>>,
    services_by_address: HashMap<IpAddr, ServiceKey>,
    services_by_host: HashMap<Arc<str>, ServiceKey>,
    endpoints: HashMap<IpAddr, Arc<Endpoint>>,
    policies: Arc<Policies>,
    /// By port.
    listeners: BTreeMap<u16, Vec<Arc<Listener>>>,
}

/// A service with everything that is said of it.
#[derive(Debug)]
struct Served {
    service: Service,
    routes: Routes,
    clusters: HashMap<(u16, Option<Arc<str>>), Arc<Cluster>>,
}

/// The routes of a service.
#[derive(Debug, Default)]
struct Routes {
    /// Of ports that no rule names.
    other_ports: PortRoutes,
    by_port: BTreeMap<u16, PortRoutes>,
}

/// The routes of a port.
#[derive(Debug, Default)]
struct PortRoutes {
    everybody: Rules,
    /// By the client's namespace; stands in the place of `everybody`.
    clients: BTreeMap<Arc<str>, Rules>,
}

/// The rules for one kind of clients.
#[derive(Debug, Default)]
struct Rules {
    requests: Table,
    connections: Connections,
}

/// All policies.
#[derive(Debug, Default)]
struct Policies {
    by_name: HashMap<Arc<str>, Arc<Policy>>,
    all: Vec<Arc<Policy>>,
    by_namespace: HashMap<Arc<str>, Vec<Arc<Policy>>>,
    by_service: HashMap<ServiceKey, Vec<Arc<Policy>>>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'c> {
    /// This rule says so.
    Rule {
        /// The rule.
        rule: &'c Rule,
        /// What a rewrite of the prefix replaces; see [`crate::rewrite`].
        taken: Taken,
    },
    /// No rule is for it: it goes to the service's endpoints (F24).
    Service(&'c Arc<Cluster>),
    /// It was for a workload's own address, where no routes are.
    Workload(&'c Arc<Endpoint>),
    /// Nowhere.
    None(NoRoute),
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// There are rules, and none matches: 404.
    NoMatch,
    /// Nothing that is served here was dialled: 404.
    UnknownDestination,
}

impl Config {
    /// The service that has an address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Service> {
        self.service(self.services_by_address.get(&address.to_canonical())?)
    }

    /// The service of a host name, as a tunnel names it.
    pub fn service_named(&self, hostname: &str) -> Option<&Service> {
        self.service(self.services_by_host.get(hostname)?)
    }

    /// A service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.served.get(key).map(|served| &served.service)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.served.values().map(|served| &served.service)
    }

    /// The listeners of a gateway, by port; none for a waypoint.
    pub fn listeners(&self) -> &BTreeMap<u16, Vec<Arc<Listener>>> {
        &self.listeners
    }

    /// The listener of a port that takes a host: by the name that TLS is asked for, or by the request's Host.
    pub fn listener(&self, port: u16, tls: bool, host: &str) -> Option<&Arc<Listener>> {
        listener::choose(self.listeners.get(&port)?, tls, host)
    }

    /// The workload that has an address.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(&address.to_canonical())
    }

    /// All workloads, in no order; one with several addresses comes as often.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    /// What is spoken on what was dialled, as declared.
    pub fn protocol(&self, destination: Destination<'_>) -> AppProtocol {
        match destination {
            Destination::Service { key, port } => self
                .service(key)
                .and_then(|service| service.ports.iter().find(|p| p.port == port))
                .map_or(AppProtocol::Unknown, |port| port.app_protocol),
            Destination::Workload { address, port } => self
                .endpoint_at(address)
                .and_then(|endpoint| endpoint.ports.iter().find(|p| p.target == port))
                .map_or(AppProtocol::Unknown, |served| {
                    self.protocol(Destination::Service {
                        key: &served.service,
                        port: served.port,
                    })
                }),
        }
    }

    /// Endpoints of a port of a service, or of a subset, for who dialled `port`. `None` if there is no such service, port
    /// or subset.
    pub fn cluster(&self, key: &ClusterKey, dialled: u16) -> Option<&Arc<Cluster>> {
        let served = self.served.get(&key.service)?;
        let port = match (key.port, &*served.service.ports) {
            (0, [only]) => only.port,
            (0, _) => dialled,
            (port, _) => port,
        };
        served.clusters.get(&(port, key.subset.clone()))
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.served
            .values()
            .flat_map(|served| served.clusters.values())
    }

    /// What becomes of a request.
    pub fn decide(&self, request: &Request<'_>) -> Decision<'_> {
        let (key, port) = match request.destination {
            Destination::Service { key, port } => (key, port),
            Destination::Workload { address, .. } => {
                return self.endpoint_at(address).map_or(
                    Decision::None(NoRoute::UnknownDestination),
                    Decision::Workload,
                );
            }
        };
        let Some(served) = self.served.get(key) else {
            return Decision::None(NoRoute::UnknownDestination);
        };
        let table = &served.routes.rules(port, request.client.namespace).requests;
        if !table.is_empty() {
            return table
                .find(request)
                .map_or(Decision::None(NoRoute::NoMatch), |hit| Decision::Rule {
                    rule: hit.rule,
                    taken: hit.taken,
                });
        }
        served.clusters.get(&(port, None)).map_or(
            Decision::None(NoRoute::UnknownDestination),
            Decision::Service,
        )
    }

    /// Whether the name that TLS asks for decides where connections of a client to a destination go.
    pub fn asks_for_names(&self, client: Client<'_>, destination: Destination<'_>) -> bool {
        self.connections(client, destination)
            .is_some_and(Connections::ask_for_names)
    }

    /// What becomes of a connection whose bytes are not read as HTTP. `address` is what was dialled, and `server_name` what
    /// TLS asks for on it.
    pub fn decide_connection(
        &self,
        client: Client<'_>,
        destination: Destination<'_>,
        address: IpAddr,
        server_name: Option<&str>,
    ) -> Decision<'_> {
        let (key, port) = match destination {
            Destination::Service { key, port } => (key, port),
            Destination::Workload { address, .. } => {
                return self.endpoint_at(address).map_or(
                    Decision::None(NoRoute::UnknownDestination),
                    Decision::Workload,
                );
            }
        };
        // Rules that name other ports alone say nothing of this one.
        let connections = self.connections(client, destination);
        if let Some(connections) = connections.filter(|all| all.concern(port)) {
            return connections
                .find(client, (address, port), server_name)
                .map_or(Decision::None(NoRoute::NoMatch), |rule| Decision::Rule {
                    rule,
                    taken: Taken::default(),
                });
        }
        let clusters = self.served.get(key).map(|served| &served.clusters);
        clusters.and_then(|all| all.get(&(port, None))).map_or(
            Decision::None(NoRoute::UnknownDestination),
            Decision::Service,
        )
    }

    fn connections(
        &self,
        client: Client<'_>,
        destination: Destination<'_>,
    ) -> Option<&Connections> {
        let Destination::Service { key, port } = destination else {
            return None;
        };
        let served = self.served.get(key)?;
        Some(&served.routes.rules(port, client.namespace).connections)
    }

    /// Whether the client may send the request to the endpoint that was chosen. `port` is the endpoint's own.
    pub fn authorize<'c>(
        &'c self,
        request: &Request<'_>,
        endpoint: &'c Endpoint,
        target: Target,
    ) -> Verdict<'c> {
        let policies = &self.policies;
        let undelivered = endpoint
            .policies
            .iter()
            .find(|name| !policies.by_name.contains_key(*name));
        if let Some(name) = undelivered {
            return Verdict::Deny(Denial::Undelivered { name });
        }
        verdict(
            self.applying(request.destination, endpoint),
            request,
            target,
        )
    }

    /// The AUDIT policies, and those in dry run, that match: they are logged and change nothing.
    pub fn noted<'c>(
        &'c self,
        request: &'c Request<'_>,
        endpoint: &'c Endpoint,
        target: Target,
    ) -> impl Iterator<Item = (&'c Policy, usize)> {
        self.applying(request.destination, endpoint)
            .filter(|policy| policy.dry_run || policy.action == Action::Audit)
            .filter_map(move |policy| Some((policy, policy.matching_rule(request, target)?)))
    }

    /// Policies that count for a request to an endpoint.
    fn applying<'c>(
        &'c self,
        destination: Destination<'_>,
        endpoint: &'c Endpoint,
    ) -> impl Iterator<Item = &'c Policy> + Clone + use<'c> {
        let policies = &self.policies;
        let of_service = match destination {
            Destination::Service { key, .. } => policies.by_service.get(key),
            Destination::Workload { .. } => None,
        };
        let of_namespace = policies.by_namespace.get(&endpoint.namespace);
        let named = endpoint
            .policies
            .iter()
            .filter_map(|name| policies.by_name.get(name));
        policies
            .all
            .iter()
            .chain(of_service.into_iter().flatten())
            .chain(of_namespace.into_iter().flatten())
            .chain(named)
            .map(|policy| &**policy)
    }
}

impl Routes {
    fn rules(&self, port: u16, client_namespace: Option<&str>) -> &Rules {
        let routes = self.by_port.get(&port).unwrap_or(&self.other_ports);
        client_namespace
            .and_then(|namespace| routes.clients.get(namespace))
            .unwrap_or(&routes.everybody)
    }
}

impl Cluster {
    /// Members that new requests may go to.
    pub fn ready(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.ready)
    }
}

#[cfg(test)]
mod tests;
