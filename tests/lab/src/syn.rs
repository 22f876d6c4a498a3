//! A SYN with any source address, for tests of who believes it.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

/// A SYN as the kernel would send it, but with any source.
#[must_use]
pub fn packet(source: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(0x1234_5678_u32.to_be_bytes());
    tcp.extend([0; 4]);
    // Header of five words, SYN, a window, checksum to come, no urgent data.
    tcp.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = octets(source.ip());
    pseudo.extend(octets(to.ip()));
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    let checksum = !sum(&pseudo);
    tcp.splice(16..18, checksum.to_be_bytes());
    let mut packet = if to.is_ipv4() {
        // The kernel fills in length, id and checksum (raw(7)).
        vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, 20, 6, 64]
    };
    packet.extend(octets(source.ip()));
    packet.extend(octets(to.ip()));
    packet.extend(tcp);
    packet
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair.first().copied().unwrap_or_default(),
            pair.get(1).copied().unwrap_or_default(),
        ]))
    });
    let total: u32 = words.sum();
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// Sends a packet as it is from the calling thread's namespace.
///
/// # Errors
/// The kernel refuses it.
pub fn send(packet: &[u8], to: SocketAddr) -> Result<()> {
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol))?;
    // A raw IPv6 socket takes no port.
    socket.send_to(packet, &SocketAddr::new(to.ip(), 0).into())?;
    Ok(())
}
