//! A service that a waypoint serves.

use std::net::IpAddr;

use model::ServiceKey;
use model::service::ServicePort;

/// A service: what can be dialled, and what is spoken there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub key: ServiceKey,
    /// Its addresses; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Clients may dial it here: it is attached to this waypoint. Otherwise it is only a backend.
    pub attached: bool,
}
