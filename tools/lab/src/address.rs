//! The address plan: the same in every lab, since namespaces keep labs apart.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | node `n` on the link | 192.168.77.n/24 | fd00:77::n/64 |
//! | pods of node `n` | 10.244.n.0/24 | fd00:10:244:n::/64 |
//! | gateway of these pods | 10.244.n.1 | fd00:10:244:n::1 |
//! | services | 10.96.0.0/16 | fd00:10:96::/112 |

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most nodes that one lab can have.
pub const MAX_NODES: u8 = 9;

/// The service range of IPv4.
pub(crate) const SERVICES_V4: &str = "10.96.0.0/16";
/// The service range of IPv6.
pub(crate) const SERVICES_V6: &str = "fd00:10:96::/112";

/// The IPv4 address of a node on the link between the nodes.
pub(crate) fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, node)
}

/// The IPv6 address of a node on the link between the nodes.
pub(crate) fn node_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, node.into())
}

/// The range of a node's pods, IPv4.
pub(crate) fn pods_v4(node: u8) -> String {
    format!("10.244.{node}.0/24")
}

/// The range of a node's pods, IPv6.
pub(crate) fn pods_v6(node: u8) -> String {
    format!("fd00:10:244:{node}::/64")
}

/// Addresses of one pod, IPv4 first. `host` is 1 for the pods' gateway.
pub(crate) fn pod(node: u8, host: u8) -> [IpAddr; 2] {
    // Written alike in both families, so that a person sees which pod it is: .12 and ::12.
    let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
    [
        Ipv4Addr::new(10, 244, node, host).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, digits).into(),
    ]
}

/// The first pair of addresses of a node's range of which neither is used.
pub(crate) fn free_pod_ips(node: u8, used: &BTreeSet<IpAddr>) -> [IpAddr; 2] {
    (10..=254)
        .map(|host| pod(node, host))
        .find(|ips| !ips.iter().any(|ip| used.contains(ip)))
        .unwrap_or_else(|| pod(node, 255))
}

/// The first address that is not used of those for services that ask for none: the upper half of the range.
pub(crate) fn free_service_ip(is_used: impl Fn(&str) -> bool) -> Option<String> {
    let all = (128..=255u8).flat_map(|third| (1..=254u8).map(move |last| (third, last)));
    all.map(|(third, last)| Ipv4Addr::new(10, 96, third, last).to_string())
        .find(|ip| !is_used(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_pod_look_alike() {
        let text = |host| pod(2, host).map(|ip| ip.to_string());
        assert_eq!(text(10), ["10.244.2.10", "fd00:10:244:2::10"]);
        assert_eq!(text(254), ["10.244.2.254", "fd00:10:244:2::254"]);
    }
}
