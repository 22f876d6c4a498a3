//! Everything that is known of the mesh, with the indexes that a connection needs.
//!
//! A clone costs a few reference counts and is a snapshot: a writer clones, changes its copy and
//! publishes it, readers keep what they have. Where the knowledge comes from is not said here.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use crate::address::{GatewayAddress, GatewayDestination, NetworkAddress};
use crate::policy::{AllowReason, Connection, DenyReason, Policy, PolicyKey, Verdict, decide};
use crate::service::{Service, ServiceKey};
use crate::text::Interner;
use crate::workload::{Workload, WorkloadUid};

pub mod carried;
mod known;
mod network;
mod policies;
mod sorted;
#[cfg(test)]
mod tests;
mod tombstone;

pub use known::{AddressClass, Known};
use network::Network;
use policies::Policies;
use sorted::Sorted;
pub use tombstone::Tombstone;

/// Everything that is known of the mesh.
#[derive(Clone, Debug, Default)]
pub struct MeshState {
    workloads: imbl::HashMap<WorkloadUid, Arc<Workload>>,
    tombstones: imbl::HashMap<WorkloadUid, Arc<Tombstone>>,
    services: imbl::HashMap<ServiceKey, Arc<Service>>,
    /// By service, whether the service itself is known or not: they arrive in any order.
    endpoints: imbl::HashMap<ServiceKey, Sorted<Workload>>,
    networks: imbl::HashMap<Arc<str>, Network>,
    policies: Policies,
    interner: Interner,
}

/// A workload names a policy that is not known, so nothing can be said about who may connect.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("policy {policy} is named by workload {workload} and has not been received")]
pub struct UnknownPolicy {
    /// The policy.
    pub policy: PolicyKey,
    /// Who names it.
    pub workload: WorkloadUid,
}

impl MeshState {
    /// Adds a workload, or replaces the one with the same uid.
    pub fn insert_workload(&mut self, mut workload: Workload) {
        if let Some(old) = self.workloads.get(&workload.uid) {
            if **old == workload {
                return;
            }
            self.unlink_workload(&Arc::clone(old));
        }
        workload.share_strings(&mut self.interner);
        let workload = Arc::new(workload);
        for key in workload.services.keys() {
            let members = self.endpoints.entry(key.clone()).or_default();
            members.insert(Arc::clone(&workload));
        }
        let network = self
            .networks
            .entry(Arc::clone(&workload.network))
            .or_default();
        network.add_workload(&workload);
        self.workloads.insert(workload.uid.clone(), workload);
    }

    /// Adds a service, or replaces the one with the same key.
    pub fn insert_service(&mut self, mut service: Service) {
        let key = service.key();
        if let Some(old) = self.services.get(&key) {
            if **old == service {
                return;
            }
            self.unlink_service(&Arc::clone(old));
        }
        service.share_strings(&mut self.interner);
        let service = Arc::new(service);
        for address in &service.addresses {
            let network = self
                .networks
                .entry(Arc::clone(&address.network))
                .or_default();
            network.add_service(address, &service);
        }
        self.services.insert(service.key(), service);
    }

    /// Adds a tombstone, or replaces the one with the same uid.
    pub fn insert_tombstone(&mut self, tombstone: Tombstone) {
        self.remove_tombstone(&tombstone.uid.clone());
        let tombstone = Arc::new(tombstone);
        self.networks
            .entry(Arc::clone(&tombstone.network))
            .or_default()
            .add_tombstone(&tombstone);
        self.tombstones.insert(tombstone.uid.clone(), tombstone);
    }

    /// Adds a policy, or replaces the one with the same key.
    pub fn insert_policy(&mut self, policy: Policy) {
        self.policies.insert(policy);
    }

    /// Removes a workload or a tombstone by its uid or a service by its key, as xDS names them.
    /// Says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        if let Some(workload) = self.workloads.remove(name) {
            self.unlink_workload(&workload);
            return true;
        }
        if self.remove_tombstone(name) {
            return true;
        }
        let service = name
            .parse()
            .ok()
            .and_then(|key: ServiceKey| self.services.remove(&key));
        if let Some(service) = &service {
            self.unlink_service(service);
        }
        service.is_some()
    }

    /// Removes a policy by its key, as xDS names it. Says whether there was one.
    pub fn remove_policy(&mut self, name: &str) -> bool {
        name.parse()
            .is_ok_and(|key: PolicyKey| self.policies.remove(&key))
    }

    /// A workload by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has an address. Where several have it, one to whom it belongs goes
    /// before those that share it with their node, and the latest before older ones.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.networks.get(network)?.workload(ip.to_canonical())
    }

    /// The tombstone of an address, if it has one and belongs to nobody.
    pub fn tombstone_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Tombstone>> {
        let (network, ip) = (self.networks.get(network)?, ip.to_canonical());
        let is_buried = network.class(ip) == Some(AddressClass::Tombstone);
        network.tombstone(ip).filter(|_| is_buried)
    }

    /// The service that has a virtual address: exactly, or else in its longest range.
    pub fn service_by_vip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Service>> {
        self.service_by_exact_vip(network, ip, None)
            .or_else(|| self.service_by_range(network, ip, None))
    }

    /// The service that has exactly this virtual address and that a client of a namespace may
    /// see; one of that namespace goes first, then a canonical one.
    pub fn service_by_exact_vip(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.networks
            .get(network)?
            .service(ip.to_canonical(), client_namespace)
    }

    /// The service that has a range with this address in it and that a client of a namespace may
    /// see; one of that namespace goes first, then the longest range, then a canonical one.
    pub fn service_by_range(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.networks
            .get(network)?
            .service_by_range(ip.to_canonical(), client_namespace)
    }

    /// A service by its key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// A policy by its key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The workloads of a service, ready or not, by uid.
    pub fn endpoints(&self, service: &ServiceKey) -> &[Arc<Workload>] {
        self.endpoints.get(service).map_or(&[], |members| members)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// A tombstone by its uid.
    pub fn tombstone(&self, uid: &str) -> Option<&Arc<Tombstone>> {
        self.tombstones.get(uid)
    }

    /// All tombstones, in no order.
    pub fn tombstones(&self) -> impl ExactSizeIterator<Item = &Arc<Tombstone>> {
        self.tombstones.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The policies that decide who may connect to a workload: those of its namespace, those of
    /// the mesh, and those that it names. Each once.
    ///
    /// # Errors
    /// One that it names is not known. Then nobody may connect.
    pub fn policies_for<'s>(
        &'s self,
        workload: &'s Workload,
    ) -> Result<Vec<&'s Policy>, UnknownPolicy> {
        self.check_known(workload)?;
        Ok(self.applying(workload).collect())
    }

    /// Decides whether a connection to a workload may go on. A policy that is named and not known
    /// denies, and a waypoint is never left out. What the workload's own waypoint sends may pass: it has decided with
    /// the identity of the client, which the connection does not show.
    pub fn authorize(&self, workload: &Workload, connection: &Connection<'_>) -> Verdict {
        if let Some(waypoint) = &workload.waypoint {
            if self.is_from(waypoint, &workload.network, connection) {
                return Verdict::Allow(AllowReason::Waypoint);
            }
            return Verdict::Deny(DenyReason::WaypointRequired {
                waypoint: waypoint.clone(),
            });
        }
        if self.is_from_waypoint_of_service(workload, connection) {
            return Verdict::Allow(AllowReason::Waypoint);
        }
        match self.check_known(workload) {
            Ok(()) => {
                decide(self.applying(workload), connection).made_by(workload.strict_by.as_deref())
            }
            Err(UnknownPolicy { policy, .. }) => {
                Verdict::Deny(DenyReason::UnknownPolicy { policy })
            }
        }
    }

    /// Whether it comes from a waypoint of a service of its namespace that the workload is an endpoint of. Another namespace's
    /// service may name any workload as its endpoint, in a slice that is written by hand, and has no say in who may connect.
    fn is_from_waypoint_of_service(
        &self,
        workload: &Workload,
        connection: &Connection<'_>,
    ) -> bool {
        let own = workload
            .services
            .keys()
            .filter(|key| key.namespace == workload.namespace);
        own.filter_map(|key| self.service(key))
            .flat_map(|service| {
                let weighted = service
                    .weighted_waypoints
                    .iter()
                    .map(|one| &one.destination);
                service.waypoint.iter().chain(weighted)
            })
            .any(|waypoint| self.is_from(waypoint, &workload.network, connection))
    }

    /// Whether a connection proves that a gateway opened it.
    fn is_from(
        &self,
        gateway: &GatewayAddress,
        network: &str,
        connection: &Connection<'_>,
    ) -> bool {
        let Some(source) = connection.source else {
            return false;
        };
        let is_source = |workload: &Arc<Workload>| workload.identity() == *source;
        match &gateway.destination {
            GatewayDestination::Hostname(key) => self.endpoints(key).iter().any(is_source),
            GatewayDestination::Address(address) if *address.network == *network => self
                .workload_by_ip(network, address.ip)
                .is_some_and(is_source),
            GatewayDestination::Address(_) => false,
        }
    }

    fn check_known(&self, workload: &Workload) -> Result<(), UnknownPolicy> {
        let unknown = |key: &&PolicyKey| self.policies.get(key).is_none();
        match workload.authorization_policies.iter().find(unknown) {
            None => Ok(()),
            Some(policy) => Err(UnknownPolicy {
                policy: policy.clone(),
                workload: workload.uid.clone(),
            }),
        }
    }

    fn applying<'s>(&'s self, workload: &'s Workload) -> impl Iterator<Item = &'s Policy> + Clone {
        self.policies
            .applying(&workload.namespace, &workload.authorization_policies)
    }

    fn unlink_workload(&mut self, workload: &Arc<Workload>) {
        for key in workload.services.keys() {
            if let Some(members) = self.endpoints.get_mut(key) {
                members.remove(workload);
                if members.is_empty() {
                    self.endpoints.remove(key);
                }
            }
        }
        self.change_network(&workload.network, |network| {
            network.remove_workload(workload);
        });
    }

    fn remove_tombstone(&mut self, uid: &str) -> bool {
        let Some(tombstone) = self.tombstones.remove(uid) else {
            return false;
        };
        self.change_network(&tombstone.network, |network| {
            network.remove_tombstone(&tombstone);
        });
        true
    }

    fn unlink_service(&mut self, service: &Arc<Service>) {
        for address in &service.addresses {
            let NetworkAddress { network, .. } = address;
            self.change_network(network, |network| network.remove_service(address, service));
        }
    }

    fn change_network(&mut self, name: &str, change: impl FnOnce(&mut Network)) {
        if let Some(network) = self.networks.get_mut(name) {
            change(network);
            if network.is_empty() {
                self.networks.remove(name);
            }
        }
    }
}
