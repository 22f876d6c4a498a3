//! The headers of a captured frame: who speaks to whom, with which flags, and the payload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 packet, its ports if it is TCP or UDP, and what follows its last header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The IP source address.
    pub source: IpAddr,
    /// The IP destination address.
    pub destination: IpAddr,
    /// The IP protocol: 6 is TCP, 17 UDP, 1 and 58 ICMP.
    pub protocol: u8,
    /// The source port; 0 where the protocol has none.
    pub source_port: u16,
    /// The destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// The TCP flags byte (RFC 9293 section 3.1); 0 for other protocols.
    pub flags: u8,
    /// The bytes after the TCP or UDP header, or after the IP header.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads an Ethernet frame; `None` when it holds no whole IP header.
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        match frame.get(12..14)? {
            [0x08, 0x00] => ipv4(frame.get(14..)?),
            [0x86, 0xdd] => ipv6(frame.get(14..)?),
            _ => None,
        }
    }

    /// Whether it opens a connection: SYN without ACK.
    #[must_use]
    pub fn is_syn(&self) -> bool {
        self.protocol == TCP && self.flags & 0x12 == 0x02
    }

    /// Whether it resets a connection.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.protocol == TCP && self.flags & 0x04 != 0
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16_at(packet, 2)?);
    // Offloaded segments above 64 KiB carry 0; Ethernet pads short ones.
    let end = if total == 0 {
        packet.len()
    } else {
        total.min(packet.len())
    };
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    transport(
        Ipv4Addr::from(source).into(),
        Ipv4Addr::from(destination).into(),
        *packet.get(9)?,
        packet.get(header..end)?,
    )
}

fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(u16_at(packet, 4)?);
    let end = if length == 0 {
        packet.len()
    } else {
        (40 + length).min(packet.len())
    };
    let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    let mut protocol = *packet.get(6)?;
    let mut rest = packet.get(40..end)?;
    // Hop-by-hop, routing and destination options (RFC 8200 section 4).
    while matches!(protocol, 0 | 43 | 60) {
        protocol = *rest.first()?;
        rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
    }
    transport(
        Ipv6Addr::from(source).into(),
        Ipv6Addr::from(destination).into(),
        protocol,
        rest,
    )
}

fn transport(source: IpAddr, destination: IpAddr, protocol: u8, rest: &[u8]) -> Option<Packet<'_>> {
    let header = match protocol {
        TCP => usize::from(rest.get(12)? >> 4) * 4,
        UDP => 8,
        _ => 0,
    };
    let port = |at| {
        if header == 0 {
            Some(0)
        } else {
            u16_at(rest, at)
        }
    };
    Some(Packet {
        source,
        destination,
        protocol,
        source_port: port(0)?,
        destination_port: port(2)?,
        flags: if protocol == TCP { *rest.get(13)? } else { 0 },
        payload: rest.get(header..)?,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

const TCP: u8 = 6;
const UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ethertype: u16, parts: &[&[u8]]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend(parts.concat());
        frame
    }

    #[test]
    fn a_padded_ipv4_syn_is_read_without_its_padding() {
        let ip = [
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        let tcp = [
            0x1f, 0x90, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
        ];
        let bytes = frame(0x0800, &[&ip, &tcp, b"padding"]);
        let packet = Packet::parse(&bytes).unwrap();
        assert!(packet.is_syn());
        assert_eq!((packet.source_port, packet.destination_port), (8080, 80));
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert!(packet.payload.is_empty());
    }

    #[test]
    fn an_ipv6_datagram_behind_an_extension_header_is_read() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 18, 60, 64];
        ip.extend([0; 15]);
        ip.push(1);
        ip.extend([0; 15]);
        ip.push(2);
        let options = [17, 0, 1, 4, 0, 0, 0, 0];
        let udp = [0, 53, 0, 54, 0, 10, 0, 0];
        let bytes = frame(0x86dd, &[&ip, &options, &udp, b"hi"]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (packet.protocol, packet.source_port, packet.payload),
            (17, 53, &b"hi"[..])
        );
    }

    #[test]
    fn truncated_and_foreign_frames_are_nothing() {
        for bytes in [
            &[][..],
            &[0; 14],
            &frame(0x0806, &[&[0; 28]]),
            &frame(0x0800, &[&[0x4f; 3]]),
        ] {
            assert_eq!(Packet::parse(bytes), None);
        }
    }
}
