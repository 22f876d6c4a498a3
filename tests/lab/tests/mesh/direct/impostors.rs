//! A direct connection is proved by its own socket: a packet that claims a neighbour's address proves nothing.
//!
//! That pods cannot send such packets is shown by the datapath's tests of spoofing. Here they are sent
//! from the node itself, where nothing stops them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tests_lab::syn;

use super::mesh::{Mesh, PORT, mesh};
use crate::fixture::{APPLIES, Busy, CALL, Ended, at, exchange};

/// How often a SYN with this source is taken for a direct connection of its owner, and how often for
/// a connection of a client without identity.
fn taken(mesh: &Mesh, source: SocketAddr, to: SocketAddr) -> Result<(f64, f64)> {
    let counts = || -> Result<[f64; 2]> {
        Ok([
            mesh.decisions("inbound_direct")?,
            mesh.decisions("inbound_plaintext")?,
        ])
    };
    let before = counts()?;
    let packet = syn::packet(source, to);
    mesh.node("n1")?.run(|| syn::send(&packet, to))??;
    testkit::eventually("the SYN is decided about", APPLIES, || {
        let [direct, plain] = counts()?;
        let grown = (direct - before[0], plain - before[1]);
        ensure!(grown != (0.0, 0.0), "nothing arrived");
        Ok(grown)
    })
}

fn pairs(mesh: &Mesh) -> Result<[(IpAddr, SocketAddr); 2]> {
    let (client, echo) = (&mesh.client, mesh.pod("green/echo")?);
    Ok([
        (client.v4()?.into(), at(echo.v4()?, PORT)),
        (client.v6()?.into(), at(echo.v6()?, PORT)),
    ])
}

#[test]
fn a_forged_source_address_is_nobody_to_the_server() -> Result<()> {
    let mesh = mesh()?;
    for (stolen, to) in pairs(&mesh)? {
        mesh.wait_direct(&mesh.client, to)?;
        assert_eq!(
            taken(&mesh, SocketAddr::new(stolen, 4711), to)?,
            (0.0, 1.0),
            "{stolen}"
        );
    }
    Ok(())
}

/// Not even the ports of a connection that was direct a moment ago.
#[test]
fn the_note_of_a_connection_serves_that_connection_only() -> Result<()> {
    let mesh = mesh()?;
    for (own, to) in pairs(&mesh)? {
        mesh.wait_direct(&mesh.client, to)?;
        let source = mesh.client.run(|| -> Result<SocketAddr> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::new(own, 0).into())?;
            socket.connect_timeout(&to.into(), CALL)?;
            let source = socket.local_addr()?.as_socket().context("no address")?;
            let stream = socket.into();
            ensure!(exchange(&stream, b"hello") == Ended::Answered, "no answer");
            // Gone at once on both sides, without a state that would answer for it.
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
            Ok(source)
        })??;
        assert_eq!(taken(&mesh, source, to)?, (0.0, 1.0), "{source}");
    }
    Ok(())
}

/// A socket that has given up takes its note with it, though nobody has accepted its connection.
#[test]
fn the_note_of_a_connection_that_was_given_up_serves_nobody() -> Result<()> {
    let mesh = mesh()?;
    let echo = mesh.pod("green/echo")?;
    mesh.wait_direct(&mesh.client, at(echo.v4()?, PORT))?;
    let (busy, to) = (Busy::new(&echo, 8086)?, at(echo.v4()?, 8086));
    let own = mesh.client.v4()?;
    let source = mesh.client.run(|| -> Result<SocketAddr> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&at(own, 0).into())?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&to.into());
        ensure!(begun.is_err(), "the queue was not full");
        socket.local_addr()?.as_socket().context("no address")
    })??;
    assert_eq!(taken(&mesh, source, to)?, (0.0, 1.0), "{source}");
    drop(busy);
    Ok(())
}
