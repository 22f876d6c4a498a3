//! The ways in which applications listen: reached as without a mesh, and refused as without a mesh.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use lab::Pod;
use socket2::{Domain, Protocol, Socket, Type};
use testkit::{Behaviour, Peer};

use crate::sockets::PAIRS;
use crate::support::{
    Ended, Failures, addresses, attempt, attempt_here, expect_echo, expect_refused, fresh_port,
    listen_on, world,
};

#[test]
fn an_mptcp_listener_is_reached_and_refuses_when_closed() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    let own = [("mesh/c", "mesh/c", false)];
    for (client, server, _) in PAIRS.into_iter().chain(own) {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let echo = Peer::serve(mptcp_listener(&server, port)?, Behaviour::Echo)?;
        for to in addresses(&server, port) {
            let cell = format!("{} to {to}", client.key());
            failures.note(&cell, expect_echo(&client, to));
        }
        drop(echo);
        for to in addresses(&server, port) {
            let cell = format!("{} to {to} when closed", client.key());
            failures.note(&cell, expect_refused(&client, to));
        }
    }
    failures.judge(&world)
}

fn mptcp_listener(pod: &Pod, port: u16) -> Result<TcpListener> {
    pod.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([0; 16], port)).into())?;
        socket.listen(128)?;
        Ok(socket.into())
    })?
}

/// As a server does that starts its successor before it ends.
#[test]
fn listeners_that_share_a_port_serve_until_the_last_is_closed() -> Result<()> {
    let world = world()?;
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let to = SocketAddr::new(server.v4()?.into(), port);
        let first = Peer::serve(sharing_listener(&server, port)?, Behaviour::Echo)?;
        let second = Peer::serve(sharing_listener(&server, port)?, Behaviour::Echo)?;
        for _ in 0..10 {
            expect_echo(&client, to)?;
        }
        drop(first);
        for _ in 0..10 {
            expect_echo(&client, to).context("one of two listeners closed")?;
        }
        drop(second);
        expect_refused(&client, to)?;
    }
    Ok(())
}

fn sharing_listener(pod: &Pod, port: u16) -> Result<TcpListener> {
    pod.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from(([0; 16], port)).into())?;
        socket.listen(128)?;
        Ok(socket.into())
    })?
}

#[test]
fn a_listener_on_the_pods_address_only_is_reached_there() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        for ip in server.ips() {
            let address = SocketAddr::new(*ip, port);
            let _echo = Peer::serve(listen_on(&server, address)?, Behaviour::Echo)?;
            for to in addresses(&server, port) {
                let cell = format!("{} to {to}, bound to {ip}", client.key());
                let went = if to == address {
                    expect_echo(&client, to)
                } else {
                    expect_refused(&client, to)
                };
                failures.note(&cell, went);
            }
            let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
            let (ended, _) = attempt(&server, SocketAddr::new(loopback, port))?;
            ensure!(
                ended == Ended::Refused,
                "loopback of {}: {ended:?}",
                server.key()
            );
        }
    }
    failures.judge(&world)
}

/// What listens on loopback is for the pod alone, whoever carries its traffic.
#[test]
fn a_listener_on_loopback_only_is_not_reached_from_outside() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, _) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        for (loopback, to) in ["127.0.0.1", "::1"].iter().zip(addresses(&server, port)) {
            let address = SocketAddr::new(loopback.parse()?, port);
            let echo = Peer::serve(listen_on(&server, address)?, Behaviour::Echo)?;
            let cell = format!("{} to {to}", client.key());
            failures.note(&cell, expect_refused(&client, to));
            failures.note(&cell, expect_refused(&server, to));
            ensure!(
                echo.accepted() == 0,
                "{cell}: the application saw a stranger"
            );
            failures.note(&cell, expect_echo(&server, address));
        }
    }
    failures.judge(&world)
}

/// A listener that takes nobody from outside: each refusal makes the agent look at the pod's ports again.
#[test]
fn refusals_without_end_do_not_keep_the_cni_waiting() -> Result<()> {
    let world = world()?;
    let (server, stranger) = (world.pod("mesh/a")?, world.pod("plain/p")?);
    let port = fresh_port();
    let _deaf: TcpListener = server.run(|| -> Result<_> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind_device(Some(b"eth0"))?;
        socket.bind(&SocketAddr::from(([0; 16], port)).into())?;
        socket.listen(128)?;
        Ok(socket.into())
    })??;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let knock = || {
        stranger.run(|| {
            (0..2000)
                .map(|_| attempt_here(to, b"?").0)
                .collect::<Vec<_>>()
        })
    };
    let ends = std::thread::scope(|scope| -> Result<Vec<Ended>> {
        let knocking: Vec<_> = (0..4).map(|_| scope.spawn(knock)).collect();
        while knocking.iter().any(|one| !one.is_finished()) {
            world.agent_pods("n1")?;
        }
        world.agent_pods("n1").context("afterwards")?;
        let ends: Result<Vec<_>> = knocking
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect();
        Ok(ends?.concat())
    })?;
    let let_in = ends.iter().find(|ended| !ended.is_refusal());
    ensure!(let_in.is_none(), "not refused but {let_in:?}");
    Ok(())
}
