//! Who has which address in one network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::sorted::Sorted;
use super::tombstone::Tombstone;
use crate::address::NetworkAddress;
use crate::service::Service;
use crate::workload::{TunnelProtocol, Workload};

#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    pub(super) workloads: imbl::HashMap<IpAddr, Occupants>,
    pub(super) services: imbl::HashMap<IpAddr, Sorted<Service>>,
    /// Few: ranges come from hand-written entries only.
    pub(super) ranges: Arc<Vec<(IpNet, Arc<Service>)>>,
    pub(super) tombstones: imbl::HashMap<IpAddr, Sorted<Tombstone>>,
    /// Workloads that may connect to nobody that is not known: all that they open has to be looked at.
    pub(super) closed: usize,
}

/// All addresses.
pub(super) fn everything() -> impl Iterator<Item = IpNet> {
    let all = [
        IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    ];
    all.into_iter()
}

/// The workloads that have an address, the preferred one first. Nearly always one.
#[derive(Clone, Debug)]
pub(super) enum Occupants {
    One(Arc<Workload>),
    Many(Arc<Vec<Arc<Workload>>>),
}

impl Network {
    pub(super) fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.ranges.is_empty()
            && self.tombstones.is_empty()
            && self.closed == 0
    }

    /// See [`crate::MeshState::carries`].
    pub(super) fn carries(&self, destination: &IpNet) -> bool {
        if destination.prefix_len() < destination.max_prefix_len() {
            return (self.closed > 0 && destination.prefix_len() == 0)
                || self
                    .ranges
                    .iter()
                    .any(|(range, _)| range.trunc() == *destination);
        }
        let ip = destination.addr();
        self.services.contains_key(&ip)
            || self.tombstones.contains_key(&ip)
            || self.workloads.get(&ip).is_some_and(Occupants::carried)
    }

    /// See [`crate::MeshState::carried`].
    pub(super) fn carried(&self) -> impl Iterator<Item = IpNet> + '_ {
        let workloads = self
            .workloads
            .iter()
            .filter(|(_, occupants)| occupants.carried());
        let hosts = workloads
            .map(|(ip, _)| ip)
            .chain(self.services.keys())
            .chain(self.tombstones.keys())
            .map(|ip| IpNet::from(*ip));
        let everything = everything().filter(|_| self.closed > 0);
        let ranges = self.ranges.iter().map(|(range, _)| range.trunc());
        hosts.chain(ranges).chain(everything)
    }

    pub(super) fn add_workload(&mut self, workload: &Arc<Workload>) {
        self.closed += usize::from(workload.egress_closed);
        for ip in workload.addresses.iter().map(IpAddr::to_canonical) {
            let occupants = match self.workloads.get(&ip) {
                None => Occupants::One(Arc::clone(workload)),
                Some(others) => others.with(workload),
            };
            self.workloads.insert(ip, occupants);
        }
    }

    pub(super) fn remove_workload(&mut self, workload: &Workload) {
        self.closed -= usize::from(workload.egress_closed && self.closed > 0);
        for ip in workload.addresses.iter().map(IpAddr::to_canonical) {
            if let Some(occupants) = self.workloads.get(&ip) {
                match occupants.without(workload) {
                    Some(rest) => self.workloads.insert(ip, rest),
                    None => self.workloads.remove(&ip),
                };
            }
        }
    }

    pub(super) fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(&ip)?.as_slice().first()
    }

    pub(super) fn add_tombstone(&mut self, tombstone: &Arc<Tombstone>) {
        for ip in tombstone.addresses.iter().map(IpAddr::to_canonical) {
            let all = self.tombstones.entry(ip).or_default();
            all.insert(Arc::clone(tombstone));
        }
    }

    pub(super) fn remove_tombstone(&mut self, tombstone: &Tombstone) {
        for ip in tombstone.addresses.iter().map(IpAddr::to_canonical) {
            if let Some(all) = self.tombstones.get_mut(&ip) {
                all.remove(tombstone);
                if all.is_empty() {
                    self.tombstones.remove(&ip);
                }
            }
        }
    }

    pub(super) fn tombstone(&self, ip: IpAddr) -> Option<&Arc<Tombstone>> {
        self.tombstones.get(&ip)?.first()
    }

    pub(super) fn add_service(&mut self, address: &NetworkAddress, service: &Arc<Service>) {
        match address.range() {
            Some(range) => Arc::make_mut(&mut self.ranges).push((range, Arc::clone(service))),
            None => self
                .services
                .entry(address.ip.to_canonical())
                .or_default()
                .insert(Arc::clone(service)),
        }
    }

    pub(super) fn remove_service(&mut self, address: &NetworkAddress, service: &Arc<Service>) {
        if address.range().is_some() {
            Arc::make_mut(&mut self.ranges).retain(|(_, other)| !Arc::ptr_eq(other, service));
            return;
        }
        let ip = address.ip.to_canonical();
        if let Some(services) = self.services.get_mut(&ip) {
            services.remove(service);
            if services.is_empty() {
                self.services.remove(&ip);
            }
        }
    }

    pub(super) fn service(&self, ip: IpAddr, client: Option<&str>) -> Option<&Arc<Service>> {
        let there = self.services.get(&ip)?.iter();
        let there = there.filter(|service| self.may_stand_for(ip, service, client));
        best(there, client, |service| {
            (is_of(service, client), service.canonical)
        })
    }

    /// Whoever writes a service by hand may give it any address. What others dial that is another namespace's workload
    /// stays what it is.
    fn may_stand_for(&self, ip: IpAddr, service: &Service, client: Option<&str>) -> bool {
        let is_foreign = |workload: &Arc<Workload>| workload.namespace != service.namespace;
        service.canonical || is_of(service, client) || !self.workload(ip).is_some_and(is_foreign)
    }

    pub(super) fn service_by_range(
        &self,
        ip: IpAddr,
        client: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.ranges
            .iter()
            .filter(|(range, service)| range.contains(&ip) && is_visible(service, client))
            .reduce(|a, b| {
                let rank = |(range, service): &(IpNet, Arc<Service>)| {
                    (
                        is_of(service, client),
                        range.prefix_len(),
                        service.canonical,
                    )
                };
                if rank(b) > rank(a) { b } else { a }
            })
            .map(|(_, service)| service)
    }
}

/// The first of the visible services with the highest rank.
fn best<'s, R: Ord>(
    services: impl Iterator<Item = &'s Arc<Service>>,
    client: Option<&str>,
    rank: impl Fn(&Service) -> R,
) -> Option<&'s Arc<Service>> {
    services
        .filter(|service| is_visible(service, client))
        .reduce(|a, b| if rank(b) > rank(a) { b } else { a })
}

fn is_visible(service: &Service, client: Option<&str>) -> bool {
    client.is_none_or(|namespace| service.is_visible_to(namespace))
}

fn is_of(service: &Service, client: Option<&str>) -> bool {
    client.is_some_and(|namespace| &*service.namespace == namespace)
}

impl Occupants {
    /// Whether one of them is not simply dialled. Which of them goes first does not matter here.
    fn carried(&self) -> bool {
        self.as_slice()
            .iter()
            .any(|workload| workload.tunnel != TunnelProtocol::None || workload.waypoint.is_some())
    }

    fn as_slice(&self) -> &[Arc<Workload>] {
        match self {
            Self::One(workload) => std::slice::from_ref(workload),
            Self::Many(workloads) => workloads,
        }
    }

    fn with(&self, workload: &Arc<Workload>) -> Self {
        let mut all = self.as_slice().to_vec();
        let at = all.partition_point(|other| !other.is_sharer() && workload.is_sharer());
        all.insert(at, Arc::clone(workload));
        Self::Many(Arc::new(all))
    }

    fn without(&self, workload: &Workload) -> Option<Self> {
        let mut rest = self.as_slice().to_vec();
        rest.retain(|other| other.uid != workload.uid);
        match rest.as_slice() {
            [] => None,
            [only] => Some(Self::One(Arc::clone(only))),
            _ => Some(Self::Many(Arc::new(rest))),
        }
    }
}
