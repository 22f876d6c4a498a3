//! Who reaches whom: every kind of client and server, near and far, by every kind of address.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use anyhow::{Context as _, Result, ensure};
use lab::{Capture, Pod};
use testkit::Peer;

use crate::support::{
    DECLARED, Failures, World, dial, echo, link, listen_on, round_trip, token, vips, world,
};

/// What the link between the nodes carries of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// Nothing that can be read, and no connection to the server's own port.
    Encrypted,
    /// Every byte.
    Readable,
    /// Nothing: both are on one node.
    Nothing,
}

/// How the client's socket names the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Socket {
    V4,
    V6,
    /// An IPv6 socket that dials an IPv4 address.
    Mapped,
}

/// By what the server is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Vip,
    Headless,
    PodIp,
}

const SOCKETS: [Socket; 3] = [Socket::V4, Socket::V6, Socket::Mapped];
/// No Service has this port.
const UNDECLARED: u16 = 9191;

impl Socket {
    fn choose(self, ips: &[IpAddr]) -> Result<IpAddr> {
        let ip = ips.get(usize::from(self == Self::V6));
        let ip = ip.context("a pod has two addresses")?;
        Ok(self.as_seen(*ip))
    }

    fn as_seen(self, ip: IpAddr) -> IpAddr {
        match (self, ip) {
            (Self::Mapped, IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
            _ => ip,
        }
    }
}

/// One conversation, seen from the client, the server and the wire.
fn converse(
    client: &Pod,
    socket: Socket,
    to: SocketAddr,
    server: &Peer,
    bytes: &[u8],
) -> Result<()> {
    let own = socket.choose(client.ips())?;
    let stream = dial(client, to)?;
    round_trip(&stream, bytes)?;
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?.ip());
    ensure!(peer == to, "getpeername says {peer}");
    ensure!(local == own, "getsockname says {local}, not {own}");
    let seen = server.clients().last().map(|seen| seen.ip().to_canonical());
    ensure!(
        seen == Some(own.to_canonical()),
        "the server saw {seen:?}, not {own}"
    );
    Ok(())
}

fn check(client: &str, server: &str, wire: Wire) -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod(client)?, world.pod(server)?);
    let (declared, undeclared) = (echo(&server, DECLARED)?, echo(&server, UNDECLARED)?);
    let link = link(&world)?;
    let mut failures = Failures::default();
    for socket in SOCKETS {
        let ip = socket.choose(server.ips())?;
        for (by, to, peer) in [
            (By::Vip, (socket.choose(&vips(&server)?)?, 80), &declared),
            (By::Headless, (ip, DECLARED), &declared),
            (By::PodIp, (ip, UNDECLARED), &undeclared),
        ] {
            let bytes = token();
            let went = converse(&client, socket, to.into(), peer, &bytes)
                .and_then(|()| judge_wire(&link, wire, &bytes));
            failures.note(&format!("{socket:?} by {by:?}"), went);
        }
    }
    failures.judge(&world)
}

fn judge_wire(link: &Capture, wire: Wire, bytes: &[u8]) -> Result<()> {
    let readable = link.contains(bytes)?;
    let expected = wire == Wire::Readable;
    ensure!(readable == expected, "readable on the link: {readable}");
    let syns = link.count(|packet| {
        packet.is_syn() && [DECLARED, UNDECLARED].contains(&packet.destination_port)
    });
    ensure!(
        (syns > 0) == expected,
        "{syns} SYN to the server's port on the link"
    );
    Ok(())
}

/// A33: readable before, unreadable with mTLS. A36: who is not in the mesh is reached as ever.
#[test]
fn a_captured_client_reaches_a_captured_server_on_its_node() -> Result<()> {
    check("mesh/a", "mesh/b", Wire::Nothing)
}

/// A33.
#[test]
fn a_captured_client_reaches_a_captured_server_on_another_node_encrypted() -> Result<()> {
    check("mesh/a", "mesh/c", Wire::Encrypted)
}

/// A33, from the other node.
#[test]
fn a_captured_client_on_the_other_node_reaches_a_captured_server_encrypted() -> Result<()> {
    check("mesh/c", "mesh/b", Wire::Encrypted)
}

/// A33, with a server that takes nothing else.
#[test]
fn a_captured_client_reaches_strict_servers() -> Result<()> {
    check("mesh/a", "strict/s", Wire::Nothing)?;
    check("mesh/a", "strict/t", Wire::Encrypted)
}

/// A36.
#[test]
fn a_captured_client_reaches_a_plain_server_on_its_node() -> Result<()> {
    check("mesh/a", "plain/q", Wire::Nothing)
}

/// A36.
#[test]
fn a_captured_client_reaches_a_plain_server_on_another_node() -> Result<()> {
    check("mesh/a", "plain/r", Wire::Readable)
}

/// A37.
#[test]
fn a_plain_client_reaches_a_captured_server_on_its_node() -> Result<()> {
    check("plain/p", "mesh/b", Wire::Nothing)
}

/// A37.
#[test]
fn a_plain_client_reaches_a_captured_server_on_another_node() -> Result<()> {
    check("plain/p", "mesh/c", Wire::Readable)
}

/// A2.
#[test]
fn plain_pods_reach_each_other_as_without_a_mesh() -> Result<()> {
    check("plain/p", "plain/q", Wire::Nothing)?;
    check("plain/p", "plain/r", Wire::Readable)
}

fn check_own_service(world: &World, pod: &Pod) -> Result<()> {
    let server = echo(pod, DECLARED)?;
    let mut failures = Failures::default();
    for socket in SOCKETS {
        let to = SocketAddr::new(socket.choose(&vips(pod)?)?, 80);
        let went = converse(pod, socket, to, &server, &token());
        failures.note(&format!("{} {socket:?}", pod.key()), went);
    }
    failures.judge(world)
}

#[test]
fn a_captured_pod_reaches_itself_through_its_own_service() -> Result<()> {
    let world = world()?;
    for pod in ["mesh/a", "mesh/c", "strict/s"] {
        check_own_service(&world, &world.pod(pod)?)?;
    }
    Ok(())
}

fn check_self(pod: &Pod, ip: IpAddr) -> Result<()> {
    let to = SocketAddr::new(ip, UNDECLARED);
    // A socket that dials its own host talks from the address it dials.
    let stream = dial(pod, to)?;
    round_trip(&stream, &token())?;
    ensure!(stream.peer_addr()? == to, "{:?}", stream.peer_addr());
    ensure!(
        stream.local_addr()?.ip() == ip,
        "getsockname says {:?}",
        stream.local_addr()
    );
    Ok(())
}

/// The same in the mesh and outside it: the addresses that such a connection has without a mesh.
#[test]
fn a_pod_reaches_itself_by_its_own_address_and_by_loopback() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for pod in ["mesh/a", "strict/s", "plain/p"] {
        let pod = world.pod(pod)?;
        let server = echo(&pod, UNDECLARED)?;
        let loopback: [IpAddr; 2] = ["127.0.0.1".parse()?, "::1".parse()?];
        let mapped = Socket::Mapped.choose(pod.ips())?;
        for ip in pod.ips().iter().chain(&loopback).chain([&mapped]) {
            let went = check_self(&pod, *ip).and_then(|()| {
                let seen = server.clients().last().map(|seen| seen.ip().to_canonical());
                ensure!(
                    seen == Some(ip.to_canonical()),
                    "the server saw {seen:?} instead of {ip}"
                );
                Ok(())
            });
            failures.note(&format!("{} to {ip}", pod.key()), went);
        }
    }
    failures.judge(&world)
}

/// A listener of one family does not become one of both.
#[test]
fn a_listener_of_one_family_is_reached_in_that_family_only() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/b"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let v4_only = listen_on(&server, SocketAddr::from(([0, 0, 0, 0], UNDECLARED)))?;
        let _v4_only = Peer::serve(v4_only, testkit::Behaviour::Echo)?;
        let cell = format!("{} to {}", client.key(), server.key());
        let v4 = SocketAddr::new(server.v4()?.into(), UNDECLARED);
        let v6 = SocketAddrV6::new(server.v6()?, UNDECLARED, 0, 0);
        failures.note(&cell, crate::support::expect_echo(&client, v4));
        failures.note(&cell, crate::support::expect_refused(&client, v6.into()));
    }
    failures.judge(&world)
}
