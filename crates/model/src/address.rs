//! Where things are: addresses in networks, and the addresses of gateways.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::service::ServiceKey;

/// An address, or a range of addresses, in a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkAddress {
    /// The network; empty for the mesh's only one.
    pub network: Arc<str>,
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix when this is a range, in bits.
    pub prefix: Option<u8>,
}

/// How a gateway or a waypoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayAddress {
    /// By name or by address.
    pub destination: GatewayDestination,
    /// The port that speaks HBONE; 0 if it speaks none.
    pub hbone_port: u16,
}

/// What a [`GatewayAddress`] points to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GatewayDestination {
    /// A service, or a workload that has this hostname.
    Hostname(ServiceKey),
    /// An address.
    Address(NetworkAddress),
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether another host can have the address: whoever dials one of loopback reaches itself, and a proxy that is made to do so
/// reaches what listens to its own node alone.
#[must_use]
pub fn is_of_another(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

impl NetworkAddress {
    /// A single address.
    pub fn single(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self {
            network: network.into(),
            ip,
            prefix: None,
        }
    }

    /// The range, if it is one: a prefix as long as the address is a single address.
    pub fn range(&self) -> Option<IpNet> {
        let whole = if self.ip.is_ipv4() { 32 } else { 128 };
        self.prefix
            .filter(|&length| length != whole)
            .and_then(|length| IpNet::new(self.ip, length).ok())
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)?;
        match self.prefix {
            Some(length) => write!(f, "/{length}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Hostname(key) => write!(f, "{key}"),
            GatewayDestination::Address(address) => write!(f, "{address}"),
        }
    }
}

impl Family {
    /// The family of an address; an IPv4-mapped IPv6 address is IPv4.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_prefix_is_a_single_address() {
        let address = |ip: &str, prefix| NetworkAddress {
            network: "".into(),
            ip: ip.parse().unwrap(),
            prefix,
        };
        assert_eq!(address("10.0.0.1", None).range(), None);
        assert_eq!(address("10.0.0.1", Some(32)).range(), None);
        assert_eq!(address("fd00::1", Some(128)).range(), None);
        assert!(address("fd00::1", Some(32)).range().is_some());
        assert_eq!(address("10.0.0.1", Some(33)).range(), None);
    }

    #[test]
    fn nobody_else_has_loopback() {
        for (ip, is_of) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("169.254.169.254", true),
            ("127.0.0.1", false),
            ("127.8.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("::", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_of_another(ip.parse().unwrap()), is_of, "{ip}");
        }
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        assert_eq!(Family::of("::ffff:10.0.0.1".parse().unwrap()), Family::V4);
        assert_eq!(Family::of("fd00::1".parse().unwrap()), Family::V6);
    }
}
