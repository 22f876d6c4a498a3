//! Connections that have to go through a waypoint: to which of its pods they go, and for whom a pod is a waypoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rand::{Rng, RngExt};

use super::{HBONE_PORT, Route, RouteError, RouteKind, is_at};
use crate::address::{Family, GatewayAddress, GatewayDestination};
use crate::service::Service;
use crate::state::MeshState;
use crate::workload::{Health, TunnelProtocol, Workload};

/// The waypoint that a connection to a service goes through this time, if it goes through one.
pub(super) fn of_service<'s, R: Rng + ?Sized>(
    source: &Workload,
    service: &'s Service,
    rng: &mut R,
) -> Option<&'s GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let all = || {
        let weighted = weighted.iter().map(|one| &one.destination);
        service.waypoint.iter().chain(weighted)
    };
    // Its own connections to what is behind it do not go through it again.
    if all().any(|waypoint| is_at(source, waypoint)) {
        return None;
    }
    let total: u64 = weighted.iter().map(|one| u64::from(one.weight)).sum();
    if total == 0 {
        // Without weights no share is given to anybody, and none is skipped.
        return all().next();
    }
    let mut ticket = rng.random_range(0..total);
    weighted
        .iter()
        .find(|one| {
            let own = u64::from(one.weight);
            let here = ticket < own;
            ticket = ticket.saturating_sub(own);
            here
        })
        .map(|one| &one.destination)
}

/// The waypoint that a connection to a workload goes through, if it goes through one.
pub(super) fn of_workload<'s>(
    source: &Workload,
    workload: &'s Workload,
) -> Option<&'s GatewayAddress> {
    let waypoint = workload.waypoint.as_ref()?;
    (workload.uid != source.uid && !is_at(source, waypoint)).then_some(waypoint)
}

/// The way to a waypoint. `destination` is what was asked for; the waypoint is told. Of its pods that `allowed` accepts,
/// by the address of their tunnels, or of all if it accepts none.
pub(super) fn through<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    waypoint: &GatewayAddress,
    (destination, what): (SocketAddr, impl FnOnce() -> String),
    service: Option<&Arc<Service>>,
    rng: &mut R,
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
) -> Result<Route, RouteError> {
    let family = Family::of(destination.ip());
    let Some((pod, dial)) = pod(state, source, waypoint, family, rng, allowed) else {
        return Err(RouteError::Waypoint {
            destination: what(),
            waypoint: waypoint.clone(),
        });
    };
    Ok(Route {
        kind: RouteKind::Hbone {
            dial,
            authority: destination,
            expected: vec![pod.identity()],
        },
        destination: Some(pod),
        service: service.cloned(),
        waypoint: Some(waypoint.clone()),
    })
}

/// A ready pod of a waypoint and where its tunnels end: one that is allowed before others, and of these one of the
/// client's own node.
fn pod<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    waypoint: &GatewayAddress,
    family: Family,
    rng: &mut R,
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
) -> Option<(Arc<Workload>, SocketAddr)> {
    let port = match waypoint.hbone_port {
        0 => HBONE_PORT,
        port => port,
    };
    let ready = pods(state, waypoint).into_iter().filter_map(|pod| {
        let can = pod.status == Health::Healthy
            && pod.tunnel == TunnelProtocol::Hbone
            && pod.network == source.network;
        let same = |ip: &&std::net::IpAddr| Family::of(**ip) == family;
        let addresses = &pod.addresses;
        let ip = addresses.iter().find(same).or_else(|| addresses.first())?;
        can.then(|| (Arc::clone(pod), SocketAddr::new(*ip, port)))
    });
    let mut ready: Vec<_> = ready.collect();
    if ready.iter().any(|(pod, dial)| allowed(pod, *dial)) {
        ready.retain(|(pod, dial)| allowed(pod, *dial));
    }
    let near: Vec<_> = ready
        .iter()
        .filter(|(pod, _)| !pod.node.is_empty() && pod.node == source.node)
        .cloned()
        .collect();
    let mut from = if near.is_empty() { ready } else { near };
    if from.is_empty() {
        return None;
    }
    let drawn = in_turn(waypoint, from.len(), rng);
    Some(from.swap_remove(drawn))
}

/// Whose turn it is among so many pods of a waypoint. They take turns in the whole process: any number of connections that
/// follow each other differs by one at most from pod to pod, so that clients which are asked to move on, each at its time, end
/// up as evenly as those which come at once. Who is first is drawn, or the clients of many nodes would meet at one pod.
fn in_turn<R: Rng + ?Sized>(waypoint: &GatewayAddress, count: usize, rng: &mut R) -> usize {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    // Of waypoints that are no more nobody tells.
    if turns.len() >= MOST_TURNS && !turns.contains_key(waypoint) {
        turns.clear();
    }
    let turn = match turns.get_mut(waypoint) {
        Some(turn) => turn,
        None => turns
            .entry(waypoint.clone())
            .or_insert_with(|| rng.random_range(0..u32::MAX)),
    };
    *turn = turn.wrapping_add(1);
    usize::try_from(*turn).unwrap_or(0) % count.max(1)
}

static TURNS: LazyLock<Mutex<HashMap<GatewayAddress, u32>>> = LazyLock::new(Mutex::default);
/// More waypoints than a mesh has at a time.
const MOST_TURNS: usize = 10_000;

/// All pods of a waypoint.
fn pods<'s>(state: &'s MeshState, waypoint: &GatewayAddress) -> Vec<&'s Arc<Workload>> {
    match &waypoint.destination {
        GatewayDestination::Hostname(key) => state.endpoints(key).iter().collect(),
        GatewayDestination::Address(address) => {
            let (network, ip) = (&address.network, address.ip);
            let workload = state.workload_by_ip(network, ip);
            if workload.is_some() {
                return workload.into_iter().collect();
            }
            let service = state.service_by_exact_vip(network, ip, None);
            service.map_or_else(Vec::new, |one| state.endpoints(&one.key()).iter().collect())
        }
    }
}

/// Whether connections to a destination have to go through this workload: what others send to it for that destination is
/// not meant for itself.
pub fn is_waypoint_for(state: &MeshState, workload: &Workload, destination: SocketAddr) -> bool {
    let ip = destination.ip().to_canonical();
    let network = &workload.network;
    let services = [
        state.service_by_exact_vip(network, ip, None),
        state.service_by_range(network, ip, None),
    ];
    if services
        .into_iter()
        .flatten()
        .any(|one| serves(workload, one))
    {
        return true;
    }
    let Some(owner) = state.workload_by_ip(network, ip) else {
        return false;
    };
    owner.waypoint.as_ref().is_some_and(|one| is_at(workload, one))
        // A headless service has no address but those of its endpoints.
        || owner.services.keys().any(|key| {
            let service = state.service(key);
            service.is_some_and(|one| one.addresses.is_empty() && serves(workload, one))
        })
}

/// Whether every connection to a service goes through pods of the waypoint that this workload is one of.
pub fn waypoint_of_service(service: &Service, workload: &Workload) -> bool {
    let only = service.weighted_waypoints.is_empty();
    let waypoint = service.waypoint.as_ref().filter(|_| only);
    waypoint.is_some_and(|one| is_at(workload, one))
}

fn serves(workload: &Workload, service: &Service) -> bool {
    let weighted = service
        .weighted_waypoints
        .iter()
        .map(|one| &one.destination);
    let mut all = service.waypoint.iter().chain(weighted);
    all.any(|waypoint| is_at(workload, waypoint))
}
