//! Which endpoint of a service a connection goes to.
//!
//! Endpoints that cannot take it are left out, those nearest by the service's routing preference
//! remain, and one of these is drawn by weight. Whether the connection may be made, and how, is
//! decided elsewhere.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rand::{Rng, RngExt};
use thiserror::Error;

use crate::address::Family;
use crate::service::{HealthPolicy, Mode, Scope, Service, ServiceKey, ServicePort};
use crate::state::MeshState;
use crate::workload::{Health, Workload};

/// An endpoint that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What runs there.
    pub workload: Arc<Workload>,
    /// The address to use.
    pub ip: IpAddr,
    /// The port to use.
    pub target_port: u16,
}

/// No endpoint of a service can take a connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("service {service} has no endpoint for port {port}: {reason}")]
pub struct NoEndpoint {
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// What is missing.
    pub reason: Missing,
}

/// What an endpoint is missing. In the order in which it is looked at: of several endpoints, the
/// reason that counts is that of the one that came furthest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missing {
    /// The service does not declare the port.
    Port,
    /// There are no endpoints at all.
    Workload,
    /// All are in other networks.
    Network,
    /// None has an address of a family that the service may be reached by.
    Address,
    /// None serves the port, which is a named one.
    TargetPort,
    /// None is ready.
    Health,
    /// All are weighted zero.
    Capacity,
    /// None is near enough, and the service insists.
    Locality,
}

/// Draws the endpoint that takes a connection from `source` to `port` of `service`.
///
/// `family` is the family that the client asked for. An endpoint without an address of it is used
/// by the other family, if the service may be reached by that.
///
/// # Errors
/// No endpoint can take the connection.
pub fn pick<R: Rng + ?Sized>(
    state: &MeshState,
    service: &Service,
    port: u16,
    family: Family,
    source: &Workload,
    rng: &mut R,
) -> Result<Endpoint, NoEndpoint> {
    pick_among(state, service, port, family, source, rng, |_, _| true)
}

/// Like [`pick`], among those endpoints (workload, target port) that `allowed` accepts; among all if
/// it accepts none.
///
/// For a caller that has drawn already and knows that the ticket fell on one of these: drawing among
/// them again by their weights keeps the shares of all.
///
/// # Errors
/// No endpoint can take the connection.
pub fn pick_among<R: Rng + ?Sized>(
    state: &MeshState,
    service: &Service,
    port: u16,
    family: Family,
    source: &Workload,
    rng: &mut R,
    allowed: impl Fn(&Workload, u16) -> bool,
) -> Result<Endpoint, NoEndpoint> {
    let key = service.key();
    let drawn = Wanted::new(service, &key, port, family, source)
        .and_then(|wanted| wanted.draw(state.endpoints(&key), rng, allowed));
    drawn.map_err(|reason| NoEndpoint {
        service: key,
        port,
        reason,
    })
}

/// The endpoints that [`pick`] draws from, with their weights; never empty, no weight is zero.
///
/// # Errors
/// No endpoint can take the connection.
pub fn candidates(
    state: &MeshState,
    service: &Service,
    port: u16,
    family: Family,
    source: &Workload,
) -> Result<Vec<(Endpoint, u64)>, NoEndpoint> {
    let key = service.key();
    let listed = Wanted::new(service, &key, port, family, source).and_then(|wanted| {
        let endpoints = state.endpoints(&key);
        let (rank, _) = wanted.best(endpoints)?;
        let of_rank = endpoints.iter().filter_map(|workload| {
            let candidate = wanted.candidate(workload).ok()?;
            let weight = candidate.weight;
            (candidate.rank == rank).then(|| (candidate.endpoint(workload), weight))
        });
        Ok(of_rank.collect())
    });
    listed.map_err(|reason| NoEndpoint {
        service: key,
        port,
        reason,
    })
}

/// What a connection needs of an endpoint.
struct Wanted<'a> {
    service: &'a Service,
    key: &'a ServiceKey,
    port: &'a ServicePort,
    family: Family,
    source: &'a Workload,
}

impl Candidate {
    fn endpoint(self, workload: &Arc<Workload>) -> Endpoint {
        Endpoint {
            workload: Arc::clone(workload),
            ip: self.ip,
            target_port: self.target_port,
        }
    }
}

/// An endpoint that can take the connection.
struct Candidate {
    ip: IpAddr,
    target_port: u16,
    weight: u64,
    /// How near it is; more is nearer.
    rank: usize,
}

impl<'a> Wanted<'a> {
    fn new(
        service: &'a Service,
        key: &'a ServiceKey,
        port: u16,
        family: Family,
        source: &'a Workload,
    ) -> Result<Self, Missing> {
        Ok(Self {
            service,
            key,
            port: service.port(port).ok_or(Missing::Port)?,
            family,
            source,
        })
    }

    fn draw<R: Rng + ?Sized>(
        &self,
        endpoints: &[Arc<Workload>],
        rng: &mut R,
        allowed: impl Fn(&Workload, u16) -> bool,
    ) -> Result<Endpoint, Missing> {
        // Twice over the endpoints instead of once into a list: no allocation, one random number.
        let (rank, all) = self.best(endpoints)?;
        let of_rank = |workload| {
            let candidate = self.candidate(workload).ok()?;
            (candidate.rank == rank).then_some(candidate)
        };
        let part: u64 = endpoints
            .iter()
            .filter_map(|workload| of_rank(workload).map(|candidate| (workload, candidate)))
            .filter(|(workload, candidate)| allowed(workload, candidate.target_port))
            .map(|(_, candidate)| candidate.weight)
            .fold(0, u64::saturating_add);
        let mut ticket = rng.random_range(0..if part == 0 { all } else { part });
        for workload in endpoints {
            let Some(candidate) = of_rank(workload) else {
                continue;
            };
            if part != 0 && !allowed(workload, candidate.target_port) {
                continue;
            }
            match ticket.checked_sub(candidate.weight) {
                Some(rest) => ticket = rest,
                None => return Ok(candidate.endpoint(workload)),
            }
        }
        // The weights of the first pass add up to more than any ticket.
        Err(Missing::Capacity)
    }

    /// The highest rank, and the sum of the weights of that rank; never zero.
    fn best(&self, endpoints: &[Arc<Workload>]) -> Result<(usize, u64), Missing> {
        let mut best: Option<(usize, u64)> = None;
        let mut missing = Missing::Workload;
        for workload in endpoints {
            match self.candidate(workload) {
                Err(reason) => missing = missing.max(reason),
                Ok(Candidate { rank, weight, .. }) => match &mut best {
                    Some((top, total)) if *top == rank => *total = total.saturating_add(weight),
                    Some((top, _)) if *top > rank => {}
                    _ => best = Some((rank, weight)),
                },
            }
        }
        best.ok_or(missing)
    }

    fn candidate(&self, workload: &Workload) -> Result<Candidate, Missing> {
        if workload.network != self.source.network {
            return Err(Missing::Network);
        }
        let ip = self.address(workload).ok_or(Missing::Address)?;
        let target_port = self.target_port(workload).ok_or(Missing::TargetPort)?;
        let balancing = &self.service.load_balancing;
        if workload.status == Health::Unhealthy
            && balancing.health_policy == HealthPolicy::OnlyHealthy
        {
            return Err(Missing::Health);
        }
        if workload.capacity == 0 {
            return Err(Missing::Capacity);
        }
        let rank = match balancing.mode {
            Mode::Any | Mode::Passthrough => 0,
            Mode::Failover => nearness(&balancing.routing_preference, self.source, workload).rank,
            Mode::Strict => {
                let near = nearness(&balancing.routing_preference, self.source, workload);
                if !near.in_everything {
                    return Err(Missing::Locality);
                }
                near.rank
            }
        };
        Ok(Candidate {
            ip,
            target_port,
            weight: u64::from(workload.capacity),
            rank,
        })
    }

    fn address(&self, workload: &Workload) -> Option<IpAddr> {
        let accepted = |ip: &IpAddr| self.service.ip_families.accepts(*ip);
        workload
            .address(self.family)
            .filter(accepted)
            .or_else(|| workload.addresses.iter().copied().find(accepted))
    }

    /// The endpoint knows its own port best; it is the only one that does if the port is named.
    fn target_port(&self, workload: &Workload) -> Option<u16> {
        workload
            .target_port(self.key, self.port.port)
            .or_else(|| Some(self.port.target_port).filter(|&port| port != 0))
    }
}

struct Nearness {
    rank: usize,
    in_everything: bool,
}

/// Counts how many scopes client and endpoint have in common before the first difference.
///
/// Where the network comes first, a match of it weighs more than all others together, and a
/// mismatch does not end the comparison: far networks are still told apart by region and zone.
fn nearness(preference: &[Scope], source: &Workload, workload: &Workload) -> Nearness {
    let (network_first, rest) = match preference {
        [Scope::Network, rest @ ..] => (true, rest),
        all => (false, all),
    };
    let common = rest
        .iter()
        .take_while(|scope| in_common(**scope, source, workload))
        .count();
    let near_network = network_first && in_common(Scope::Network, source, workload);
    Nearness {
        rank: common + if near_network { preference.len() } else { 0 },
        in_everything: common == rest.len() && (near_network || !network_first),
    }
}

fn in_common(scope: Scope, source: &Workload, workload: &Workload) -> bool {
    match scope {
        Scope::Region => source.locality.region == workload.locality.region,
        Scope::Zone => source.locality.zone == workload.locality.zone,
        Scope::Subzone => source.locality.subzone == workload.locality.subzone,
        Scope::Node => source.node == workload.node,
        Scope::Cluster => source.cluster_id == workload.cluster_id,
        Scope::Network => source.network == workload.network,
    }
}

impl Missing {
    /// A short and stable name, for metrics and logs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Port => "no_such_port",
            Self::Workload => "no_endpoint",
            Self::Network => "endpoint_in_other_network",
            Self::Address => "endpoint_without_address",
            Self::TargetPort => "endpoint_without_port",
            Self::Health => "endpoint_unhealthy",
            Self::Capacity => "endpoint_weighted_zero",
            Self::Locality => "endpoint_too_far",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "the service does not declare it",
            Self::Workload => "nothing runs behind it",
            Self::Network => "its endpoints are in other networks, which cannot be reached yet",
            Self::Address => "no endpoint has an address of the service's families",
            Self::TargetPort => "the port is named and no endpoint has a port of that name",
            Self::Health => "no endpoint is ready",
            Self::Capacity => "every endpoint is weighted zero",
            Self::Locality => "no endpoint is near enough for the service's strict locality",
        })
    }
}

#[cfg(test)]
mod tests;
