//! Whether a packet that leaves a pod carries an address that the pod may use.

use abi::Addr;

/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6, host byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of ARP, host byte order.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherTypes of VLAN tags (802.1Q and 802.1ad), host byte order.
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// The bits of a tag that name its VLAN.
const VLAN_ID: u16 = 0x0fff;

/// What the guard asks of a packet before it looks at addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// IPv4, source to be checked.
    V4,
    /// IPv6, source to be checked.
    V6,
    /// ARP; it carries no IP source.
    Arp,
    /// Anything else, the second of two VLAN tags included.
    Other,
}

/// Sorts a packet by its EtherType.
#[inline(always)]
#[must_use]
pub const fn packet(ethertype: u16) -> Packet {
    match ethertype {
        ETHERTYPE_IPV4 => Packet::V4,
        ETHERTYPE_IPV6 => Packet::V6,
        ETHERTYPE_ARP => Packet::Arp,
        _ => Packet::Other,
    }
}

/// A frame before its IP header: the EtherType behind the first VLAN tag, and that tag if there is one.
/// The kernel takes the first tag off before it asks anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// EtherType, host byte order.
    pub ethertype: u16,
    /// The control word of the tag.
    pub tag: Option<u16>,
}

impl Frame {
    /// Whether it may leave a pod. A captured pod has IPv4, IPv6 and ARP, and no tags. What another pod
    /// sends is the cluster's business, but for two tags of which the first names no VLAN: the node takes
    /// both off, and what was behind them for an untagged packet.
    #[inline(always)]
    #[must_use]
    pub fn may_leave(self, captured: impl FnOnce() -> bool) -> bool {
        let other = matches!(packet(self.ethertype), Packet::Other);
        match self.tag {
            None if !other => true,
            Some(tag) if tag & VLAN_ID == 0 && ETHERTYPE_VLAN.contains(&self.ethertype) => false,
            _ => !captured(),
        }
    }
}

/// The addresses of the pod that almost every packet carries, known when the program is loaded; zero
/// where there is none. A pod may always use them, so no map is asked.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// IPv4, network order.
    pub v4: u32,
    /// IPv6, network order.
    pub v6: [u32; 4],
}

impl Own {
    /// Whether it is the pod's IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self, word: u32) -> bool {
        word == self.v4 && word != 0
    }

    /// Whether it is the pod's IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v6(&self, words: &[u32; 4]) -> bool {
        let [a, b, c, d] = self.v6;
        let known = a | b | c | d != 0;
        known && words[0] == a && words[1] == b && words[2] == c && words[3] == d
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
    use super::{Frame, Own, may_leave};
    use abi::Addr;
    use core::net::IpAddr;

    #[test]
    fn an_address_that_is_not_known_is_nobodys() {
        let (v4, v6) = (0x0a01_f40a, [0xfd00, 0, 0, 10]);
        let own = Own { v4, v6 };
        assert!(own.is_v4(v4) && own.is_v6(&v6));
        assert!(!own.is_v4(v4 + 1) && !own.is_v6(&[0xfd00, 0, 0, 11]));
        let none = Own { v4: 0, v6: [0; 4] };
        assert!(!none.is_v4(0) && !none.is_v6(&[0; 4]));
    }

    #[test]
    fn only_untagged_ipv4_ipv6_and_arp_leave_a_captured_pod() {
        for (ethertype, tag, captured, other) in [
            (0x0800, None, true, true),
            (0x86dd, None, true, true),
            (0x0806, None, true, true),
            (0x0800, Some(0), false, true),
            (0x86dd, Some(7), false, true),
            (0x0806, Some(0x2000), false, true),
            // Two tags; the node ignores the first one if it names no VLAN.
            (0x8100, Some(0), false, false),
            (0x88a8, Some(0xe000), false, false),
            (0x8100, Some(7), false, true),
            // MPLS, PPPoE, LLC.
            (0x8847, None, false, true),
            (0x8864, None, false, true),
            (0x0004, None, false, true),
        ] {
            let frame = Frame { ethertype, tag };
            assert_eq!(frame.may_leave(|| true), captured, "{frame:x?}");
            assert_eq!(frame.may_leave(|| false), other, "{frame:x?}");
        }
    }

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
