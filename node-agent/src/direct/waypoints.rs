//! Pods of this node that are waypoints: who may be led to them by the kernel, and where.
//!
//! A waypoint believes an address for who calls, and a port for what was dialled. So the kernel leads a pod there only after
//! the waypoint has said that all of its threads know the pod by its addresses, and the waypoint's ports are reached in no
//! other way (`carry::inbound`). A conversation with the waypoint says both (`agent::waypoints`); when it ends, nobody is
//! led there, and the agent carries what goes to the waypoint.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use abi::{ANY_PORT, Addr, DirectVerdict, Endpoint, LED, Target, VerdictKey};
use model::{
    Identity, MeshState, Workload, WorkloadUid,
    outbound::waypoint_of_service,
    policy::Connection,
    service::Visibility,
    workload::{ApplicationProtocol, Health},
};

use super::compile::{LocalPod, Server, Tables, is_known, is_shared};
use crate::pod::Pod;

/// Who has which address.
pub type Callers = HashMap<IpAddr, Identity>;

/// What waypoints of this node are to be told.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Every captured pod of this node that is in the mesh.
    pub callers: Arc<Callers>,
    /// The waypoints, and the port of their loopback where they listen to the agent.
    pub waypoints: Vec<(Arc<Pod>, u16)>,
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Self) -> bool {
        let waypoints = |wanted: &Self| -> Vec<(u32, u16)> {
            let all = wanted.waypoints.iter();
            all.map(|(pod, port)| (pod.id, *port)).collect()
        };
        self.callers == other.callers && waypoints(self) == waypoints(other)
    }
}

/// What a waypoint has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whom it knows.
    pub callers: Arc<Callers>,
    /// Its own port, by the service's address and port.
    pub doors: BTreeMap<SocketAddr, u16>,
}

/// What waypoints have said, by [`Pod::id`].
pub type AllSaid = BTreeMap<u32, Said>;

/// The port of a waypoint's loopback on which it listens to the agent.
pub(crate) fn loopback_port(workload: &Workload) -> Option<u16> {
    let tunnel = workload.application_tunnel?;
    let speaks = tunnel.protocol == ApplicationProtocol::Proxy;
    tunnel.port.filter(|_| speaks)
}

/// What the waypoints among these pods are to be told.
pub(super) fn wanted(state: &MeshState, pods: &[Arc<Pod>]) -> Wanted {
    let workload = |uid: &WorkloadUid| state.workload(uid.as_ref());
    let waypoints: Vec<_> = pods
        .iter()
        .filter_map(|pod| Some((Arc::clone(pod), loopback_port(workload(&pod.workload)?)?)))
        .collect();
    // Most nodes have none, and nothing is done for it.
    if waypoints.is_empty() {
        return Wanted::default();
    }
    let local = pods.iter().map(|pod| LocalPod::of(pod));
    let known = local.filter(|pod| is_known(state, pod));
    let callers = known.flat_map(|pod| {
        let identity = pod.identity;
        let own = pod.addresses.into_iter();
        own.map(move |ip| (ip.to_canonical(), identity.clone()))
    });
    Wanted {
        callers: Arc::new(callers.collect()),
        waypoints,
    }
}

/// Adds to the tables whom the kernel leads to waypoints of this node, and for which services.
pub(super) fn add(
    state: &MeshState,
    pods: &[LocalPod],
    servers: &[Server<'_>],
    said: &AllSaid,
    tables: &mut Tables,
) {
    for server in servers {
        let Some(said) = said.get(&server.pod.id) else {
            continue;
        };
        if loopback_port(server.workload).is_none() || server.workload.status != Health::Healthy {
            continue;
        }
        let knows = |client: &LocalPod| {
            let known =
                |ip: &IpAddr| said.callers.get(&ip.to_canonical()) == Some(&client.identity);
            !client.addresses.is_empty() && client.addresses.iter().all(known)
        };
        let clients = pods.iter().filter(|client| {
            client.id != server.pod.id
                && is_known(state, client)
                && knows(client)
                && gets_there(state, client, server, said)
        });
        for client in clients {
            let key = VerdictKey {
                source: client.id,
                destination: server.pod.id,
                port: ANY_PORT,
                way: LED,
            };
            tables.verdicts.insert(key, DirectVerdict::Allow);
        }
        for (service, door) in &said.doors {
            let same = |ip: &&IpAddr| ip.is_ipv4() == service.is_ipv4();
            let Some(own) = server.pod.addresses.iter().find(same) else {
                continue;
            };
            if !leads(state, server.workload, *service) {
                continue;
            }
            let target = Target {
                endpoint: Endpoint::new(Addr::from(own.to_canonical()), *door),
                pod: server.pod.id,
            };
            let dialled = Endpoint::new(Addr::from(service.ip()), service.port());
            let table = tables.services.entry(dialled);
            table.or_default().targets.push((target, 1));
        }
    }
}

/// Whether policy lets the client through to every door. The waypoint's own policies are not asked about what is behind it; but
/// where a NetworkPolicy closes its other ports than 15008, the network's own enforcement would drop what the kernel leads to a
/// door, and its client would wait. The agent's tunnel passes.
fn gets_there(state: &MeshState, client: &LocalPod, server: &Server<'_>, said: &Said) -> bool {
    let Some(door) = said.doors.values().next() else {
        return false;
    };
    let dials = state.workload(client.workload.as_ref());
    if server.workload.isolated.ingress || dials.is_none_or(|own| own.isolated.egress) {
        return false;
    }
    // A port that no policy names stands for all of them.
    if server.ports.range(abi::WAYPOINT_PORTS.0..).next().is_some() {
        return false;
    }
    let pairs = client.addresses.iter().flat_map(|source| {
        let same = move |own: &&IpAddr| own.is_ipv4() == source.is_ipv4();
        let own = server.pod.addresses.iter().filter(same);
        own.map(move |own| (*source, *own))
    });
    pairs.into_iter().all(|(source_ip, destination_ip)| {
        let connection = Connection {
            source: Some(&client.identity),
            source_ip,
            destination_ip,
            destination_port: *door,
        };
        state.authorize(server.workload, &connection).is_allow()
    })
}

/// Whether whoever dials a service's address goes to this waypoint, and to no other one's pods.
fn leads(state: &MeshState, waypoint: &Workload, dialled: SocketAddr) -> bool {
    let (network, ip) = (&waypoint.network, dialled.ip());
    // Where two services share an address, the client's namespace decides: the agent's work.
    let Some(service) = state.service_by_exact_vip(network, ip, None) else {
        return false;
    };
    service.visibility == Visibility::Public
        && !is_shared(state, service, network, ip)
        && service.ports.iter().any(|port| port.port == dialled.port())
        && waypoint_of_service(service, waypoint)
}

#[cfg(test)]
mod tests;
