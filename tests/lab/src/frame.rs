//! A frame with VLAN tags, for tests of what stands before an IP header.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

/// The tag of no VLAN: a priority, which the receiver takes off.
const TAG: [u8; 4] = [0x81, 0x00, 0, 0];
const IPV4: [u8; 2] = [0x08, 0x00];

/// Sends an IPv4 packet behind so many tags out of `eth0` of the calling thread's namespace, to its neighbour.
///
/// # Errors
/// No neighbour is known, or the kernel refuses the frame.
pub fn send_tagged(packet: &[u8], tags: usize) -> Result<()> {
    let neighbour = neighbour()?;
    // The header checksum, which the kernel fills in for raw sockets but not here.
    let mut packet = packet.to_vec();
    let length = u16::try_from(packet.len())?;
    packet.splice(2..4, length.to_be_bytes());
    let header = packet.get(..20).context("an IPv4 header")?;
    let words = header.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    packet.splice(10..12, checksum.to_be_bytes());

    let mut frame = neighbour.to_vec();
    frame.extend([0x02, 0, 0, 0, 0, 1]);
    frame.extend(TAG.repeat(tags));
    frame.extend(IPV4);
    frame.extend(packet);
    Ok(send(&frame)?)
}

/// The hardware address of the first neighbour in the table.
fn neighbour() -> Result<[u8; 6]> {
    let table = fs::read_to_string("/proc/thread-self/net/arp")?;
    let hardware = table
        .lines()
        .skip(1)
        .find_map(|line| line.split_whitespace().nth(3));
    let hardware = hardware.context("no neighbour is known")?;
    let bytes: Vec<u8> = hardware
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    Ok(bytes.as_slice().try_into()?)
}

#[expect(unsafe_code, reason = "packet sockets are raw calls")]
fn send(frame: &[u8]) -> io::Result<()> {
    let every = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, every) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the name is a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: frame and address outlive the call, and their sizes are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
