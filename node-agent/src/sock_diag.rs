//! Which ports the applications of a namespace listen on, asked of the kernel (`NETLINK_SOCK_DIAG`).
//!
//! Written out by hand: it is one request and two fields of its answers
//! (include/uapi/linux/inet_diag.h).

use std::{collections::BTreeMap, io, net::IpAddr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NETLINK_HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;

/// Listening sockets of this thread's namespace that are reachable from outside: (port, family 4 or
/// 6) -> number of sockets. A socket on `::` counts under both families.
///
/// # Errors
/// When the kernel refuses the request.
pub fn listening_ports() -> io::Result<BTreeMap<(u16, u16), u64>> {
    let mut ports = BTreeMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        each_listener(family, |ip, port| {
            let v4 = matches!(ip, IpAddr::V4(_));
            let unspecified = ip.is_unspecified();
            if ip.to_canonical().is_loopback() {
                return;
            }
            if v4 || unspecified {
                *ports.entry((port, 4)).or_default() += 1;
            }
            if !v4 {
                *ports.entry((port, 6)).or_default() += 1;
            }
        })?;
    }
    Ok(ports)
}

fn each_listener(family: u8, mut each: impl FnMut(IpAddr, u16)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(family), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error(body)),
                SOCK_DIAG_BY_FAMILY => {
                    if let Some((ip, port)) = listener(family, body) {
                        each(ip, port);
                    }
                }
                _ => {}
            }
            rest = next;
        }
    }
}

fn request(family: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + REQUEST);
    bytes.extend_from_slice(&72_u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    bytes.extend_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
    bytes.resize(NETLINK_HEADER + REQUEST, 0);
    bytes
}

/// The first netlink message of `bytes`: its type, its body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(NETLINK_HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

/// `struct inet_diag_msg`: four bytes, then `inet_diag_sockid` with the source port (network order)
/// at 4 and the source address at 8.
fn listener(family: u8, body: &[u8]) -> Option<(IpAddr, u16)> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let address = body.get(8..24)?;
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::from(<[u8; 4]>::try_from(address.get(..4)?).ok()?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(address).ok()?)
    };
    Some((ip, port))
}

fn error(body: &[u8]) -> io::Error {
    let code = body
        .get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    io::Error::from_raw_os_error(code.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::listening_ports;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn listeners_on_loopback_are_not_reachable_and_udp_is_no_listener() {
        let open = TcpListener::bind("0.0.0.0:0").unwrap();
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let ports = listening_ports().unwrap();
        assert_eq!(ports.get(&(open.local_addr().unwrap().port(), 4)), Some(&1));
        assert_eq!(ports.get(&(local.local_addr().unwrap().port(), 4)), None);
        assert_eq!(ports.get(&(udp.local_addr().unwrap().port(), 4)), None);
    }

    #[test]
    fn a_dual_stack_listener_counts_under_both_families() {
        let open = TcpListener::bind("[::]:0").unwrap();
        let port = open.local_addr().unwrap().port();
        let ports = listening_ports().unwrap();
        assert_eq!(
            (ports.get(&(port, 4)), ports.get(&(port, 6))),
            (Some(&1), Some(&1))
        );
    }
}
