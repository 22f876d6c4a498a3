//! Which TCP sockets a namespace has, asked of the kernel, and the end of one
//! (`NETLINK_SOCK_DIAG`).
//!
//! Written out by hand: it is three requests and a few fields of the answers
//! (include/uapi/linux/inet_diag.h).

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_REQUEST_ACK: u16 = 0x5;
pub(crate) const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NETLINK_HEADER: usize = 16;
/// Size of `struct inet_diag_req_v2`, whose last part is a [`SocketId`].
const REQUEST: usize = 56;
/// Size of `struct inet_diag_req`.
const REQUEST_FOR_ALL: usize = 60;
/// `struct inet_diag_sockid`.
type SocketId = [u8; 48];
const IPPROTO_TCP: u8 = 6;
/// Size of `struct inet_diag_msg`; attributes follow it.
const MESSAGE: usize = 72;
/// Where the [`SocketId`] in it ends.
const MESSAGE_ID_END: usize = 52;
/// Where the interface in a [`SocketId`] begins.
const INTERFACE: usize = 36;
/// Where the cookie in a [`SocketId`] begins.
const COOKIE: usize = 40;
/// The attribute with a `struct tcp_info`.
const INET_DIAG_INFO: u8 = 2;
/// The attribute with the socket's mark, which who may administer the network is told unasked.
const INET_DIAG_MARK: u16 = 15;
/// Offset of `tcpi_bytes_acked` in it; `tcpi_bytes_received` follows.
const TCPI_BYTES_ACKED: usize = 120;

/// States of TCP, include/net/tcp_states.h, as bits of a mask.
const LISTEN: u32 = 1 << 10;
const SYN_SENT: u32 = 1 << 2;
/// `ESTABLISHED`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8;
/// `LAST_ACK`, `CLOSING`: closed by the application, and the peer has not acknowledged it.
const ENDING: u32 = 1 << 9 | 1 << 11;
/// `TIME_WAIT`: over, and its last packets may be sent again.
const OVER: u32 = 1 << 6;

/// A connected socket of a namespace.
#[derive(Clone, Debug)]
pub struct Found {
    /// The socket's own address.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    /// `TCP_ESTABLISHED` and so on, include/net/tcp_states.h.
    pub state: u8,
    /// Its `SO_MARK`.
    pub mark: u32,
    /// When it sends again what nobody has acknowledged; none where nothing is on its way.
    pub sends_again: Option<Duration>,
    /// Where it was asked for: what the socket has moved.
    pub moved: Option<Moved>,
    family: u8,
    id: SocketId,
}

/// [`Found::state`] of a socket that has sent a SYN, or will.
pub const TCP_SYN_SENT: u8 = 2;
/// [`Found::state`] of a connection that a peer is opening.
pub const TCP_SYN_RECV: u8 = 3;

impl Found {
    /// The interface that it is bound to; 0 for none.
    fn interface(&self) -> Option<u32> {
        let index = self.id.get(INTERFACE..COOKIE)?.try_into().ok()?;
        Some(u32::from_ne_bytes(index))
    }

    /// Whether both are the same socket, not only the same addresses.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// The connection with these addresses, whether there is one or not: for [`Ender::destroy_named`].
    #[must_use]
    pub fn named(local: SocketAddr, remote: SocketAddr) -> Self {
        let mut id = [0; 48];
        let ports = [local.port().to_be_bytes(), remote.port().to_be_bytes()].concat();
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // No interface, and any cookie: `INET_DIAG_NOCOOKIE`.
        for (at, bytes) in [
            (0, ports),
            (4, octets(local.ip())),
            (20, octets(remote.ip())),
            (COOKIE, vec![0xff; 8]),
        ] {
            for (to, byte) in id.iter_mut().skip(at).zip(bytes) {
                *to = byte;
            }
        }
        let family = if local.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        Self {
            local,
            remote,
            state: 0,
            mark: 0,
            sends_again: None,
            moved: None,
            family: u8::try_from(family).unwrap_or_default(),
            id,
        }
    }
}

/// What a socket has moved, in TCP's own counts: they include the sequence numbers of SYN and FIN.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// `TCP_ESTABLISHED` and so on, include/net/tcp_states.h.
    pub state: u8,
    /// `tcpi_bytes_acked`.
    pub acked: u64,
    /// `tcpi_bytes_received`.
    pub received: u64,
}

/// Listening sockets of this thread's namespace that are reachable from outside: (port, family 4 or
/// 6) -> number of sockets. A socket on `::` counts under both families.
///
/// # Errors
/// When the kernel refuses the request.
pub fn listening_ports() -> io::Result<BTreeMap<(u16, u16), i32>> {
    let mut ports = BTreeMap::new();
    for found in dump(LISTEN, 0)? {
        let (ip, port) = (found.local.ip().to_canonical(), found.local.port());
        let v4 = ip.is_ipv4();
        if ip.is_loopback() {
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

/// Ports of this thread's namespace on which somebody listens on one interface only, with the interface.
///
/// # Errors
/// When the kernel refuses the request.
pub fn bound_listeners() -> io::Result<BTreeMap<u16, u32>> {
    let listening = dump(LISTEN, 0)?;
    let bound = listening
        .iter()
        .filter_map(|found| Some((found.local.port(), found.interface().filter(|i| *i != 0)?)));
    Ok(bound.collect())
}

/// Connected sockets of this thread's namespace, with canonical addresses.
///
/// # Errors
/// When the kernel refuses the request.
pub fn connected() -> io::Result<Vec<Found>> {
    Ok(dump(CONNECTED, 0)?.into_iter().map(canonical).collect())
}

/// As [`connected`], with those that are being opened.
///
/// # Errors
/// When the kernel refuses the request.
pub fn connecting_and_connected() -> io::Result<Vec<Found>> {
    let found = dump(SYN_SENT | CONNECTED, 0)?;
    Ok(found.into_iter().map(canonical).collect())
}

/// Ends all connections of this thread's namespace, also those that no process has any more and that nobody
/// will acknowledge: they would keep the namespace for minutes.
///
/// # Errors
/// When the kernel refuses a request.
pub fn end_all() -> io::Result<()> {
    let mut ender = Ender::new()?;
    for found in dump(CONNECTED | ENDING | SYN_SENT, 0)? {
        // That it has gone by itself is as good.
        let _was_there = ender.destroy(&found)?;
    }
    Ok(())
}

/// As [`connecting_and_connected`], with what each has moved, and with those that are ending.
///
/// # Errors
/// When the kernel refuses the request.
pub fn connecting_and_connected_with_bytes() -> io::Result<Vec<Found>> {
    let found = dump(SYN_SENT | CONNECTED | ENDING, 1 << (INET_DIAG_INFO - 1))?;
    Ok(found.into_iter().map(canonical).collect())
}

/// As [`connected`], with what each has moved.
///
/// # Errors
/// When the kernel refuses the request.
pub fn connected_with_bytes() -> io::Result<Vec<Found>> {
    let found = dump(CONNECTED | ENDING, 1 << (INET_DIAG_INFO - 1))?;
    Ok(found.into_iter().map(canonical).collect())
}

/// Sockets of this thread's namespace whose packets are on their way, from the answer to a SYN until nothing
/// is sent again, with canonical addresses. What only dials is not among them.
///
/// # Errors
/// When the kernel refuses the request.
pub fn flows() -> io::Result<Vec<Found>> {
    let found = dump(CONNECTED | ENDING | OVER, 0)?;
    Ok(found.into_iter().map(canonical).collect())
}

fn canonical(found: Found) -> Found {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    Found {
        local: canonical(found.local),
        remote: canonical(found.remote),
        ..found
    }
}

/// Ends sockets of the namespace in which it was made.
pub struct Ender(Socket);

impl Ender {
    /// For this thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn new() -> io::Result<Self> {
        Ok(Self(open()?))
    }

    /// As [`Ender::destroy`], for a connection that is only [named](Found::named).
    ///
    /// The kernel is asked for its cookie first: where there is no connection with the addresses, it
    /// would take the listening socket for what is meant.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn destroy_named(&mut self, named: &Found) -> io::Result<bool> {
        let request = request(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST,
            (named.family, 0),
            u32::MAX,
            &named.id,
        );
        self.0.send(&request, 0)?;
        let (bytes, _) = self.0.recv_from_full()?;
        let answer = match split(&bytes) {
            Some((SOCK_DIAG_BY_FAMILY, body, _)) => body.get(4..MESSAGE_ID_END),
            Some((NLMSG_ERROR, body, _)) if error(body).raw_os_error() == Some(libc::ENOENT) => {
                return Ok(false);
            }
            Some((NLMSG_ERROR, body, _)) => return Err(error(body)),
            _ => None,
        };
        let answer =
            answer.ok_or_else(|| io::Error::other("the kernel's answer is not understood"))?;
        // A listening socket has no remote port.
        if answer.get(2..4) != named.id.get(2..4) {
            return Ok(false);
        }
        let mut exact = named.clone();
        for (to, byte) in exact.id.iter_mut().zip(answer).skip(COOKIE) {
            *to = *byte;
        }
        self.destroy(&exact)
    }

    /// Ends a socket: its application sees an error, its peer a reset. Says whether it was there still.
    ///
    /// # Errors
    /// When the kernel refuses the request.
    pub fn destroy(&mut self, found: &Found) -> io::Result<bool> {
        let request = request(
            SOCK_DESTROY,
            NLM_F_REQUEST_ACK,
            (found.family, 0),
            0,
            &found.id,
        );
        self.0.send(&request, 0)?;
        let (bytes, _) = self.0.recv_from_full()?;
        match split(&bytes) {
            Some((NLMSG_ERROR, body, _)) => {
                let error = error(body);
                match error.raw_os_error() {
                    Some(0) => Ok(true),
                    Some(libc::ENOENT) => Ok(false),
                    _ => Err(error),
                }
            }
            _ => Err(io::Error::other("the kernel's answer is not understood")),
        }
    }
}

/// The sockets of both families. They are asked for with the request that `sock_diag` had before it knew families
/// (net/ipv4/inet_diag.c, `inet_diag_dump_compat`): the kernel looks at every connection of the machine for a dump, and
/// for that request once, not once for each family.
fn dump(states: u32, extensions: u8) -> io::Result<Vec<Found>> {
    let socket = open()?;
    socket.send(&request_for_all(states, extensions), 0)?;
    let mut all = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => return Err(error(body)),
                TCPDIAG_GETSOCK => {
                    all.extend(body.first().and_then(|family| found(*family, body)));
                }
                _ => {}
            }
            rest = next;
        }
    }
}

/// With a `struct inet_diag_req`: family, two lengths that nothing reads, extensions, the id, states, and a word that
/// nothing reads.
fn request_for_all(states: u32, extensions: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + REQUEST_FOR_ALL);
    bytes.extend_from_slice(&76_u32.to_ne_bytes());
    bytes.extend_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[0, 0, 0, extensions]);
    bytes.extend_from_slice(&[0; 48]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn request(
    kind: u16,
    flags: u16,
    (family, extensions): (u8, u8),
    states: u32,
    id: &SocketId,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + REQUEST);
    bytes.extend_from_slice(&72_u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, IPPROTO_TCP, extensions, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

/// The first netlink message of `bytes`: its type, its body, and what follows it.
pub(crate) fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(NETLINK_HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

/// `struct inet_diag_msg`: four bytes, then `inet_diag_sockid`: ports at 0 and 2 (network order),
/// addresses at 4 and 20.
fn found(family: u8, body: &[u8]) -> Option<Found> {
    let id: SocketId = body.get(4..MESSAGE_ID_END)?.try_into().ok()?;
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
        state: *body.get(1)?,
        mark: mark(body),
        sends_again: sends_again(body),
        moved: moved(body),
        family,
        id,
    })
}

/// The retransmission timer: `idiag_timer` at 2 says that it runs, `idiag_expires` behind the
/// identification in how many milliseconds.
fn sends_again(body: &[u8]) -> Option<Duration> {
    const RETRANSMISSION: u8 = 1;
    let expires = body.get(MESSAGE_ID_END..MESSAGE_ID_END + 4)?;
    let expires = u32::from_ne_bytes(expires.try_into().ok()?);
    (*body.get(2)? == RETRANSMISSION).then_some(Duration::from_millis(expires.into()))
}

fn mark(body: &[u8]) -> u32 {
    let value = attribute(body, INET_DIAG_MARK).and_then(|value| value.get(..4)?.try_into().ok());
    value.map_or(0, u32::from_ne_bytes)
}

/// The state, and two fields of the attribute `INET_DIAG_INFO`, a `struct tcp_info`
/// (include/uapi/linux/tcp.h; both since Linux 4.1).
fn moved(body: &[u8]) -> Option<Moved> {
    let value = attribute(body, INET_DIAG_INFO.into())?;
    let word = |at: usize| Some(u64::from_ne_bytes(value.get(at..at + 8)?.try_into().ok()?));
    Some(Moved {
        state: *body.get(1)?,
        acked: word(TCPI_BYTES_ACKED)?,
        received: word(TCPI_BYTES_ACKED + 8)?,
    })
}

/// The value of an attribute behind a `struct inet_diag_msg`.
fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(MESSAGE..)?;
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// What the kernel says went wrong.
pub(crate) fn error(body: &[u8]) -> io::Error {
    let code = body
        .get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    io::Error::from_raw_os_error(code.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::{Ender, Found, connected, connected_with_bytes, listening_ports};
    use std::{
        io::{ErrorKind, Read, Write},
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
        let mut ender = Ender::new().unwrap();
        assert!(ender.destroy(&found).unwrap());
        assert_eq!(
            server.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionAborted
        );
        assert_eq!(
            client.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        assert!(!ender.destroy(&found).unwrap(), "it is gone");
    }

    #[test]
    fn a_connection_is_ended_by_its_addresses_alone_and_its_listener_is_not() {
        for bound in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(bound).unwrap();
            let port = listener.local_addr().unwrap().port();
            let ip = if bound.starts_with("[::1]") {
                "::1"
            } else {
                "127.0.0.1"
            };
            let mut client = TcpStream::connect((ip, port)).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let named = Found::named(client.peer_addr().unwrap(), client.local_addr().unwrap());
            let mut ender = Ender::new().unwrap();
            assert!(ender.destroy_named(&named).unwrap(), "{bound}");
            assert_eq!(
                client.read(&mut [0]).unwrap_err().kind(),
                ErrorKind::ConnectionReset
            );
            assert!(!ender.destroy_named(&named).unwrap(), "it is gone");
            TcpStream::connect((ip, port)).unwrap();
            listener.accept().unwrap();
        }
    }

    #[test]
    fn a_connection_that_is_being_opened_says_when_it_sends_again() {
        // A queue with room for one: the second SYN is dropped and sent again.
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let to = listener.local_addr().unwrap();
        let dial = |marked: u32| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.set_mark(marked).unwrap();
            drop(socket.connect(&to));
            socket
        };
        let sockets = [dial(0x71), dial(0x72), dial(0x73)];
        let found = super::connecting_and_connected().unwrap();
        let port = to.as_socket().unwrap().port();
        let ours = || found.iter().filter(|found| found.remote.port() == port);
        let opening = ours().find(|found| found.state == super::TCP_SYN_SENT);
        let opening = opening.expect("one waits for an answer");
        assert!((0x71..=0x73).contains(&opening.mark), "{opening:?}");
        let again = opening.sends_again.expect("it will send again");
        assert!(again <= std::time::Duration::from_secs(1), "{again:?}");
        assert!(ours().count() >= sockets.len());
    }

    #[test]
    fn the_bytes_of_an_open_connection_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[2; 300]).unwrap();
        client.read_exact(&mut [0; 300]).unwrap();
        let found = connected_with_bytes().unwrap();
        let found = found.into_iter().find(|found| found.local == peer).unwrap();
        let moved = found.moved.unwrap();
        // The SYN has a sequence number too.
        assert_eq!((moved.state, moved.acked, moved.received), (1, 1001, 300));
    }
}
