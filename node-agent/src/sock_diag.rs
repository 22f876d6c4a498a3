//! Which TCP sockets a namespace has, asked of the kernel, and the end of one
//! (`NETLINK_SOCK_DIAG`).
//!
//! Written out by hand: it is two requests and a few fields of the answers
//! (include/uapi/linux/inet_diag.h).

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_ACK: u16 = 0x5;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NETLINK_HEADER: usize = 16;
/// Size of `struct inet_diag_req_v2`, whose last part is a [`SocketId`].
const REQUEST: usize = 56;
/// `struct inet_diag_sockid`.
type SocketId = [u8; 48];
const IPPROTO_TCP: u8 = 6;

/// States of TCP, include/net/tcp_states.h, as bits of a mask.
const LISTEN: u32 = 1 << 10;
/// `ESTABLISHED`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8;

/// A connected socket of a namespace.
#[derive(Clone, Debug)]
pub struct Found {
    /// The socket's own address.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    family: u8,
    id: SocketId,
}

/// Listening sockets of this thread's namespace that are reachable from outside: (port, family 4 or
/// 6) -> number of sockets. A socket on `::` counts under both families.
///
/// # Errors
/// When the kernel refuses the request.
pub fn listening_ports() -> io::Result<BTreeMap<(u16, u16), u64>> {
    let mut ports = BTreeMap::new();
    for found in dump(LISTEN)? {
        let (ip, port) = (found.local.ip(), found.local.port());
        let v4 = ip.is_ipv4();
        if ip.to_canonical().is_loopback() {
            continue;
        }
        if v4 || ip.is_unspecified() {
            *ports.entry((port, 4)).or_default() += 1;
        }
        if !v4 {
            *ports.entry((port, 6)).or_default() += 1;
        }
    }
    Ok(ports)
}

/// Connected sockets of this thread's namespace, with canonical addresses.
///
/// # Errors
/// When the kernel refuses the request.
pub fn connected() -> io::Result<Vec<Found>> {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let found = dump(CONNECTED)?.into_iter().map(|found| Found {
        local: canonical(found.local),
        remote: canonical(found.remote),
        ..found
    });
    Ok(found.collect())
}

/// Ends a socket of this thread's namespace: its application sees an error, its peer a reset. A
/// socket that is gone already is fine.
///
/// # Errors
/// When the kernel refuses the request.
pub fn destroy(found: &Found) -> io::Result<()> {
    let socket = open()?;
    socket.send(
        &request(SOCK_DESTROY, NLM_F_REQUEST_ACK, found.family, 0, &found.id),
        0,
    )?;
    let (bytes, _) = socket.recv_from_full()?;
    match split(&bytes) {
        Some((NLMSG_ERROR, body, _)) => {
            let error = error(body);
            if matches!(error.raw_os_error(), Some(0 | libc::ENOENT)) {
                Ok(())
            } else {
                Err(error)
            }
        }
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

fn dump(states: u32) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        let socket = open()?;
        socket.send(
            &request(
                SOCK_DIAG_BY_FAMILY,
                NLM_F_REQUEST_DUMP,
                family,
                states,
                &[0; 48],
            ),
            0,
        )?;
        'answers: loop {
            let (bytes, _) = socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => break 'answers,
                    NLMSG_ERROR => return Err(error(body)),
                    SOCK_DIAG_BY_FAMILY => all.extend(found(family, body)),
                    _ => {}
                }
                rest = next;
            }
        }
    }
    Ok(all)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn request(kind: u16, flags: u16, family: u8, states: u32, id: &SocketId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + REQUEST);
    bytes.extend_from_slice(&72_u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
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

/// `struct inet_diag_msg`: four bytes, then `inet_diag_sockid`: ports at 0 and 2 (network order),
/// addresses at 4 and 20.
fn found(family: u8, body: &[u8]) -> Option<Found> {
    let id: SocketId = body.get(4..52)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(id.get(at..at + 2)?.try_into().ok()?));
    let ip = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            return Some(<[u8; 4]>::try_from(id.get(at..at + 4)?).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(id.get(at..at + 16)?).ok()?.into())
    };
    Some(Found {
        local: SocketAddr::new(ip(4)?, port(0)?),
        remote: SocketAddr::new(ip(20)?, port(2)?),
        family,
        id,
    })
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
    use super::{connected, destroy, listening_ports};
    use std::{
        io::{ErrorKind, Read},
        net::{TcpListener, TcpStream, UdpSocket},
    };

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

    #[test]
    fn a_destroyed_connection_ends_with_an_error_on_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        let found = connected()
            .unwrap()
            .into_iter()
            .find(|found| found.remote == peer)
            .unwrap();
        destroy(&found).unwrap();
        assert_eq!(
            server.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionAborted
        );
        assert_eq!(
            client.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        destroy(&found).unwrap();
    }
}
