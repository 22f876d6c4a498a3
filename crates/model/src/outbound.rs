//! Where a connection that a captured pod opens goes, and how.
//!
//! It decides on names and addresses only. Nothing here falls back from encrypted to plain, and a
//! waypoint or an empty service is never skipped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use thiserror::Error;

use crate::address::{Family, GatewayAddress, GatewayDestination};
use crate::balance::{self, Endpoint, NoEndpoint};
use crate::identity::Identity;
use crate::reason::Reason;
use crate::service::{Mode, Service};
use crate::state::{MeshState, Tombstone};
use crate::workload::{TunnelProtocol, Workload, WorkloadUid};

mod waypoint;

pub use waypoint::{is_waypoint_for, waypoint_of_service};

/// Where a connection goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// How.
    pub kind: RouteKind,
    /// What runs there, if that is known.
    pub destination: Option<Arc<Workload>>,
    /// The service that the client asked for, if it asked for one.
    pub service: Option<Arc<Service>>,
    /// The waypoint whose pod takes it, if it goes through one.
    pub waypoint: Option<GatewayAddress>,
}

/// How a connection goes to where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Encrypted.
    Hbone {
        /// Where the tunnel is.
        dial: SocketAddr,
        /// Where the connection goes at the end of the tunnel.
        authority: SocketAddr,
        /// Who may be at the end of the tunnel; one of them must be.
        expected: Vec<Identity>,
    },
    /// As it is, to something that is not in the mesh.
    Plain {
        /// Where to.
        dial: SocketAddr,
    },
    /// As it is, back to the workload that it comes from.
    ToSelf {
        /// Where to.
        dial: SocketAddr,
    },
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    /// Nothing takes it.
    #[error(transparent)]
    NoEndpoint(#[from] NoEndpoint),
    /// It has to go through a waypoint that has no ready pod.
    #[error("{destination} requires waypoint {waypoint}, which has no ready pod in the mesh")]
    Waypoint {
        /// What was asked for.
        destination: String,
        /// What it has to go through.
        waypoint: GatewayAddress,
    },
    /// It would end in a proxy of the mesh as if that were the application.
    #[error("port {port} of workload {workload} belongs to the mesh and is not for applications")]
    ReservedPort {
        /// The port.
        port: u16,
        /// Whose port.
        workload: WorkloadUid,
    },
    /// Nobody in the mesh knows it, and the client may connect to nobody else.
    #[error(
        "{destination} is nobody that the mesh knows, and egress of workload {workload} is closed (keelson.io/egress)"
    )]
    EgressClosed {
        /// What was asked for.
        destination: SocketAddr,
        /// Who asked.
        workload: WorkloadUid,
    },
    /// Its address was a captured workload's, and nobody has said that it is free.
    #[error(
        "{ip} was the address of captured workload {workload}, and its node has not let go of it"
    )]
    Tombstone {
        /// The address.
        ip: IpAddr,
        /// Whose address it was, as `namespace/name`.
        workload: String,
    },
}

/// The port of an agent's listener for what pods open.
pub const OUTBOUND_PORT: u16 = 15001;
/// The port of an agent's listener for what reaches pods in plain.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;

/// The ports on which a waypoint takes connections that the kernel leads to it from pods of its node, one for each service
/// and port. Nobody else is let through to them. They lie above those that Linux gives to clients.
pub const WAYPOINT_PORTS: std::ops::RangeInclusive<u16> = 61_440..=65_535;

/// Whether a port is one of [`WAYPOINT_PORTS`].
#[must_use]
pub fn is_waypoint_port(port: u16) -> bool {
    WAYPOINT_PORTS.contains(&port)
}

/// Decides where a connection from `source` to `destination`, as the application sees it, goes.
///
/// The order is that of Istio's ambient mode: a service by its address goes to its waypoint or to
/// one of its endpoints; a workload by its address goes to its waypoint or to the workload; what
/// is not known goes on as it is, unless the client's egress is closed. Of a service's range and a workload's address in it, the
/// address wins. An address that is or was a captured workload's is never dialled in plain,
/// whatever else leads there. Unlike in Istio, an endpoint that requires a waypoint is reached through it
/// also where the service has none: its node lets in nobody else.
///
/// # Errors
/// The connection has to be refused.
pub fn route<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    destination: SocketAddr,
    rng: &mut R,
) -> Result<Route, RouteError> {
    route_among(state, source, destination, rng, |_, _| true)
}

/// Like [`route`], to those endpoints of a service that `allowed` accepts; see
/// [`balance::pick_among`].
///
/// # Errors
/// The connection has to be refused.
pub fn route_among<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    destination: SocketAddr,
    rng: &mut R,
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
) -> Result<Route, RouteError> {
    let ip = destination.ip().to_canonical();
    let destination = SocketAddr::new(ip, destination.port());
    let network = &source.network;
    let client = Some(&*source.namespace);

    if let Some(service) = state.service_by_exact_vip(network, ip, client) {
        return to_service(state, source, service, destination, rng, allowed);
    }
    if let Some(tombstone) = state.tombstone_by_ip(network, ip) {
        return Err(RouteError::of(tombstone, ip));
    }
    if let Some(workload) = state.workload_by_ip(network, ip) {
        return to_address(state, source, workload, destination, rng, allowed);
    }
    if let Some(service) = state.service_by_range(network, ip, client) {
        return to_service(state, source, service, destination, rng, allowed);
    }
    if source.egress_closed && state.workload_by_ip(network, ip).is_none() {
        return Err(RouteError::EgressClosed {
            destination,
            workload: source.uid.clone(),
        });
    }
    plain(state, source, destination, None, None)
}

/// For how long a client that dials `destination` keeps its endpoint after its last connection; not
/// at all where no service, or one without session affinity, takes the connection.
pub fn session_timeout(
    state: &MeshState,
    source: &Workload,
    destination: SocketAddr,
) -> Option<Duration> {
    let ip = destination.ip().to_canonical();
    state
        .service_by_exact_vip(&source.network, ip, Some(&source.namespace))
        .and_then(|service| service.session_timeout)
}

fn to_service<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    service: &Arc<Service>,
    destination: SocketAddr,
    rng: &mut R,
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
) -> Result<Route, RouteError> {
    if let Some(gateway) = waypoint::of_service(source, service, rng) {
        let what = || format!("service {}", service.key());
        let to = (destination, what);
        return waypoint::through(state, source, gateway, to, Some(service), rng, allowed);
    }
    if service.load_balancing.mode == Mode::Passthrough {
        return plain(state, source, destination, None, Some(service));
    }
    let family = Family::of(destination.ip());
    let port = destination.port();
    let endpoint = balance::pick_among(state, service, port, family, source, rng, allowed)?;
    if let Some(gateway) = waypoint::of_workload(source, &endpoint.workload) {
        let what = || format!("workload {}", endpoint.workload.uid);
        let to = (SocketAddr::new(endpoint.ip, endpoint.target_port), what);
        return waypoint::through(state, source, gateway, to, Some(service), rng, |_, _| true);
    }
    to_endpoint(state, source, endpoint, Some(service))
}

fn to_address<R: Rng + ?Sized>(
    state: &MeshState,
    source: &Workload,
    workload: &Arc<Workload>,
    destination: SocketAddr,
    rng: &mut R,
    allowed: impl Fn(&Workload, SocketAddr) -> bool,
) -> Result<Route, RouteError> {
    if let Some(gateway) = waypoint::of_workload(source, workload) {
        let what = || format!("workload {}", workload.uid);
        let to = (destination, what);
        return waypoint::through(state, source, gateway, to, None, rng, allowed);
    }
    let endpoint = Endpoint {
        workload: Arc::clone(workload),
        ip: destination.ip(),
        target_port: destination.port(),
    };
    to_endpoint(state, source, endpoint, None)
}

fn to_endpoint(
    state: &MeshState,
    source: &Workload,
    endpoint: Endpoint,
    service: Option<&Arc<Service>>,
) -> Result<Route, RouteError> {
    let Endpoint {
        workload,
        ip,
        target_port,
    } = endpoint;
    let target = SocketAddr::new(ip, target_port);
    let to_self = workload.uid == source.uid;
    let in_mesh = to_self || workload.tunnel == TunnelProtocol::Hbone;
    if in_mesh && is_reserved(target_port) {
        return Err(RouteError::ReservedPort {
            port: target_port,
            workload: workload.uid.clone(),
        });
    }
    let kind = match workload.tunnel {
        _ if to_self => RouteKind::ToSelf { dial: target },
        TunnelProtocol::None => return plain(state, source, target, Some(workload), service),
        TunnelProtocol::Hbone => RouteKind::Hbone {
            dial: SocketAddr::new(ip, HBONE_PORT),
            authority: target,
            expected: expected(&workload, service),
        },
    };
    Ok(Route {
        kind,
        destination: Some(workload),
        service: service.cloned(),
        waypoint: None,
    })
}

/// As it is, unless the address is a captured workload's all the same: an endpoint that was written
/// by hand, or a service that passes everything through, may name any address.
fn plain(
    state: &MeshState,
    source: &Workload,
    dial: SocketAddr,
    destination: Option<Arc<Workload>>,
    service: Option<&Arc<Service>>,
) -> Result<Route, RouteError> {
    let (network, ip) = (&source.network, dial.ip());
    if let Some(tombstone) = state.tombstone_by_ip(network, ip) {
        return Err(RouteError::of(tombstone, ip));
    }
    let owner = state.workload_by_ip(network, ip);
    if let Some(owner) = owner.filter(|owner| owner.tunnel == TunnelProtocol::Hbone) {
        let endpoint = Endpoint {
            workload: Arc::clone(owner),
            ip,
            target_port: dial.port(),
        };
        return to_endpoint(state, source, endpoint, service);
    }
    Ok(Route {
        kind: RouteKind::Plain { dial },
        destination,
        service: service.cloned(),
        waypoint: None,
    })
}

fn expected(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<Identity> {
    let others = service.map_or(&[][..], |service| &service.subject_alt_names);
    let mut expected = vec![workload.identity()];
    for other in others {
        if !expected.contains(other) {
            expected.push(other.clone());
        }
    }
    expected
}

/// Whether a workload is the gateway at this address: a waypoint's own connections to what is
/// behind it do not go through it again.
pub(crate) fn is_at(workload: &Workload, gateway: &GatewayAddress) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => {
            workload.services.contains_key(key)
                || (workload.hostname == key.hostname && workload.namespace == key.namespace)
        }
        GatewayDestination::Address(address) => {
            let same = |ip: &IpAddr| ip.to_canonical() == address.ip.to_canonical();
            workload.network == address.network && workload.addresses.iter().any(same)
        }
    }
}

/// Connecting to these as if they were the application's ends in a proxy that asks itself.
fn is_reserved(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | HBONE_PORT)
}

impl RouteError {
    fn of(tombstone: &Tombstone, ip: IpAddr) -> Self {
        Self::Tombstone {
            ip,
            workload: format!("{}/{}", tombstone.namespace, tombstone.name),
        }
    }

    /// The word for metrics and logs.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoEndpoint(none) => none.reason.reason(),
            Self::Waypoint { .. } => Reason::WaypointUnreachable,
            Self::ReservedPort { .. } => Reason::ReservedPort,
            Self::EgressClosed { .. } => Reason::EgressClosed,
            Self::Tombstone { .. } => Reason::AddressTombstone,
        }
    }
}

#[cfg(test)]
mod tests;
