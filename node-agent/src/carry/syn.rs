//! A SYN that waits with the agent, and the packets that answer it.
//!
//! The kernel half shows its headers. Data that came with it is left out of what is put back, since no listener of ours
//! takes any: its client sends it again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use abi::{Addr, Flow, HeldKey};

use crate::host::canonical;

/// Of the headers of an event: that of `abi::Syn`, and Ethernet's.
const EVENT: usize = size_of::<abi::Syn>();
const ETHERNET: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;
const HOPS: u8 = 64;
const RST_ACK: u8 = 0x14;
/// What ICMP quotes behind the IP header at least, which is what the kernel reads.
const QUOTED: usize = 8;

/// A SYN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Syn {
    /// [`abi::Pod::id`] of the client.
    pub(crate) pod: u32,
    /// Its mark.
    pub(crate) mark: u32,
    /// Who opens the connection.
    pub(crate) client: SocketAddr,
    /// To whom.
    pub(crate) target: SocketAddr,
    /// Its sequence number.
    pub(crate) isn: u32,
    /// [`abi::Held::generation`].
    pub(crate) generation: u32,
    /// From the IP header to the end of the TCP header.
    headers: Vec<u8>,
    /// Where the TCP header begins.
    tcp: usize,
}

/// What a client is told who cannot have its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// `ECONNREFUSED`.
    Refused,
    /// `ENETUNREACH`.
    NetworkUnreachable,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// Nothing, as by a black hole: it asks again, and ends by its own limit.
    Silence,
}

impl Syn {
    /// Reads an event of the kernel half; none if that is no whole one.
    pub(crate) fn read(event: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?));
        let (pod, mark, length, tcp) = (word(0)?, word(4)?, word(8)?, word(12)?);
        let generation = word(16)?;
        let packet = event.get(EVENT..)?.get(..usize::try_from(length).ok()?)?;
        let packet = packet.get(ETHERNET..)?;
        let tcp = usize::try_from(tcp).ok()?.checked_sub(ETHERNET)?;
        let fixed = packet.get(tcp..)?.get(..TCP_HEADER)?;
        let end = tcp + usize::from(fixed.get(12)? >> 4) * 4;
        let headers = packet.get(..end)?.to_vec();
        let (from, to) = match headers.first()? >> 4 {
            4 => (v4(&headers, 12)?, v4(&headers, 16)?),
            6 => (v6(&headers, 8)?, v6(&headers, 24)?),
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(fixed.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            pod,
            mark,
            client: SocketAddr::new(from, port(0)?),
            target: SocketAddr::new(to, port(2)?),
            isn: u32::from_be_bytes(fixed.get(4..8)?.try_into().ok()?),
            generation,
            headers,
            tcp,
        })
    }

    /// By which it is told from other attempts with the same ports.
    pub(crate) fn attempt(&self) -> (u32, u32) {
        (self.isn, self.generation)
    }

    /// By which the kernel half knows it.
    pub(crate) fn key(&self) -> HeldKey {
        key(self.pod, self.client, self.target)
    }

    /// The SYN itself, to be put back.
    pub(crate) fn again(&self) -> Vec<u8> {
        let mut packet = self.headers.clone();
        let tcp = packet.get(self.tcp..).unwrap_or_default();
        let sum = transport_sum(
            (self.client.ip(), self.target.ip()),
            IPPROTO_TCP,
            &zeroed(tcp, 16),
        );
        put(&mut packet, self.tcp + 16, &sum.to_be_bytes());
        let length = packet.len();
        if self.target.is_ipv4() {
            // The kernel sums an IPv4 header up, for what is sent by a raw socket.
            put(&mut packet, 2, &size(length));
        } else {
            put(&mut packet, 4, &size(length - IPV6_HEADER));
        }
        packet
    }

    /// What makes its client's `connect` fail; nothing for silence.
    pub(crate) fn answer(&self, answer: Answer) -> Option<Vec<u8>> {
        let v4 = self.target.is_ipv4();
        match (answer, v4) {
            (Answer::Silence, _) => None,
            (Answer::Refused, _) => Some(self.reset()),
            // Codes of RFC 792 and RFC 4443: no network, no host; no route, no address.
            (Answer::NetworkUnreachable, true) => Some(self.unreachable(3, 0)),
            (Answer::HostUnreachable, true) => Some(self.unreachable(3, 1)),
            (Answer::NetworkUnreachable, false) => Some(self.unreachable(1, 0)),
            (Answer::HostUnreachable, false) => Some(self.unreachable(1, 3)),
        }
    }

    fn reset(&self) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(TCP_HEADER);
        tcp.extend(self.target.port().to_be_bytes());
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(0_u32.to_be_bytes());
        tcp.extend(self.isn.wrapping_add(1).to_be_bytes());
        tcp.extend([0x50, RST_ACK, 0, 0, 0, 0, 0, 0]);
        self.towards_client(IPPROTO_TCP, &tcp, 16)
    }

    fn unreachable(&self, kind: u8, code: u8) -> Vec<u8> {
        let quoted = self.headers.get(..self.tcp + QUOTED).unwrap_or_default();
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(quoted);
        let protocol = if self.target.is_ipv4() {
            IPPROTO_ICMP
        } else {
            IPPROTO_ICMPV6
        };
        self.towards_client(protocol, &icmp, 2)
    }

    /// A packet from the far side, whose own checksum is at `sum`.
    fn towards_client(&self, protocol: u8, payload: &[u8], sum: usize) -> Vec<u8> {
        let (from, to) = (self.target.ip(), self.client.ip());
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => header_v4(from, to, protocol, payload.len()),
            (IpAddr::V6(from), IpAddr::V6(to)) => header_v6(from, to, protocol, payload.len()),
            // Read from one header.
            _ => return Vec::new(),
        };
        let start = packet.len();
        packet.extend_from_slice(payload);
        let value = if protocol == IPPROTO_ICMP {
            !ones_complement(&[payload])
        } else {
            transport_sum((from, to), protocol, payload)
        };
        put(&mut packet, start + sum, &value.to_be_bytes());
        packet
    }
}

/// By which the kernel half knows a connection of a pod.
pub(crate) fn key(pod: u32, client: SocketAddr, target: SocketAddr) -> HeldKey {
    let (client, target) = (canonical(client), canonical(target));
    HeldKey {
        pod,
        flow: Flow {
            source: Addr::from(client.ip()),
            destination: Addr::from(target.ip()),
            source_port: client.port(),
            destination_port: target.port(),
        },
    }
}

fn v4(header: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(header: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

fn header_v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(size(IPV4_HEADER + payload));
    // The kernel sets the identification and sums the header up.
    header.extend([0, 0, 0, 0, HOPS, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

fn header_v6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(size(payload));
    header.extend([protocol, HOPS]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// A length as headers have it; these packets are shorter than 200 bytes.
fn size(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The bytes with a word of two at `at` taken out, which is where the sum over them goes.
fn zeroed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    put(&mut bytes, at, &[0, 0]);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// The checksum of TCP and ICMPv6, over the pseudo header too.
fn transport_sum((from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let rest = [[0, protocol], size(payload.len())].concat();
    !ones_complement(&[&octets(from), &octets(to), &rest, payload])
}

/// The sum of RFC 1071. All parts but the last are of an even length.
fn ones_complement(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u32 = words
        .map(|word| match word {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(u16::from_be_bytes([*high, 0])),
            _ => 0,
        })
        .sum();
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
