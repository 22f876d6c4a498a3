//! Addresses and ports of a pod stay its applications' own: a proxy that lives in the pod's
//! namespace takes none of them away.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use lab::Pod;
use socket2::{Domain, Socket, Type};
use testkit::{Behaviour, Peer};

use crate::support::{
    Failures, addresses, dial, echo, expect_echo, fresh_port, listen, round_trip, serve, token,
    world,
};

/// Whether a server sets `SO_REUSEADDR` before it binds, as almost all do, but nobody must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Yes,
    No,
}

fn bind(pod: &Pod, address: SocketAddr, reuse: Reuse) -> Result<TcpListener> {
    let socket = pod.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(reuse == Reuse::Yes)?;
        socket.bind(&address.into())?;
        socket.listen(16)?;
        Ok(socket)
    })?;
    let socket = socket.with_context(|| format!("{} on {address}, {reuse:?}", pod.key()))?;
    Ok(socket.into())
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0; 16], port))
}

/// The server closes first, so that its side keeps the connection's memory (TIME-WAIT).
fn told(client: &Pod, to: SocketAddr) -> Result<()> {
    let mut text = String::new();
    dial(client, to)?.read_to_string(&mut text)?;
    ensure!(!text.is_empty(), "{to} said nothing");
    Ok(())
}

/// A server that is restarted at once binds its port again.
#[test]
fn a_restarted_server_gets_its_port_back() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/b"),
        ("plain/p", "mesh/c"),
        ("plain/p", "plain/r"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let first = serve(&server, port, Behaviour::TellPeer)?;
        for to in addresses(&server, port) {
            told(&client, to)?;
        }
        drop(first);
        let again = bind(&server, any(port), Reuse::Yes).map(drop);
        failures.note(&format!("{} and {}", client.key(), server.key()), again);
    }
    failures.judge(&world)
}

/// A server that ends while its clients are connected, and is restarted at once.
#[test]
fn a_server_restarts_while_its_old_connections_live() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/c"),
        ("plain/p", "plain/r"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let first = echo(&server, port)?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        let old = dial(&client, to)?;
        round_trip(&old, &token())?;
        drop(first);
        let went = bind(&server, any(port), Reuse::Yes).and_then(|listener| {
            let _second = Peer::serve(listener, Behaviour::Echo)?;
            expect_echo(&client, to)?;
            round_trip(&old, &token()).context("the old connection")
        });
        failures.note(&format!("{} and {}", client.key(), server.key()), went);
    }
    failures.judge(&world)
}

/// A connection to port 8080 of somebody else takes nothing from the pod's own port 8080.
#[test]
fn a_pod_may_serve_the_port_that_it_is_a_client_of() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("mesh/a", "plain/r"),
        ("plain/p", "plain/r"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let _echo = serve(&server, port, Behaviour::GreetThenEcho(b"hello".to_vec()))?;
        for (own, to) in client.ips().iter().zip(addresses(&server, port)) {
            let mut live = dial(&client, to)?;
            live.read_exact(&mut [0; 5])?;
            for address in [any(port), SocketAddr::new(*own, port)] {
                let bound = bind(&client, address, Reuse::Yes).map(drop);
                failures.note(&format!("{} connected to {to}", client.key()), bound);
            }
            round_trip(&live, &token())?;
        }
    }
    failures.judge(&world)
}

/// A known limit (ARCHITECTURE.md): the agent's end of a carried connection holds the port that was
/// dialled, in the client's own namespace. A server that does not set `SO_REUSEADDR` cannot bind that
/// port while the connection lives. Asserted as it is, so that a change shows.
#[test]
fn without_reuse_a_pod_cannot_serve_the_port_of_its_carried_connection() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let live = dial(&client, SocketAddr::new(server.v4()?.into(), port))?;
    round_trip(&live, &token())?;
    let error = bind(&client, any(port), Reuse::No).expect_err("the limit is gone: say so");
    ensure!(format!("{error:#}").contains("in use"), "{error:#}");
    Ok(())
}

/// The ports from which a pod's clients seem to come are not taken in the pod.
#[test]
fn a_pod_may_serve_the_ports_that_its_clients_come_from() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/c"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let echo = echo(&server, port)?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        let live: Vec<TcpStream> = (0..8).map(|_| dial(&client, to)).collect::<Result<_>>()?;
        for stream in &live {
            round_trip(stream, &token())?;
        }
        for seen in echo.clients() {
            let bound = bind(&server, any(seen.port()), Reuse::Yes).map(drop);
            failures.note(&format!("{} serves {seen}", server.key()), bound);
        }
    }
    failures.judge(&world)
}

/// A port of which a listener exists stays taken.
#[test]
fn two_listeners_do_not_get_one_port() -> Result<()> {
    let world = world()?;
    for pod in ["mesh/a", "plain/p"] {
        let pod = world.pod(pod)?;
        let port = fresh_port();
        let _first = listen(&pod, port)?;
        for reuse in [Reuse::Yes, Reuse::No] {
            let second = bind(&pod, any(port), reuse);
            ensure!(second.is_err(), "{} listens twice, {reuse:?}", pod.key());
        }
    }
    Ok(())
}
