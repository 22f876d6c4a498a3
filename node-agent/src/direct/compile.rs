//! From mesh state to the kernel's tables, purely.
//!
//! The same decision function that user space asks for each connection is asked here for every pair
//! of captured pods of this node and every port that a policy names. A pod is asked about with each
//! of its addresses: where the answers differ the kernel does not decide.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::Duration,
};

use abi::{ANY_PORT, Addr, DirectVerdict, Endpoint, HBONE_PORT, Target, VerdictKey};
use model::{
    Identity, MeshState, Service, Workload, WorkloadUid,
    address::Family,
    balance,
    outbound::{INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT},
    policy::{Connection, Policy},
    service::{Mode, ServiceKey, Visibility},
};

use super::waypoints::{self, AllSaid, loopback_port};
use crate::pod::Pod;

/// A captured pod of this node, as far as tables are concerned.
#[derive(Clone, Debug)]
pub struct LocalPod {
    /// Its number.
    pub id: u32,
    /// Its workload.
    pub workload: WorkloadUid,
    /// Who it is.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl LocalPod {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            id: pod.id,
            workload: pod.workload.clone(),
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
        }
    }
}

/// What the kernel gets.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// What policy says, by pair and port.
    pub verdicts: BTreeMap<VerdictKey, DirectVerdict>,
    /// Which pod has an address.
    pub local_pods: BTreeMap<Addr, u32>,
    /// The endpoints of service ports, with weights.
    pub services: BTreeMap<Endpoint, ServiceTable>,
    /// Workloads that the kernel reaches itself.
    pub reached: HashSet<WorkloadUid>,
}

/// What the kernel draws for a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// The endpoints, with weights.
    pub targets: Vec<(Target, u64)>,
    /// For how long a client keeps its endpoint after its last connection; 0 where each is drawn anew.
    pub session_seconds: u32,
}

pub(super) struct Server<'a> {
    pub(super) pod: &'a LocalPod,
    pub(super) workload: &'a Workload,
    pub(super) ports: BTreeSet<u16>,
}

/// Compiles the tables for the captured pods of this node; `said` is what waypoints among them have said.
#[must_use]
pub fn compile(state: &MeshState, pods: &[LocalPod], said: &AllSaid) -> Tables {
    let mut tables = Tables::default();
    let servers: Vec<Server<'_>> = pods.iter().filter_map(|pod| server(state, pod)).collect();
    for server in &servers {
        for addr in &server.pod.addresses {
            tables
                .local_pods
                .insert(Addr::from(addr.to_canonical()), server.pod.id);
        }
        tables.reached.insert(server.pod.workload.clone());
        for client in pods
            .iter()
            .filter(|client| client.id != server.pod.id && is_known(state, client))
        {
            verdicts(state, client, server, &mut tables.verdicts);
        }
    }
    if let Some(source) = pods
        .iter()
        .find_map(|pod| state.workload(pod.workload.as_ref()))
    {
        services(state, source, &servers, &mut tables);
    }
    waypoints::add(state, pods, &servers, said, &mut tables);
    tables
}

/// A pod that may be reached directly: known, with all its policies, and not behind a waypoint.
fn server<'a>(state: &'a MeshState, pod: &'a LocalPod) -> Option<Server<'a>> {
    let workload = state.workload(pod.workload.as_ref())?;
    if workload.waypoint.is_some() || workload.identity() != pod.identity {
        return None;
    }
    let policies = state.policies_for(workload).ok()?;
    Some(Server {
        pod,
        workload,
        ports: named_ports(&policies),
    })
}

pub(super) fn is_known(state: &MeshState, pod: &LocalPod) -> bool {
    state
        .workload(pod.workload.as_ref())
        .is_some_and(|workload| workload.identity() == pod.identity)
}

fn named_ports(policies: &[&Policy]) -> BTreeSet<u16> {
    let matches = policies
        .iter()
        .flat_map(|policy| &policy.rules)
        .flat_map(|rule| &rule.clauses)
        .flat_map(|clause| &clause.matches);
    matches
        .flat_map(|m| m.destination_ports.iter().chain(&m.not_destination_ports))
        .copied()
        .filter(|port| *port != ANY_PORT)
        .collect()
}

fn verdicts(
    state: &MeshState,
    client: &LocalPod,
    server: &Server<'_>,
    into: &mut BTreeMap<VerdictKey, DirectVerdict>,
) {
    let key = |port| VerdictKey {
        source: client.id,
        destination: server.pod.id,
        port,
        way: 0,
    };
    for port in &server.ports {
        into.insert(key(*port), verdict(state, client, server, *port));
    }
    // A port that no policy names stands for all of them.
    let Some(other) = (1..=u16::MAX).find(|port| !server.ports.contains(port)) else {
        return;
    };
    into.insert(key(ANY_PORT), verdict(state, client, server, other));
    // The mesh's own ports are the agent's to refuse.
    for port in [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT] {
        into.insert(key(port), DirectVerdict::Agent);
    }
}

fn verdict(state: &MeshState, client: &LocalPod, server: &Server<'_>, port: u16) -> DirectVerdict {
    let mut answer = None;
    for source_ip in &client.addresses {
        for destination_ip in server
            .pod
            .addresses
            .iter()
            .filter(|ip| ip.is_ipv4() == source_ip.is_ipv4())
        {
            let connection = Connection {
                source: Some(&client.identity),
                source_ip: *source_ip,
                destination_ip: *destination_ip,
                destination_port: port,
            };
            let allowed = state.authorize(server.workload, &connection).is_allow();
            if answer.is_some_and(|before| before != allowed) {
                return DirectVerdict::Agent;
            }
            answer = Some(allowed);
        }
    }
    match answer {
        // Nobody has to do with a waypoint itself but for what is behind it; its ports are the agent's to guard.
        Some(true) if loopback_port(server.workload).is_some() => DirectVerdict::Agent,
        Some(true) => DirectVerdict::Allow,
        Some(false) => DirectVerdict::Deny,
        None => DirectVerdict::Agent,
    }
}

/// Service ports of which an endpoint can be reached directly. All endpoints are drawn from, so that
/// each keeps its share; those without a pod of this node are the agent's to carry.
fn services(state: &MeshState, source: &Workload, servers: &[Server<'_>], tables: &mut Tables) {
    // Only these can have an endpoint on this node: the rest of a large mesh costs nothing.
    let keys: BTreeSet<&ServiceKey> = servers
        .iter()
        .flat_map(|server| server.workload.services.keys())
        .collect();
    let here = keys.into_iter().filter_map(|key| state.service(key));
    for service in here.filter(|service| is_plain(service)) {
        let own = service
            .addresses
            .iter()
            .filter(|address| address.network == source.network && address.prefix.is_none());
        for address in own {
            let ip = address.ip.to_canonical();
            // Where two services share an address, the client's namespace decides: the agent's work.
            let known = state.service_by_exact_vip(&source.network, ip, None);
            if known.is_none_or(|known| known.key() != service.key())
                || is_shared(state, service, &source.network, ip)
            {
                continue;
            }
            for port in &service.ports {
                let targets = targets(state, service, port.port, ip, source, servers);
                if targets.iter().any(|(target, _)| target.pod != 0) {
                    let table = ServiceTable {
                        targets,
                        session_seconds: service.session_timeout.map_or(0, session_seconds),
                    };
                    tables
                        .services
                        .insert(Endpoint::new(Addr::from(ip), port.port), table);
                }
            }
        }
    }
}

/// A time that is too short to count is one that nobody meant.
pub(crate) fn session_seconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn is_plain(service: &Service) -> bool {
    service.waypoint.is_none()
        && service.weighted_waypoints.is_empty()
        && service.load_balancing.mode != Mode::Passthrough
        && service.visibility == Visibility::Public
}

pub(super) fn is_shared(state: &MeshState, service: &Service, network: &str, ip: IpAddr) -> bool {
    let others = state
        .services()
        .filter(|other| other.namespace != service.namespace);
    others
        .flat_map(|other| &other.addresses)
        .any(|address| *address.network == *network && address.ip.to_canonical() == ip)
}

fn targets(
    state: &MeshState,
    service: &Service,
    port: u16,
    vip: IpAddr,
    source: &Workload,
    servers: &[Server<'_>],
) -> Vec<(Target, u64)> {
    let candidates =
        balance::candidates(state, service, port, Family::of(vip), source).unwrap_or_default();
    let target = |(endpoint, weight): (balance::Endpoint, u64)| {
        let ip = endpoint.ip.to_canonical();
        let server = servers
            .iter()
            .find(|server| server.pod.workload == endpoint.workload.uid);
        // The socket that dialled has the family of the service's address.
        let server = server
            .filter(|server| server.pod.addresses.contains(&ip) && ip.is_ipv4() == vip.is_ipv4());
        let target = Target {
            endpoint: Endpoint::new(Addr::from(ip), endpoint.target_port),
            pod: server.map_or(0, |server| server.pod.id),
        };
        (target, weight)
    };
    candidates.into_iter().map(target).collect()
}

#[cfg(test)]
mod tests;
