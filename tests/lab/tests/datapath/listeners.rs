//! The ways in which applications listen: reached as without a mesh, and refused as without a mesh.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod};
use socket2::{Domain, Protocol, Socket, Type};
use testkit::{Behaviour, Peer};
use tests_lab::metrics::metric;

use crate::sockets::PAIRS;
use crate::support::{
    APPLIES, Ended, Failures, PATIENCE, addresses, attempt, attempt_here, changing_world, dial,
    expect_echo, expect_refused, fresh_port, link, listen_on, round_trip, token, world,
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

/// A server that is bound to an interface is reached as without a mesh, sees who calls, and its answers are no
/// plainer than others.
#[test]
fn a_server_that_is_bound_to_its_interface_is_reached() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, readable) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let listener: TcpListener = server.run(|| -> Result<_> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.bind_device(Some(b"eth0"))?;
            socket.bind(&SocketAddr::from(([0; 16], port)).into())?;
            socket.listen(128)?;
            Ok(socket.into())
        })??;
        let echo = Peer::serve(listener, Behaviour::Echo)?;
        for (own, to) in client.ips().iter().zip(addresses(&server, port)) {
            let link = link(&world)?;
            let went = dial(&client, to).and_then(|stream| {
                let bytes = token();
                round_trip(&stream, &bytes)?;
                let seen = echo.clients().last().map(|seen| seen.ip().to_canonical());
                ensure!(seen == Some(*own), "the server saw {seen:?}");
                ensure!(readable || !link.contains(&bytes)?, "readable on the link");
                Ok(())
            });
            failures.note(&format!("{} to {to}", client.key()), went);
        }
        drop(echo);
        for to in addresses(&server, port) {
            let cell = format!("{} to {to} when closed", client.key());
            failures.note(&cell, expect_refused(&client, to));
        }
    }
    failures.judge(&world)
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
    pod.run(|| sharing(port))?
}

/// In the calling thread's namespace.
fn sharing(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from(([0; 16], port)).into())?;
    socket.listen(128)?;
    Ok(socket.into())
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
        // Not for the IPv4 address that is dialled.
        socket.set_only_v6(true)?;
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

/// As a server does that hands its port over to its successor, again and again, on two processors: one
/// listener closes while the next opens, and somebody always listens. The agent compares its count with the
/// sockets all the while, and must not take what is just being counted for wrong.
#[test]
fn a_port_that_is_handed_over_is_always_listened_on() -> Result<()> {
    let lab = changing_world()?;
    let often = AgentOptions {
        args: vec!["--audit-interval".to_owned(), "10ms".to_owned()],
        ..AgentOptions::default()
    };
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &often)?;
    let handed_over = hand_over(&lab);
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    handed_over
}

fn hand_over(lab: &Lab) -> Result<()> {
    let (client, server) = (lab.pod("plain/p")?, lab.pod("mesh/a")?);
    let port = fresh_port();
    let to = SocketAddr::new(server.v4()?.into(), port);
    let mut current = sharing_listener(&server, port)?;
    for round in 0..HANDOVERS {
        current = server.run(|| {
            let together = Barrier::new(2);
            std::thread::scope(|scope| {
                let closing = scope.spawn(|| {
                    together.wait();
                    drop(current);
                });
                together.wait();
                let next = sharing(port);
                closing.join().unwrap();
                next
            })
        })??;
        let connected = client.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        connected.with_context(|| format!("after {round} handovers"))?;
    }
    Ok(())
}

const HANDOVERS: usize = 3000;

/// Whatever has made the count wrong: the sockets that there are decide before long.
#[test]
fn a_count_of_listening_sockets_that_is_wrong_is_put_right() -> Result<()> {
    let lab = changing_world()?;
    let options = AgentOptions {
        args: vec!["--audit-interval".to_owned(), "200ms".to_owned()],
        ..AgentOptions::default()
    };
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &options)?;
    let (client, server) = (lab.pod("plain/p")?, lab.pod("mesh/a")?);
    let (open, closed) = (fresh_port(), fresh_port());
    let _echo = Peer::serve(sharing_listener(&server, open)?, Behaviour::Echo)?;
    let pods = lab.agent_pods("n1")?;
    let pod = pods.iter().find(|pod| pod["name"] == server.name());
    let id = pod.and_then(|pod| pod["pod_id"].as_u64());
    let id = u32::try_from(id.context("not known")?)?;
    let pins = format!("v{}", abi::ABI_VERSION);
    let map = lab.bpf_dir("n1").join(pins).join("LISTENING");
    let write = |port: u16, sockets: i64| -> Result<()> {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&id.to_ne_bytes());
        key[4..6].copy_from_slice(&port.to_ne_bytes());
        key[6..].copy_from_slice(&4_u16.to_ne_bytes());
        crate::maps::fill(&map, std::iter::once(key), &sockets.to_ne_bytes())?;
        Ok(())
    };
    let to = |port| -> Result<SocketAddr> { Ok((server.v4()?, port).into()) };
    let mut failures = Failures::default();
    for sockets in [0, -1, 7] {
        write(open, sockets)?;
        let served =
            testkit::eventually("it is served", APPLIES, || expect_echo(&client, to(open)?));
        failures.note(&format!("{sockets} of an open port"), served);
        write(closed, sockets)?;
        let refused = testkit::eventually("it is refused as without a mesh", APPLIES, || {
            let (ended, _) = attempt(&client, to(closed)?)?;
            ensure!(ended == Ended::Refused, "{ended:?}");
            Ok(())
        });
        failures.note(&format!("{sockets} of a closed port"), refused);
    }
    let labels = [("kind", "listening")];
    let counted = metric(&lab, "n1", "keelson_capture_repaired_total", &labels)?;
    failures.note(
        "counted",
        (counted > 0.0).then_some(()).context("not counted"),
    );
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    failures.judge(&lab)
}
