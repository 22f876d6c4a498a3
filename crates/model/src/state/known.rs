//! Every address and range that something is known of, for those who have to tell known from unknown.

use std::net::IpAddr;

use ipnet::IpNet;

use super::MeshState;
use crate::workload::TunnelProtocol;

/// An address or range of which something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Known<'s> {
    /// The network; empty for the mesh's only one.
    pub network: &'s str,
    /// The range; a single address has the longest prefix of its family.
    pub range: IpNet,
    /// What it is.
    pub class: AddressClass,
}

/// What a known address or range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressClass {
    /// A service's virtual address.
    Service,
    /// A range of a service. An address in it that is known by itself is not in the range's hands.
    ServiceRange,
    /// A captured workload's address: reached by tunnel, or not at all.
    Captured,
    /// The address of a workload that is not in the mesh.
    Uncaptured,
    /// It was a captured workload's address, and nobody has said that it is free.
    Tombstone,
}

impl MeshState {
    /// All addresses and ranges that are known, each address once: as a service's, else as a workload's, else as a
    /// tombstone's, which is the order in which [`crate::outbound::route`] asks. Addresses are canonical.
    pub fn known_addresses(&self) -> impl Iterator<Item = Known<'_>> {
        self.networks.iter().flat_map(|(name, network)| {
            let known = move |range, class| Known {
                network: name,
                range,
                class,
            };
            let services = network.services.keys();
            let services = services.map(move |ip| known(IpNet::from(*ip), AddressClass::Service));
            let ranges = network.ranges.iter();
            let ranges = ranges.map(move |(range, _)| known(*range, AddressClass::ServiceRange));
            let free = |ip: &&IpAddr| !network.services.contains_key(*ip);
            let others = network.workloads.keys().chain(
                network
                    .tombstones
                    .keys()
                    .filter(|ip| !network.workloads.contains_key(*ip)),
            );
            let others = others
                .filter(free)
                .filter_map(move |ip| Some(known(IpNet::from(*ip), network.class(*ip)?)));
            services.chain(ranges).chain(others)
        })
    }

    /// Whether a captured workload has or had an address, and has not left it to another: nothing goes there in
    /// plain.
    pub fn is_or_was_captured(&self, network: &str, ip: IpAddr) -> bool {
        let class = self
            .networks
            .get(network)
            .and_then(|network| network.class(ip.to_canonical()));
        matches!(
            class,
            Some(AddressClass::Captured | AddressClass::Tombstone)
        )
    }
}

impl super::network::Network {
    /// What an address is besides a service's.
    pub(super) fn class(&self, ip: IpAddr) -> Option<AddressClass> {
        match self.workload(ip) {
            Some(workload) if workload.tunnel == TunnelProtocol::Hbone => {
                Some(AddressClass::Captured)
            }
            // A sharer of its node's addresses says nothing of who has this one to itself.
            Some(workload) if !workload.is_sharer() || self.tombstone(ip).is_none() => {
                Some(AddressClass::Uncaptured)
            }
            _ => self.tombstone(ip).map(|_| AddressClass::Tombstone),
        }
    }
}

#[cfg(test)]
mod tests;
