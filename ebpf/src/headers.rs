//! What a packet carries behind its IP header, as far as the wall has to know: whether it is TCP or UDP, and
//! where its ports are.
//!
//! Bytes are read through a function that says nothing where the packet ends. What cannot be read to the
//! end is [`Transport::Hidden`]: it may be TCP.

/// What follows the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, whose header is at this offset.
    Tcp(usize),
    /// UDP, whose header is at this offset.
    Udp(usize),
    /// SCTP or DCCP: connections that nothing of the mesh carries.
    Uncarried,
    /// TCP whose ports are not here or whose destination is another than the header's, or perhaps TCP.
    Hidden,
    /// Anything else: ICMP, later fragments of UDP and so on.
    Other,
}

/// Reads four bytes of a packet at an offset; nothing where the packet ends before.
pub trait Bytes {
    /// At an offset that is known when the program is compiled, which is cheaper in the kernel.
    fn fixed(&self, at: usize) -> Option<[u8; 4]>;
    /// At any offset.
    fn four(&self, at: usize) -> Option<[u8; 4]>;
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const SCTP: u8 = 132;

/// How many extension headers of IPv6 are read; the kernel sends three at most.
const EXTENSIONS: usize = 6;
/// How many options of IPv4 are read.
const OPTIONS: usize = 20;
/// Size of an IPv4 header without options, and of an IPv6 header without extensions.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// What follows the IPv4 header at `start`.
#[inline(always)]
pub fn of_v4(bytes: &impl Bytes, start: usize) -> Transport {
    const FRAGMENT: u16 = 0x3fff;
    const LATER: u16 = 0x1fff;
    let (Some([first, ..]), Some([high, low, _, protocol])) =
        (bytes.fixed(start), bytes.fixed(start + 6))
    else {
        return Transport::Hidden;
    };
    match protocol {
        TCP => {}
        UDP if u16::from_be_bytes([high, low]) & LATER == 0 => {
            return Transport::Udp(start + usize::from(first & 0x0f) * 4);
        }
        SCTP | DCCP => return Transport::Uncarried,
        _ => return Transport::Other,
    }
    if u16::from_be_bytes([high, low]) & FRAGMENT != 0 {
        return Transport::Hidden;
    }
    let length = usize::from(first & 0x0f) * 4;
    if length == IPV4_HEADER {
        return Transport::Tcp(start + IPV4_HEADER);
    }
    if length < IPV4_HEADER || is_source_routed(bytes, start + IPV4_HEADER, start + length) {
        return Transport::Hidden;
    }
    Transport::Tcp(start + length)
}

/// Whether options of IPv4 send the packet elsewhere than its header says, or cannot be read.
#[inline(always)]
fn is_source_routed(bytes: &impl Bytes, start: usize, end: usize) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut at = start;
    for _ in 0..OPTIONS {
        if at >= end {
            return false;
        }
        match bytes.four(at) {
            Some([END, ..]) => return false,
            Some([NOTHING, ..]) => at += 1,
            None | Some([LOOSE | STRICT, ..] | [_, 0 | 1, ..]) => return true,
            Some([_, length, ..]) => at += usize::from(length),
        }
    }
    true
}

/// What follows the IPv6 header at `start`, behind its extension headers.
#[inline(always)]
pub fn of_v6(bytes: &impl Bytes, start: usize) -> Transport {
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    let Some([_, _, mut next, _]) = bytes.fixed(start + 4) else {
        return Transport::Hidden;
    };
    let mut at = start + IPV6_HEADER;
    // TCP behind a routing header is not for whom the header says, and in a fragment there is no more
    // than a part of it.
    let mut hides_tcp = false;
    for _ in 0..EXTENSIONS {
        match next {
            TCP if hides_tcp => return Transport::Hidden,
            TCP => return Transport::Tcp(at),
            UDP => return Transport::Udp(at),
            SCTP | DCCP => return Transport::Uncarried,
            _ if !is_extension(next) => return Transport::Other,
            _ => {}
        }
        let Some([following, length, high, low]) = bytes.four(at) else {
            return Transport::Hidden;
        };
        match next {
            FRAGMENT => {
                hides_tcp = true;
                let is_first = u16::from_be_bytes([high, low]) & 0xfff8 == 0;
                if !is_first && is_extension(following) {
                    return Transport::Hidden;
                }
                if !is_first && following == UDP {
                    return Transport::Other;
                }
                at += 8;
            }
            AUTHENTICATION => at += (usize::from(length) + 2) * 4,
            _ => {
                hides_tcp |= next == ROUTING;
                at += (usize::from(length) + 1) * 8;
            }
        }
        next = following;
    }
    Transport::Hidden
}

/// Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, shim6.
#[inline(always)]
const fn is_extension(header: u8) -> bool {
    matches!(header, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Transport, of_v4, of_v6};
    extern crate std;
    use std::{vec, vec::Vec};

    struct Packet(Vec<u8>);

    impl Bytes for Packet {
        fn fixed(&self, at: usize) -> Option<[u8; 4]> {
            self.four(at)
        }
        fn four(&self, at: usize) -> Option<[u8; 4]> {
            self.0.get(at..at + 4)?.try_into().ok()
        }
    }

    /// An IPv4 packet with a prefix of 14 bytes: protocol, fragment field, options, 20 bytes behind.
    fn v4(protocol: u8, fragment: u16, options: &[u8]) -> Packet {
        let mut packet = vec![0; 14 + 20];
        packet[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
        packet[20..22].copy_from_slice(&fragment.to_be_bytes());
        packet[23] = protocol;
        packet.extend(options);
        packet.extend([0; 20]);
        Packet(packet)
    }

    /// An IPv6 packet: each header as its number and its bytes, whose first one is the next number.
    fn v6(headers: &[(u8, &[u8])], last: u8) -> Packet {
        let mut packet = vec![0; 14 + 40];
        packet[14] = 0x60;
        packet[20] = headers.first().map_or(last, |(number, _)| *number);
        for (i, (_, bytes)) in headers.iter().enumerate() {
            let at = packet.len();
            packet.extend(*bytes);
            packet[at] = headers.get(i + 1).map_or(last, |(number, _)| *number);
        }
        packet.extend([0; 20]);
        Packet(packet)
    }

    #[test]
    fn ipv4_is_read() {
        for (packet, found) in [
            (v4(6, 0, &[]), Transport::Tcp(34)),
            // Do not fragment.
            (v4(6, 0x4000, &[]), Transport::Tcp(34)),
            (v4(17, 0, &[]), Transport::Udp(34)),
            (v4(17, 0x2000, &[148, 4, 0, 0]), Transport::Udp(38)),
            (v4(1, 0x2000, &[]), Transport::Other),
            (v4(17, 0x00b9, &[]), Transport::Other),
            (v4(132, 0, &[]), Transport::Uncarried),
            (v4(33, 0x2000, &[]), Transport::Uncarried),
            // The first and a later fragment.
            (v4(6, 0x2000, &[]), Transport::Hidden),
            (v4(6, 0x0001, &[]), Transport::Hidden),
            // Router alert, padding; record route.
            (v4(6, 0, &[148, 4, 0, 0]), Transport::Tcp(38)),
            (v4(6, 0, &[1, 1, 1, 0]), Transport::Tcp(38)),
            (v4(6, 0, &[1, 7, 3, 4]), Transport::Tcp(38)),
            // Source routing, alone and behind others.
            (v4(6, 0, &[131, 3, 4, 0]), Transport::Hidden),
            (v4(6, 0, &[1, 137, 3, 4]), Transport::Hidden),
            (v4(6, 0, &[148, 4, 0, 0, 131, 3, 4, 0]), Transport::Hidden),
            // An option without a length, and more options than there can be.
            (v4(6, 0, &[148, 0, 0, 0]), Transport::Hidden),
            (v4(6, 0, &[1; 40]), Transport::Hidden),
        ] {
            assert_eq!(of_v4(&packet, 14), found, "{:?}", &packet.0[14..]);
        }
        let mut short = v4(6, 0, &[]);
        short.0[14] = 0x44;
        assert_eq!(of_v4(&short, 14), Transport::Hidden);
        short.0.truncate(20);
        assert_eq!(of_v4(&short, 14), Transport::Hidden);
    }

    #[test]
    fn ipv6_is_read_behind_its_extension_headers() {
        const HOP: (u8, &[u8]) = (0, &[0; 8]);
        const OPTIONS: (u8, &[u8]) = (60, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        const ROUTING: (u8, &[u8]) = (43, &[0; 8]);
        const WHOLE: (u8, &[u8]) = (44, &[0; 8]);
        const LATER: (u8, &[u8]) = (44, &[0, 0, 0, 8, 0, 0, 0, 1]);
        const AUTHENTICATION: (u8, &[u8]) = (51, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for (headers, last, found) in [
            (&[][..], 6, Transport::Tcp(54)),
            (&[], 17, Transport::Udp(54)),
            (&[], 58, Transport::Other),
            (&[], 59, Transport::Other),
            (&[], 132, Transport::Uncarried),
            (&[HOP], 6, Transport::Tcp(62)),
            (&[HOP, OPTIONS], 6, Transport::Tcp(78)),
            (&[AUTHENTICATION], 6, Transport::Tcp(66)),
            (&[HOP, OPTIONS], 17, Transport::Udp(78)),
            (&[OPTIONS], 33, Transport::Uncarried),
            // Not for whom the header says.
            (&[ROUTING], 6, Transport::Hidden),
            (&[HOP, ROUTING, OPTIONS], 6, Transport::Hidden),
            (&[ROUTING], 17, Transport::Udp(62)),
            // Fragments.
            (&[WHOLE], 6, Transport::Hidden),
            (&[LATER], 6, Transport::Hidden),
            (&[WHOLE, OPTIONS], 6, Transport::Hidden),
            (&[LATER, OPTIONS], 17, Transport::Hidden),
            (&[LATER], 17, Transport::Other),
            (&[WHOLE], 17, Transport::Udp(62)),
            // Five are read, six are too many.
            (&[HOP, HOP, HOP, HOP, HOP], 6, Transport::Tcp(94)),
            (&[HOP, HOP, HOP, HOP, HOP, HOP], 17, Transport::Hidden),
        ] {
            let packet = v6(headers, last);
            assert_eq!(of_v6(&packet, 14), found, "{headers:?} {last}");
        }
        let mut short = v6(&[HOP], 6);
        short.0.truncate(56);
        assert_eq!(of_v6(&short, 14), Transport::Hidden);
    }
}
