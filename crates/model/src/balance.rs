//! Which endpoint of a service a connection goes to.
//!
//! Endpoints that cannot take it are left out, those nearest by the service's routing preference
//! remain, and one of these is drawn by weight. Whether the connection may be made, and how, is
//! decided elsewhere.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::{Rng, RngExt};
use thiserror::Error;

use crate::address::Family;
use crate::reason::Reason;
use crate::service::{HealthPolicy, Mode, Scope, Service, ServiceKey, ServicePort};
use crate::state::MeshState;
use crate::workload::{Health, PortMapping, Workload};

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
    /// None serves the port.
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
/// `family` is the family that the client asked for. Where no endpoint serves that, one is used by
/// the other family, if the service may be reached by that.
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

/// Like [`pick`], among those endpoints (workload, address and port) that `allowed` accepts; among all if
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
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
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
        let mut listed = Vec::new();
        for workload in endpoints {
            wanted.each_of_rank(workload, rank, |candidate| {
                listed.push((candidate.endpoint(workload), candidate.weight));
            });
        }
        Ok(listed)
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

/// An endpoint that can take the connection.
#[derive(Clone, Copy)]
struct Candidate {
    ip: IpAddr,
    target_port: u16,
    weight: u64,
    rank: Rank,
}

/// How well an endpoint suits; more is better. One of the family that the client asked for suits
/// better than any other, as without a mesh, where only those are reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    same_family: bool,
    nearness: usize,
}

impl Candidate {
    fn endpoint(self, workload: &Arc<Workload>) -> Endpoint {
        Endpoint {
            workload: Arc::clone(workload),
            ip: self.ip,
            target_port: self.target_port,
        }
    }

    fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.target_port)
    }
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
        allowed: impl Fn(&Workload, SocketAddr) -> bool,
    ) -> Result<Endpoint, Missing> {
        // Twice over the endpoints instead of once into a list: no allocation, one random number.
        let (rank, all) = self.best(endpoints)?;
        let mut part = 0_u64;
        for workload in endpoints {
            self.each_of_rank(workload, rank, |candidate| {
                if allowed(workload, candidate.address()) {
                    part = part.saturating_add(candidate.weight);
                }
            });
        }
        let mut ticket = rng.random_range(0..if part == 0 { all } else { part });
        let mut drawn = None;
        for workload in endpoints {
            self.each_of_rank(workload, rank, |candidate| {
                if drawn.is_some() || (part != 0 && !allowed(workload, candidate.address())) {
                    return;
                }
                match ticket.checked_sub(candidate.weight) {
                    Some(rest) => ticket = rest,
                    None => drawn = Some(candidate.endpoint(workload)),
                }
            });
            if drawn.is_some() {
                break;
            }
        }
        // The weights of the first pass add up to more than any ticket.
        drawn.ok_or(Missing::Capacity)
    }

    /// The highest rank, and the sum of the weights of that rank; never zero.
    fn best(&self, endpoints: &[Arc<Workload>]) -> Result<(Rank, u64), Missing> {
        let mut best: Option<(Rank, u64)> = None;
        let mut missing = Missing::Workload;
        for workload in endpoints {
            self.each(workload, |candidate| match candidate {
                Err(reason) => missing = missing.max(reason),
                Ok(Candidate { rank, weight, .. }) => match &mut best {
                    Some((top, total)) if *top == rank => *total = total.saturating_add(weight),
                    Some((top, _)) if *top > rank => {}
                    _ => best = Some((rank, weight)),
                },
            });
        }
        best.ok_or(missing)
    }

    fn each_of_rank(&self, workload: &Workload, rank: Rank, mut take: impl FnMut(Candidate)) {
        self.each(workload, |candidate| {
            if let Ok(candidate) = candidate
                && candidate.rank == rank
            {
                take(candidate);
            }
        });
    }

    /// Every way in which a workload serves the port, or what it lacks.
    fn each(&self, workload: &Workload, mut take: impl FnMut(Result<Candidate, Missing>)) {
        let mappings = workload.mappings(self.key, self.port.port);
        let serves = |family| {
            mappings
                .clone()
                .any(|mapping| mapping.family.is_none_or(|served| served == family))
        };
        // What is said of the family that was asked for counts; of another one only if nothing is.
        let said = serves(self.family);
        let mut any = false;
        for mapping in mappings.clone() {
            any = true;
            if !said || mapping.family.is_none_or(|family| family == self.family) {
                take(self.candidate(workload, mapping));
            }
        }
        if !any {
            let declared = PortMapping::new(self.port.port, self.port.target_port);
            take(self.candidate(workload, &declared));
        }
    }

    fn candidate(&self, workload: &Workload, mapping: &PortMapping) -> Result<Candidate, Missing> {
        if workload.network != self.source.network {
            return Err(Missing::Network);
        }
        let ip = self
            .address(workload, mapping.family)
            .ok_or(Missing::Address)?;
        if mapping.target_port == 0 {
            return Err(Missing::TargetPort);
        }
        let balancing = &self.service.load_balancing;
        if mapping.status.unwrap_or(workload.status) == Health::Unhealthy
            && balancing.health_policy == HealthPolicy::OnlyHealthy
        {
            return Err(Missing::Health);
        }
        if workload.capacity == 0 {
            return Err(Missing::Capacity);
        }
        let nearness = match balancing.mode {
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
            target_port: mapping.target_port,
            weight: u64::from(workload.capacity),
            rank: Rank {
                same_family: Family::of(ip) == self.family,
                nearness,
            },
        })
    }

    /// The address to use: of the family that was asked for, or else of another one, if the
    /// service may be reached by that and the port is served there.
    fn address(&self, workload: &Workload, served: Option<Family>) -> Option<IpAddr> {
        let accepted = |ip: &IpAddr| {
            self.service.ip_families.accepts(*ip)
                && served.is_none_or(|family| family == Family::of(*ip))
        };
        workload
            .address(self.family)
            .filter(accepted)
            .or_else(|| workload.addresses.iter().copied().find(accepted))
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
    /// The word for metrics and logs.
    pub fn reason(self) -> Reason {
        match self {
            Self::Port => Reason::NoSuchPort,
            Self::Workload => Reason::NoEndpoint,
            Self::Network => Reason::EndpointInOtherNetwork,
            Self::Address => Reason::EndpointWithoutAddress,
            Self::TargetPort => Reason::EndpointWithoutPort,
            Self::Health => Reason::EndpointUnhealthy,
            Self::Capacity => Reason::EndpointWeightedZero,
            Self::Locality => Reason::EndpointTooFar,
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
            Self::TargetPort => "no endpoint serves the port",
            Self::Health => "no endpoint is ready",
            Self::Capacity => "every endpoint is weighted zero",
            Self::Locality => "no endpoint is near enough for the service's strict locality",
        })
    }
}

#[cfg(test)]
mod tests;
