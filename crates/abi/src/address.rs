//! How an IP address is laid out in every map.

/// An IP address as the maps hold it: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Words are the kernel's own (`user_ip6`, `local_ip6`: network byte order in memory), so that the
/// kernel half compares without swapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct Addr {
    /// Four words, each in network byte order.
    pub words: [u32; 4],
}

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);

const MAPPED_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// An IPv4 address from its word in network byte order, as `user_ip4` and `local_ip4` hold it.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED_PREFIX, word],
        }
    }

    /// An IPv6 address from its words in network byte order. A mapped IPv4 address stays what it is,
    /// which is how [`Addr::v4`] writes it too.
    #[inline(always)]
    #[must_use]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_PREFIX
    }

    /// 127.0.0.0/8 and `::1`, and the unspecified addresses, which `connect` takes for loopback.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() {
            return d == 0 || u32::from_be(d) >> 24 == 127;
        }
        a == 0 && b == 0 && c == 0 && (d == 0 || u32::from_be(d) == 1)
    }

    /// `fe80::/10`. IPv4 link-local addresses are routed like any other and are not meant.
    #[inline(always)]
    #[must_use]
    pub const fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.words[0]) >> 22 == 0x3fa
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(ip) => Self::v4(u32::from_ne_bytes(ip.octets())),
            core::net::IpAddr::V6(ip) => {
                let o = ip.octets();
                let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
                Self::v6([word(0), word(4), word(8), word(12)])
            }
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        let [a, b, c, d] = addr.words;
        if addr.is_v4() {
            return Self::V4(u32::from_be(d).into());
        }
        let word = |w: u32| u128::from(u32::from_be(w));
        Self::V6((word(a) << 96 | word(b) << 64 | word(c) << 32 | word(d)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::Addr;
    use core::net::IpAddr;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_address_survives_the_round_trip() {
        for text in [
            "10.244.1.10",
            "127.0.0.1",
            "fd00:10:244:1::a",
            "::1",
            "fe80::1",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_equals_its_ipv4_form() {
        assert_eq!(addr("::ffff:10.0.0.1"), addr("10.0.0.1"));
    }

    #[test]
    fn loopback_and_link_local_are_told_apart() {
        for (text, loopback, link_local) in [
            ("127.0.0.1", true, false),
            ("127.255.0.9", true, false),
            ("0.0.0.0", true, false),
            ("::1", true, false),
            ("::", true, false),
            ("::ffff:127.0.0.1", true, false),
            ("10.0.0.1", false, false),
            ("169.254.169.254", false, false),
            ("fe80::1", false, true),
            ("febf::1", false, true),
            ("fec0::1", false, false),
            ("fd00::1", false, false),
            ("::2", false, false),
        ] {
            assert_eq!(
                (addr(text).is_loopback(), addr(text).is_v6_link_local()),
                (loopback, link_local),
                "{text}"
            );
        }
    }
}
