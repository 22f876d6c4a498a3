//! The ways in which applications open sockets: all of them work as without a mesh.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Lab, Pod};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testkit::{Behaviour, Peer};

use crate::support::{
    Failures, PATIENCE, addresses, echo, fresh_port, link, patient, round_trip, serve, token, world,
};

/// Client, server, and whether the link may carry the conversation in the clear.
pub(crate) const PAIRS: [(&str, &str, bool); 6] = [
    ("mesh/a", "mesh/b", false),
    ("mesh/a", "mesh/c", false),
    ("mesh/a", "strict/t", false),
    ("mesh/a", "plain/r", true),
    ("plain/p", "mesh/c", true),
    ("plain/p", "plain/r", true),
];

/// Opens a connection from every kind of client to every kind of server in an unusual way, and
/// requires that it echoes, that both sides see each other's real address, and that the link
/// carries it encrypted where it should.
fn check(open: impl Fn(SocketAddr) -> Result<TcpStream> + Sync) -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, readable) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let echo = echo(&server, port)?;
        for to in addresses(&server, port) {
            let cell = format!("{} to {} at {to}", client.key(), server.key());
            let stream = client.run(|| open(to))?;
            let went = stream
                .and_then(|stream| check_stream(&world, &client, stream, to, &echo, readable));
            failures.note(&cell, went);
        }
    }
    failures.judge(&world)
}

fn check_stream(
    lab: &Lab,
    client: &Pod,
    stream: TcpStream,
    to: SocketAddr,
    echo: &Peer,
    readable: bool,
) -> Result<()> {
    patient(&stream)?;
    let link = link(lab)?;
    let bytes = token();
    round_trip(&stream, &bytes)?;
    ensure!(
        stream.peer_addr()? == to,
        "getpeername says {:?}",
        stream.peer_addr()
    );
    let own = stream.local_addr()?.ip();
    ensure!(client.ips().contains(&own), "getsockname says {own}");
    let seen = echo.clients().last().map(|seen| seen.ip().to_canonical());
    ensure!(
        seen == Some(own),
        "the server saw {seen:?} instead of {own}"
    );
    let is = link.contains(&bytes)?;
    ensure!(readable || !is, "readable on the link");
    Ok(())
}

fn tcp(to: SocketAddr) -> Result<Socket> {
    Ok(Socket::new(Domain::for_address(to), Type::STREAM, None)?)
}

#[test]
fn a_blocking_connect_works() -> Result<()> {
    check(|to| {
        let socket = tcp(to)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    })
}

/// As Go, Node and every event loop do it.
#[test]
fn a_non_blocking_connect_becomes_writable_without_an_error() -> Result<()> {
    check(|to| {
        let socket = tcp(to)?;
        socket.set_nonblocking(true)?;
        connect_and_poll(&socket, to)?;
        socket.set_nonblocking(false)?;
        Ok(socket.into())
    })
}

fn connect_and_poll(socket: &Socket, to: SocketAddr) -> Result<()> {
    match socket.connect(&to.into()) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error).context("connect says neither yes nor EINPROGRESS"),
    }
    let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut waiting, PollTimeout::try_from(PATIENCE)?)?;
    ensure!(ready == 1, "not writable within {PATIENCE:?}");
    match socket.take_error()? {
        None => Ok(()),
        Some(error) => Err(error).context("SO_ERROR"),
    }
}

#[test]
fn a_non_blocking_connect_to_an_unused_port_ends_in_an_error() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        for to in addresses(&server, port) {
            let went = client.run(|| -> Result<()> {
                let socket = tcp(to)?;
                socket.set_nonblocking(true)?;
                if connect_and_poll(&socket, to).is_err() {
                    return Ok(());
                }
                // Accepted first and refused then, as by any proxy: a reset, not an end.
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                match (&socket).read(&mut [0]) {
                    Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok(()),
                    other => bail!("{other:?} instead of a reset"),
                }
            })?;
            failures.note(&format!("{} to {to}", client.key()), went);
        }
    }
    failures.judge(&world)
}

/// The second connection has a cookie and could carry data in its SYN.
#[test]
fn tcp_fast_open_by_connect_works() -> Result<()> {
    for _ in 0..2 {
        check(|to| {
            let socket = tcp(to)?;
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
            // Only now goes the SYN, with what is written.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            (&socket).write_all(b"opening")?;
            expect_bytes(&socket, b"opening")?;
            Ok(socket.into())
        })?;
    }
    Ok(())
}

#[test]
fn tcp_fast_open_by_sendto_works() -> Result<()> {
    for _ in 0..2 {
        check(|to| {
            let socket = tcp(to)?;
            let sent = socket.send_to_with_flags(b"opening", &to.into(), libc::MSG_FASTOPEN)?;
            ensure!(sent == 7, "{sent} bytes sent");
            socket.set_read_timeout(Some(PATIENCE))?;
            expect_bytes(&socket, b"opening")?;
            Ok(socket.into())
        })?;
    }
    Ok(())
}

fn expect_bytes(mut socket: &Socket, expected: &[u8]) -> Result<()> {
    let mut bytes = vec![0; expected.len()];
    socket.read_exact(&mut bytes)?;
    ensure!(bytes == expected, "{bytes:?}");
    Ok(())
}

/// Bound to the interface that leads out of the pod: still captured.
#[test]
fn a_socket_bound_to_eth0_works() -> Result<()> {
    check(|to| {
        let socket = tcp(to)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    })
}

/// Go's listeners and, on request, its dialers speak MPTCP where the kernel can.
#[test]
fn an_mptcp_client_works() -> Result<()> {
    check(|to| {
        let domain = Domain::for_address(to);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    })
}

/// The port of a bound client stays what it has chosen.
#[test]
fn a_socket_bound_to_the_pods_address_and_a_port_works() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, readable) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let echo = echo(&server, port)?;
        for (own, to) in client.ips().iter().zip(addresses(&server, port)) {
            let own = SocketAddr::new(*own, fresh_port());
            let stream = client.run(|| -> Result<TcpStream> {
                let socket = tcp(to)?;
                socket.bind(&own.into())?;
                socket.connect(&to.into())?;
                Ok(socket.into())
            })?;
            let went = stream.and_then(|stream| {
                ensure!(stream.local_addr()? == own, "{:?}", stream.local_addr());
                check_stream(&world, &client, stream, to, &echo, readable)
            });
            failures.note(&format!("{own} to {to}"), went);
        }
    }
    failures.judge(&world)
}

/// One port, two destinations at once: a connection is four numbers, not two.
#[test]
fn two_connections_share_one_bound_port() -> Result<()> {
    let world = world()?;
    let client = world.pod("mesh/a")?;
    let (near, far) = (world.pod("mesh/b")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = (echo(&near, port)?, echo(&far, port)?);
    let own = SocketAddr::new(client.v4()?.into(), fresh_port());
    let mut streams = Vec::new();
    for server in [&near, &far] {
        let to = SocketAddr::new(server.v4()?.into(), port);
        let stream: TcpStream = client.run(|| -> Result<TcpStream> {
            let socket = tcp(to)?;
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            socket.connect(&to.into()).with_context(|| to.to_string())?;
            Ok(socket.into())
        })??;
        patient(&stream)?;
        streams.push(stream);
    }
    for stream in &streams {
        round_trip(stream, &token())?;
    }
    Ok(())
}

/// A socket bound to loopback cannot leave the pod, with or without a mesh.
#[test]
fn a_socket_bound_to_loopback_never_speaks_in_the_clear() -> Result<()> {
    let world = world()?;
    let server = world.pod("mesh/c")?;
    let port = fresh_port();
    let echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let link = link(&world)?;
    let bytes = token();
    for client in ["mesh/a", "plain/p"] {
        let client = world.pod(client)?;
        let went = client.run(|| -> Result<()> {
            let socket = tcp(to)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
            let stream = socket.into();
            patient(&stream)?;
            round_trip(&stream, &bytes)
        })?;
        // The kernel's answer without a mesh is EINVAL; a mesh may do better, not worse.
        if let Err(error) = &went {
            let cause = error.root_cause().downcast_ref::<std::io::Error>();
            let kind = cause.map(std::io::Error::kind);
            ensure!(
                kind != Some(std::io::ErrorKind::TimedOut)
                    && kind != Some(std::io::ErrorKind::WouldBlock),
                "{} hung: {error:#}",
                client.key()
            );
        }
        let strays = echo.clients();
        let strays = strays
            .iter()
            .filter(|seen| seen.ip().to_canonical().is_loopback());
        ensure!(strays.count() == 0, "the server saw a loopback address");
    }
    ensure!(!link.contains(&bytes)?, "readable on the link");
    Ok(())
}

/// A server that speaks first, as SMTP and MySQL do: the client says nothing until greeted.
#[test]
fn a_server_may_speak_first() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    let greeting = b"220 ready".to_vec();
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let _server = serve(&server, port, Behaviour::GreetThenEcho(greeting.clone()))?;
        for to in addresses(&server, port) {
            let went = crate::support::dial(&client, to).and_then(|mut stream| {
                let mut heard = vec![0; greeting.len()];
                stream
                    .read_exact(&mut heard)
                    .context("waiting for the greeting")?;
                ensure!(heard == greeting, "{heard:?}");
                round_trip(&stream, &token())
            });
            failures.note(&format!("{} to {to}", client.key()), went);
        }
    }
    failures.judge(&world)
}

/// A server that says all it has and leaves, while the client only listens.
#[test]
fn a_server_may_speak_and_leave() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let _server = serve(&server, port, Behaviour::TellPeer)?;
        for (own, to) in client.ips().iter().zip(addresses(&server, port)) {
            let went = crate::support::dial(&client, to).and_then(|mut stream| {
                let mut told = String::new();
                stream.read_to_string(&mut told)?;
                let told: SocketAddr = told.parse().with_context(|| told.clone())?;
                ensure!(told.ip().to_canonical() == *own, "it saw {told}");
                Ok(())
            });
            failures.note(&format!("{} to {to}", client.key()), went);
        }
    }
    failures.judge(&world)
}
