//! Which destinations may have to be carried: those that [`crate::outbound::route`] does not let go
//! on as they are, whoever asks. Everything else is the kernel's own business.

use ipnet::IpNet;

use super::network::everything;
use super::{MeshState, Tombstone};
use crate::service::Service;
use crate::workload::Workload;

impl MeshState {
    /// Whether a connection to an address may have to be carried, in some network. A range is asked
    /// about as what a service has, not address by address.
    ///
    /// What is not in the mesh need not, nor a workload that takes plain connections only and stands
    /// behind no waypoint. What was in the mesh and may still be must: it is refused.
    pub fn carries(&self, destination: &IpNet) -> bool {
        self.networks
            .values()
            .any(|network| network.carries(destination))
    }

    /// Every address and range that [`Self::carries`], in no order. One that is in several networks
    /// comes several times.
    pub fn carried(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.networks.values().flat_map(|network| network.carried())
    }
}

/// The addresses of a workload, as [`MeshState::carries`] takes them.
pub fn of_workload(workload: &Workload) -> impl Iterator<Item = IpNet> + '_ {
    let addresses = workload.addresses.iter();
    let own = addresses.map(|ip| IpNet::from(ip.to_canonical()));
    // Whoever may not connect to everybody has all of it looked at.
    own.chain(everything().filter(|_| workload.egress_closed))
}

/// The addresses of a tombstone, as [`MeshState::carries`] takes them.
pub fn of_tombstone(tombstone: &Tombstone) -> impl Iterator<Item = IpNet> + '_ {
    let addresses = tombstone.addresses.iter();
    addresses.map(|ip| IpNet::from(ip.to_canonical()))
}

/// Those of whatever xDS names so: of a workload or a tombstone by its uid, of a service by its key.
pub fn of_name(state: &MeshState, name: &str) -> Vec<IpNet> {
    if let Some(workload) = state.workload(name) {
        return of_workload(workload).collect();
    }
    if let Some(tombstone) = state.tombstone(name) {
        return of_tombstone(tombstone).collect();
    }
    let key = name.parse().ok();
    let service = key.and_then(|key| state.service(&key));
    service.map_or_else(Vec::new, |service| of_service(service).collect())
}

/// The addresses and ranges of a service, as [`MeshState::carries`] takes them.
pub fn of_service(service: &Service) -> impl Iterator<Item = IpNet> + '_ {
    service.addresses.iter().map(|address| {
        let range = address.range().map(|range| range.trunc());
        range.unwrap_or_else(|| address.ip.to_canonical().into())
    })
}

#[cfg(test)]
mod tests;
