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
    use super::{Own, may_leave};
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
