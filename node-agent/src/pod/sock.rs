//! Sockets inside pods: listeners that take any address, legs that keep the client's address, dials.

#![expect(unsafe_code, reason = "options that no safe library offers")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use abi::{APP_MARK, LEG, LOOPBACK_IFINDEX};
use model::outbound::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{host::netns::Netns, pod::Pod};

/// Connections that wait to be accepted. Beyond it the kernel drops SYNs, which clients send again.
const BACKLOG: i32 = 4096;
/// Same values as ztunnel's defaults, so that dead peers are found equally fast.
const KEEPALIVE_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_RETRIES: u32 = 9;
/// For how long the kernel retransmits by default (`tcp_retries2` 15: 924.6 s).
const RETRANSMITS: Duration = Duration::from_millis(924_600);
/// The kernel takes no more.
const MOST_PROBES: u32 = 127;
/// Source ports of legs whose client's own port cannot be used: below the kernel's ephemeral range,
/// where real clients of the same address rarely are.
const LEG_PORTS: std::ops::Range<u16> = 10_000..32_000;
const LEG_ATTEMPTS: usize = 32;
/// Where this agent listens in the pod. A leg from there would hold a port that a listener of ours, or of the next agent,
/// needs.
const OWN_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT];
/// Source ports that only root binds (RFC 6335 calls them system ports), without those of servers.
const PRIVILEGED_PORTS: std::ops::Range<u16> = 512..1024;
/// The kernel's choice.
const ANY_PORT: u16 = 0;

/// `SOL_IPV6`/`IPV6_TRANSPARENT`, include/uapi/linux/in6.h.
const IPV6_TRANSPARENT: libc::c_int = 75;
/// `SO_BINDTOIFINDEX`, include/uapi/asm-generic/socket.h.
const SO_BINDTOIFINDEX: libc::c_int = 62;

/// A listening socket of this thread's namespace, dual stack where the namespace has IPv6.
///
/// It is bound to loopback only: connections reach it through `sk_lookup`, with the address that the
/// client dialled. Answering from such an address is what makes it transparent. `port` is used if it
/// is free, any other if not: nothing depends on it. `beat` tells the kernel half whose listener it is, see
/// [`abi::beat_index`]; sockets that are accepted do not take it over. They have the mark `mark`; with none, that
/// of the packets which opened the connection.
///
/// # Errors
/// When the kernel refuses.
pub fn listen(port: u16, beat: u32, mark: Option<u32>) -> io::Result<std::net::TcpListener> {
    // The mapped form: a socket bound to `::1` would be IPv6 only, whatever its options say.
    let loopback = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let v6 = || listen_at(SocketAddrV6::new(loopback, port, 0, 0).into(), beat, mark);
    let v4 = || {
        listen_at(
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into(),
            beat,
            mark,
        )
    };
    match v6() {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && port != 0 => listen(0, beat, mark),
        Err(_) => v4(),
        Ok(listener) => Ok(listener),
    }
}

fn listen_at(
    address: SocketAddr,
    beat: u32,
    mark: Option<u32>,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    set_transparent(&socket, address.ip())?;
    let priority = libc::c_int::try_from(beat).map_err(io::Error::other)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, priority)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    // The listeners of all workers, and of an agent that takes over, share the port.
    socket.set_reuse_port(true)?;
    // An accepted connection holds the port that the client dialled, in the pod's namespace; an
    // application that binds that port with SO_REUSEADDR, as servers do, shall not be in its way.
    socket.set_reuse_address(true)?;
    // What is accepted inherits it: an urgent byte that is there before `set_up` is none the less kept.
    socket.set_out_of_band_inline(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// By which packets that are made here come out of a pod's own network stack.
#[derive(Debug)]
pub struct RawSockets {
    v4: Socket,
    /// None where the namespace has no IPv6.
    v6: Option<Socket>,
}

impl RawSockets {
    /// Sockets in the namespace, which they keep alive.
    ///
    /// # Errors
    /// When it cannot be entered or the kernel refuses.
    pub fn new(netns: &Netns) -> io::Result<Self> {
        let open = |domain| {
            // Whole packets, with their IP header (raw(7)).
            let protocol = Some(Protocol::from(libc::IPPROTO_RAW));
            Socket::new(domain, Type::RAW.nonblocking(), protocol)
        };
        netns.with(|| {
            Ok(Self {
                v4: open(Domain::IPV4)?,
                v6: open(Domain::IPV6).ok(),
            })
        })?
    }

    /// Sends a packet with a mark.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, packet: &[u8], to: IpAddr, mark: u32) -> io::Result<()> {
        let socket = match to {
            IpAddr::V4(_) => Some(&self.v4),
            IpAddr::V6(_) => self.v6.as_ref(),
        };
        let socket = socket.ok_or(io::ErrorKind::Unsupported)?;
        socket.set_mark(mark)?;
        // A raw IPv6 socket takes no port.
        socket.send_to(packet, &SocketAddr::new(to, 0).into())?;
        Ok(())
    }
}

/// Connects from inside a pod's namespace, as the pod would, without capture.
///
/// # Errors
/// What connecting said, or `TimedOut` after `timeout`.
pub async fn dial(netns: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = netns.with(|| new_socket(to))??;
    connect(socket, to, timeout).await
}

/// Connects as [`dial`] does, from the address of the pod that `client` has, and from a privileged port
/// where `client` has one: whoever is called may go by either.
///
/// # Errors
/// What connecting said, or `TimedOut` after `timeout`.
pub async fn dial_as(
    netns: &Netns,
    client: SocketAddr,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    if client.is_ipv4() != to.is_ipv4() {
        return dial(netns, to, timeout).await;
    }
    let port = if is_privileged(client.port()) {
        other_port(client.port())
    } else {
        ANY_PORT
    };
    let source = SocketAddr::new(client.ip(), port);
    connect_from(netns, source, to, timeout, new_caller).await
}

/// Connects to the pod's application over the pod's `lo`, with `client` as source address if it
/// can be used: the application sees who called.
///
/// The client's port is kept where that is free, so that it may differ from the real one; a privileged port
/// stays privileged. A client of the other address family or with one of the pod's own addresses is not
/// imitated.
///
/// Where the server takes connections on one interface only, the leg arrives there: a route in the pod's
/// namespace delivers what is marked to the pod itself, for whatever interface it is meant. A reset of a port
/// on which nobody listens arrives on `lo` and would not find such a leg, so it is looked first.
///
/// # Errors
/// What connecting said, or `TimedOut` after `timeout`.
pub async fn leg(
    pod: &Pod,
    client: SocketAddr,
    keep_port: bool,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut refused = None;
    if pod.bound.interface(to.port()).is_none() {
        let leg = leg_on(LOOPBACK_IFINDEX, &pod.netns, client, keep_port, to, timeout);
        match leg.await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused = Some(error),
            connected => return connected,
        }
    }
    pod.bound.look(&pod.netns).await?;
    let interface = match (pod.bound.interface(to.port()), refused) {
        (None, Some(error)) => return Err(error),
        (interface, _) => interface.unwrap_or(LOOPBACK_IFINDEX),
    };
    leg_on(interface, &pod.netns, client, keep_port, to, timeout).await
}

async fn leg_on(
    interface: u32,
    netns: &Netns,
    client: SocketAddr,
    keep_port: bool,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    if client.ip() == to.ip() || client.is_ipv4() != to.is_ipv4() || client.ip().is_loopback() {
        return dial(netns, to, timeout).await;
    }
    let port = if keep_port {
        client.port()
    } else {
        other_port(client.port())
    };
    let source = SocketAddr::new(client.ip(), port);
    let make = |source, to| new_leg(interface, source, to);
    connect_from(netns, source, to, timeout, make).await
}

/// Connects from `source`, or from another port of the same class where that one is taken.
async fn connect_from(
    netns: &Netns,
    mut source: SocketAddr,
    to: SocketAddr,
    timeout: Duration,
    make: impl Fn(SocketAddr, SocketAddr) -> io::Result<Socket>,
) -> io::Result<TcpStream> {
    for attempt in 1.. {
        let socket = netns.with(|| make(source, to))?;
        let result = match socket {
            Ok(socket) => connect(socket, to, timeout).await,
            Err(error) => Err(error),
        };
        match result {
            // The four-tuple is taken or in TIME_WAIT: another source port is as good.
            Err(error)
                if is_taken(&error) && source.port() != ANY_PORT && attempt < LEG_ATTEMPTS =>
            {
                source.set_port(other_port(source.port()));
            }
            other => return other,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

/// A port instead of this one: some servers trust who could bind a privileged port.
fn other_port(instead_of: u16) -> u16 {
    let ports = if is_privileged(instead_of) {
        PRIVILEGED_PORTS
    } else {
        LEG_PORTS
    };
    loop {
        let port = rand::random_range(ports.clone());
        if !OWN_PORTS.contains(&port) {
            return port;
        }
    }
}

fn is_privileged(port: u16) -> bool {
    port != ANY_PORT && port < PRIVILEGED_PORTS.end
}

fn new_socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    set_up(&socket)?;
    Ok(socket)
}

/// A socket of the pod's own address `source`; a client that borrowed another is not imitated.
fn new_caller(source: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(to)?;
    // The port is chosen when the destination is known: one port serves many destinations.
    set(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.set_reuse_address(source.port() != ANY_PORT)?;
    match socket.bind(&source.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => new_socket(to),
        bound => bound.map(|()| socket),
    }
}

fn new_leg(interface: u32, client: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(to)?;
    // Replies to the client's address come back over `lo` because the application's socket takes
    // over the mark (tcp_fwmark_accept).
    set_transparent(&socket, client.ip())?;
    // Elsewhere than on `lo` it is known by a note only.
    let noted = if interface == LOOPBACK_IFINDEX {
        0
    } else {
        LEG
    };
    socket.set_mark(APP_MARK | noted)?;
    let index = interface.cast_signed();
    set(&socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, index)?;
    socket.set_reuse_address(true)?;
    socket.bind(&client.into())?;
    Ok(socket)
}

/// Options of every connection that the agent makes or accepts.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    // An urgent byte is carried in its place among the others instead of being left out.
    socket.set_out_of_band_inline(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_TIME)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// What the client of an accepted connection dialled, where the pod translates addresses (`SO_ORIGINAL_DST`):
/// the socket's own address is what that became. None where nothing is known of a translation.
pub fn dialled(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let is_v4 = stream.local_addr().ok()?.ip().to_canonical().is_ipv4();
    let original = if is_v4 {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.ok()?.as_socket()
}

/// Has the kernel ask a quiet peer whether it lives, and give it up no earlier than it gives up what it
/// retransmits.
///
/// # Errors
/// When the kernel refuses.
pub fn probe(socket: BorrowedFd<'_>, idle: Duration, interval: Duration) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    // Set, it has the last word also where probes are unanswered: their number does not count.
    socket.set_tcp_user_timeout(Some(RETRANSMITS))?;
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(MOST_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Makes closing the socket send a reset instead of an orderly end.
pub fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot turn closing into a reset");
    }
}

async fn connect(socket: Socket, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    match tokio::time::timeout(timeout, socket.connect(to)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{to} did not answer within {timeout:?}"),
        )),
    }
}

fn set_transparent(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    if ip.is_ipv4() {
        return socket.set_ip_transparent_v4(true);
    }
    set(socket, libc::SOL_IPV6, IPV6_TRANSPARENT, 1)
}

fn set(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::{OWN_PORTS, other_port};

    #[test]
    fn another_port_is_of_the_same_class() {
        for (port, privileged) in [
            (1, true),
            (700, true),
            (1023, true),
            (1024, false),
            (40_000, false),
        ] {
            for _ in 0..100_000 {
                let other = other_port(port);
                assert_eq!(other < 1024, privileged, "{port}: {other}");
                assert!(other >= 512, "{other} is a server's");
                assert!(!OWN_PORTS.contains(&other), "{other} is the agent's");
            }
        }
    }
}
