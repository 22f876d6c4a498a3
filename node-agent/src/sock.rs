//! Sockets inside pods: listeners that take any address, legs that keep the client's address, dials.

#![expect(unsafe_code, reason = "options that no safe library offers")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    time::Duration,
};

use abi::{APP_MARK, LOOPBACK_IFINDEX};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::netns::Netns;

/// Connections that wait to be accepted. Beyond it the kernel drops SYNs, which clients send again.
const BACKLOG: i32 = 4096;
/// Same values as ztunnel's defaults, so that dead peers are found equally fast.
const KEEPALIVE_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_RETRIES: u32 = 9;
/// Source ports of legs whose client's own port cannot be used: below the kernel's ephemeral range,
/// where real clients of the same address rarely are.
const LEG_PORTS: std::ops::Range<u16> = 10_000..32_000;
const LEG_ATTEMPTS: usize = 32;

/// `SOL_IPV6`/`IPV6_TRANSPARENT`, include/uapi/linux/in6.h.
const IPV6_TRANSPARENT: libc::c_int = 75;
/// `SO_BINDTOIFINDEX`, include/uapi/asm-generic/socket.h.
const SO_BINDTOIFINDEX: libc::c_int = 62;

/// A listening socket of this thread's namespace, dual stack where the namespace has IPv6.
///
/// It is bound to loopback only: connections reach it through `sk_lookup`, with the address that the
/// client dialled. Answering from such an address is what makes it transparent. `port` is used if it
/// is free, any other if not: nothing depends on it.
///
/// # Errors
/// When the kernel refuses.
pub fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    // The mapped form: a socket bound to `::1` would be IPv6 only, whatever its options say.
    let loopback = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let v6 = || listen_at(SocketAddrV6::new(loopback, port, 0, 0).into());
    let v4 = || listen_at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into());
    match v6() {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && port != 0 => listen(0),
        Err(_) => v4(),
        Ok(listener) => Ok(listener),
    }
}

fn listen_at(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    set_transparent(&socket, address.ip())?;
    // The listeners of all workers, and of an agent that takes over, share the port.
    socket.set_reuse_port(true)?;
    // An accepted connection holds the port that the client dialled, in the pod's namespace; an
    // application that binds that port with SO_REUSEADDR, as servers do, shall not be in its way.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects from inside a pod's namespace, as the pod would, without capture.
///
/// # Errors
/// What connecting said, or `TimedOut` after `timeout`.
pub async fn dial(netns: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = netns.with(|| new_socket(to))??;
    connect(socket, to, timeout).await
}

/// Connects to the pod's application over the pod's `lo`, with `client` as source address if it
/// can be used: the application sees who called.
///
/// The client's port is kept where that is free, so that it may differ from the real one. A client of
/// the other address family or with one of the pod's own addresses is not imitated.
///
/// # Errors
/// What connecting said, or `TimedOut` after `timeout`.
pub async fn leg(
    netns: &Netns,
    client: SocketAddr,
    keep_port: bool,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    if client.ip() == to.ip() || client.is_ipv4() != to.is_ipv4() || client.ip().is_loopback() {
        return dial(netns, to, timeout).await;
    }
    let mut port = if keep_port {
        client.port()
    } else {
        random_leg_port()
    };
    for attempt in 1.. {
        let socket = netns.with(|| new_leg(client.ip(), port, to))?;
        let result = match socket {
            Ok(socket) => connect(socket, to, timeout).await,
            Err(error) => Err(error),
        };
        match result {
            // The four-tuple is taken or in TIME_WAIT: another source port is as good.
            Err(error) if is_taken(&error) && attempt < LEG_ATTEMPTS => port = random_leg_port(),
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

fn random_leg_port() -> u16 {
    rand::random_range(LEG_PORTS)
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

fn new_leg(client: IpAddr, port: u16, to: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(to)?;
    // Replies to the client's address come back over `lo` because the application's socket takes
    // over the mark (tcp_fwmark_accept).
    socket.set_mark(APP_MARK)?;
    set_transparent(&socket, client)?;
    set(
        &socket,
        libc::SOL_SOCKET,
        SO_BINDTOIFINDEX,
        LOOPBACK_IFINDEX.cast_signed(),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(client, port).into())?;
    Ok(socket)
}

/// Options of every connection that the agent makes or accepts.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_TIME)
        .with_retries(KEEPALIVE_RETRIES);
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
