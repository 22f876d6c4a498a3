//! Whether a packet that leaves a pod carries an address that the pod may use.

use abi::Addr;

/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6, host byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What the guard asks of a packet before it looks at addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// IPv4, source to be checked.
    V4,
    /// IPv6, source to be checked.
    V6,
    /// Anything else (ARP); it carries no IP source.
    Other,
}

/// Sorts a packet by its EtherType.
#[inline(always)]
#[must_use]
pub const fn packet(ethertype: u16) -> Packet {
    match ethertype {
        ETHERTYPE_IPV4 => Packet::V4,
        ETHERTYPE_IPV6 => Packet::V6,
        _ => Packet::Other,
    }
}

/// Whether a source may leave the pod: its own addresses, and what neighbour discovery and DHCP need
/// (IPv6 link-local and the unspecified addresses). None of these is an identity for anybody.
#[inline(always)]
pub fn may_leave(source: &Addr, owned: impl FnOnce(&Addr) -> bool) -> bool {
    let unspecified = source.words[3] == 0 && source.is_loopback();
    unspecified || source.is_v6_link_local() || owned(source)
}

#[cfg(test)]
mod tests {
    use super::may_leave;
    use abi::Addr;
    use core::net::IpAddr;

    #[test]
    fn only_the_pods_own_addresses_leave_it() {
        let owned = |addr: &Addr| IpAddr::from(*addr) == "10.244.1.10".parse::<IpAddr>().unwrap();
        for (source, leaves) in [
            ("10.244.1.10", true),
            ("10.244.1.11", false),
            ("127.0.0.1", false),
            ("fd00::1", false),
            ("::1", false),
            ("0.0.0.0", true),
            ("::", true),
            ("fe80::1", true),
        ] {
            let addr = Addr::from(source.parse::<IpAddr>().unwrap());
            assert_eq!(may_leave(&addr, owned), leaves, "{source}");
        }
    }
}
