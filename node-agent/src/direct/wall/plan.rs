//! Which wall an address has, purely.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use abi::Wall;
use model::{
    MeshState, Service,
    service::{Mode, Visibility},
    workload::{NetworkMode, TunnelProtocol},
};

use crate::{mesh::Announced, pod::Pod};

/// This node, as the mesh describes it.
#[derive(Clone, Debug)]
pub(super) struct Here {
    node: Arc<str>,
    network: Arc<str>,
    addresses: BTreeSet<IpAddr>,
}

impl Here {
    /// None while the mesh does not know one of the captured pods.
    pub(super) fn of(state: &MeshState, pods: &[Arc<Pod>]) -> Option<Self> {
        let workload = pods
            .iter()
            .find_map(|pod| state.workload(pod.workload.as_ref()))?;
        let addresses = pods.iter().flat_map(|pod| &pod.addresses);
        Some(Self {
            node: Arc::clone(&workload.node),
            network: Arc::clone(&workload.network),
            addresses: addresses.map(IpAddr::to_canonical).collect(),
        })
    }
}

/// The wall of an address: none if captured pods of this node may talk to it in plain.
pub(super) fn wall_of(
    state: &MeshState,
    announced: &Announced,
    here: &Here,
    ip: IpAddr,
) -> Option<Wall> {
    if here.addresses.contains(&ip) {
        return None;
    }
    if let Some(service) = state.service_by_exact_vip(&here.network, ip, None) {
        return is_carried(service).then_some(Wall::Enforce);
    }
    let workload = state.workload_by_ip(&here.network, ip)?;
    let by_tunnel_only = workload.tunnel == TunnelProtocol::Hbone
        && workload.network_mode == NetworkMode::Standard
        && workload.node != here.node;
    if !by_tunnel_only {
        return None;
    }
    if announced.of(workload.uid.as_ref()).contains(&ip) {
        Some(Wall::Enforce)
    } else {
        Some(Wall::Count)
    }
}

/// Whether no captured pod ever dials an address of the service itself: the agent dials an endpoint.
fn is_carried(service: &Service) -> bool {
    service.load_balancing.mode != Mode::Passthrough && service.visibility == Visibility::Public
}

/// All addresses that may have a wall.
pub(super) fn all_addresses(state: &MeshState) -> impl Iterator<Item = IpAddr> {
    let workloads = state.workloads().flat_map(|workload| &workload.addresses);
    let services = state.services().flat_map(|service| &service.addresses);
    let exact = services.filter(|address| address.prefix.is_none());
    workloads.copied().chain(exact.map(|address| address.ip))
}

#[cfg(test)]
mod tests;
