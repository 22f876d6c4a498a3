//! Which ports are captured, what an unused one answers, and what is left alone.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use lab::{Capture, Frame, Lab, Pod};

use crate::support::{
    DECLARED, DNS, Ended, Failures, NOBODY, PATIENCE, addresses, attempt, dial, echo, expect_echo,
    expect_refused, judge_refusal, link, round_trip, token, vip, vips, world,
};

/// No Service and no container declares these.
const UNDECLARED: [u16; 7] = [1, 22, 443, 3306, 15_090, 31_999, 65_535];

/// P7, F10: not only ports that somebody declared, as a sidecar would.
#[test]
fn every_port_is_captured_and_encrypted() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let link = link(&world)?;
    let mut failures = Failures::default();
    for port in UNDECLARED {
        let _echo = echo(&server, port)?;
        for to in addresses(&server, port) {
            failures.note(&to.to_string(), speak_encrypted(&link, &client, to));
        }
    }
    failures.judge(&world)
}

/// Talks to an echo and requires that the link carries neither the bytes nor a SYN to the port.
pub(crate) fn speak_encrypted(link: &Capture, client: &Pod, to: SocketAddr) -> Result<()> {
    let syns = || link.count(|packet| packet.is_syn() && packet.destination_port == to.port());
    let before = syns();
    let bytes = token();
    round_trip(&dial(client, to)?, &bytes)?;
    ensure!(!link.contains(&bytes)?, "readable on the link");
    let more = syns() - before;
    ensure!(more == 0, "{more} SYN to port {} on the link", to.port());
    Ok(())
}

/// A6, P7, A35: what no Service lists is under policy too, and mesh clients reach it.
#[test]
fn an_undeclared_port_under_strict_refuses_plaintext_and_serves_the_mesh() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for server in ["strict/s", "strict/t"] {
        let server = world.pod(server)?;
        for port in UNDECLARED {
            let echo = echo(&server, port)?;
            for to in addresses(&server, port) {
                for client in ["plain/p", "plain/r"] {
                    let client = world.pod(client)?;
                    let cell = format!("{} to {to}", client.key());
                    failures.note(&cell, expect_refused(&client, to));
                }
                let client = world.pod("mesh/a")?;
                let mut seen = echo.clients().into_iter();
                let stranger = seen.find(|seen| !client.ips().contains(&seen.ip().to_canonical()));
                ensure!(stranger.is_none(), "{to} accepted {stranger:?}");
                let cell = format!("{} to {to}", client.key());
                failures.note(&cell, expect_echo(&client, to));
            }
        }
    }
    failures.judge(&world)
}

/// A35: by the Service's address as by the pod's.
#[test]
fn a_declared_port_under_strict_refuses_plaintext_by_its_service_too() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for server in ["strict/s", "strict/t"] {
        let server = world.pod(server)?;
        let echo = echo(&server, DECLARED)?;
        for ip in vips(&server)? {
            let to = SocketAddr::new(ip, 80);
            for client in ["plain/p", "plain/r"] {
                let client = world.pod(client)?;
                let cell = format!("{} to {to}", client.key());
                failures.note(&cell, expect_refused(&client, to));
            }
        }
        ensure!(echo.accepted() == 0, "{} accepted plaintext", server.key());
    }
    failures.judge(&world)
}

/// Requires the answer that an unused port gives: at once, and from the kernel for those whose
/// own `connect` is not captured.
fn check_nobody(client: &Pod, to: SocketAddr) -> Result<()> {
    let (ended, took) = attempt(client, to)?;
    judge_refusal(ended, took)?;
    if client.namespace() == "plain" {
        ensure!(ended == Ended::Refused, "{ended:?} instead of ECONNREFUSED");
    }
    Ok(())
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_at_once() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    let clients = ["mesh/a", "mesh/c", "plain/p", "plain/r"];
    let servers = ["mesh/b", "mesh/c", "strict/s", "plain/q", "plain/r"];
    for (client, server) in clients
        .iter()
        .flat_map(|client| servers.map(|s| (*client, s)))
    {
        if client == server {
            continue;
        }
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        for to in addresses(&server, UNUSED) {
            let cell = format!("{} to {} at {to}", client.key(), server.key());
            failures.note(&cell, check_nobody(&client, to));
        }
        for ip in vips(&server)? {
            let to = SocketAddr::new(ip, 80);
            let cell = format!("{} to {}'s service at {to}", client.key(), server.key());
            failures.note(&cell, check_nobody(&client, to));
        }
    }
    failures.judge(&world)
}

/// Nothing listens here in any pod.
const UNUSED: u16 = 6666;

#[test]
fn a_pods_own_unused_port_is_refused_at_once() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for pod in ["mesh/a", "strict/t"] {
        let pod = world.pod(pod)?;
        let loopback = ["127.0.0.1", "::1"].map(|ip| Ok(SocketAddr::new(ip.parse()?, UNUSED)));
        let loopback: Vec<SocketAddr> = loopback.into_iter().collect::<Result<_>>()?;
        for to in addresses(&pod, UNUSED).into_iter().chain(loopback) {
            let cell = format!("{} to {to}", pod.key());
            failures.note(&cell, expect_refused(&pod, to));
        }
    }
    failures.judge(&world)
}

/// A23: an error, never somebody else.
#[test]
fn a_service_without_endpoints_is_refused_at_once() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for client in ["mesh/a", "mesh/c", "strict/s"] {
        let client = world.pod(client)?;
        for ip in vip(NOBODY)? {
            let to = SocketAddr::new(ip, 80);
            let cell = format!("{} to {to}", client.key());
            failures.note(&cell, expect_refused(&client, to));
        }
    }
    failures.judge(&world)
}

#[test]
fn a_port_serves_when_its_listener_comes_and_refuses_when_it_goes() -> Result<()> {
    let world = world()?;
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/c"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        for to in addresses(&server, COMES_AND_GOES) {
            for _ in 0..3 {
                expect_refused(&client, to)?;
                let echo = echo(&server, COMES_AND_GOES)?;
                expect_echo(&client, to)?;
                drop(echo);
            }
            expect_refused(&client, to)?;
        }
    }
    Ok(())
}

const COMES_AND_GOES: u16 = 6667;

/// Binds `[::]:port` in a pod and sends every datagram back.
pub(crate) fn udp_echo(pod: &Pod, port: u16) -> Result<UdpSocket> {
    let socket = pod.run(|| UdpSocket::bind(("::", port)))?;
    let socket = socket.with_context(|| format!("binding UDP port {port}"))?;
    let serving = socket.try_clone()?;
    serving.set_read_timeout(Some(PATIENCE))?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        // Ends when nobody has asked for a while.
        while let Ok((length, peer)) = serving.recv_from(&mut buffer) {
            serving.send_to(&buffer[..length], peer).unwrap();
        }
    });
    Ok(socket)
}

/// A datagram there and back, from the address that was asked.
pub(crate) fn udp_round_trip(client: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.run(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(bytes, to)?;
    let mut back = vec![0; bytes.len() + 1];
    let (length, from) = socket
        .recv_from(&mut back)
        .with_context(|| format!("no answer from {to}"))?;
    ensure!(from == to, "the answer comes from {from}");
    ensure!(back[..length] == *bytes, "another answer");
    Ok(())
}

/// Frames with these bytes, first fragments of IPv6 included.
fn frames_with(link: &Capture, bytes: &[u8]) -> usize {
    let holds = |frame: &Frame| frame.bytes.windows(bytes.len()).any(|part| part == bytes);
    link.frames().iter().filter(|frame| holds(frame)).count()
}

fn check_udp(world: &Lab, client: &Pod, to: SocketAddr, padding: usize) -> Result<()> {
    let link = link(world)?;
    let name = token();
    let mut bytes = name.clone();
    bytes.resize(name.len() + padding, b'.');
    udp_round_trip(client, to, &bytes)?;
    ensure!(
        frames_with(&link, &name) == 2,
        "not there and back on the link"
    );
    Ok(())
}

/// F10: only TCP is captured.
#[test]
fn datagrams_are_left_alone() -> Result<()> {
    let world = world()?;
    let client = world.pod("mesh/a")?;
    let mut failures = Failures::default();
    for server in ["mesh/c", "strict/t", "plain/r"] {
        let server = world.pod(server)?;
        let _echo = (udp_echo(&server, 7000)?, udp_echo(&server, 53)?);
        for port in [7000, 53] {
            for (to, padding) in addresses(&server, port)
                .into_iter()
                .flat_map(|to| [0, 1000, 9000].map(|padding| (to, padding)))
            {
                let cell = format!("{to}, {padding} bytes more");
                failures.note(&cell, check_udp(&world, &client, to, padding));
            }
        }
    }
    failures.judge(&world)
}

/// What a resolver in a pod does: a Service on port 53, UDP and then TCP.
#[test]
fn name_resolution_works_as_without_a_mesh() -> Result<()> {
    let world = world()?;
    let server = world.pod("plain/r")?;
    let _echo = udp_echo(&server, DNS)?;
    for client in ["mesh/a", "strict/s", "plain/p"] {
        let client = world.pod(client)?;
        for ip in vips(&server)? {
            udp_round_trip(&client, SocketAddr::new(ip, 53), &token())
                .with_context(|| client.key())?;
        }
    }
    Ok(())
}

/// TCP and UDP within a pod, on addresses that never leave it.
pub(crate) fn check_loopback(pod: &Pod) -> Result<()> {
    for ip in ["127.0.0.1", "127.8.8.8", "::1"] {
        let ip: std::net::IpAddr = ip.parse()?;
        let listener = pod.run(|| TcpListener::bind((ip, 7001)))??;
        let _echo = testkit::Peer::serve(listener, testkit::Behaviour::Echo)?;
        let to = SocketAddr::new(ip, 7001);
        let stream = dial(pod, to)?;
        round_trip(&stream, &token())?;
        ensure!(stream.peer_addr()? == to, "{to}: {:?}", stream.peer_addr());
        let own = stream.local_addr()?.ip();
        ensure!(own.is_loopback(), "{to}: getsockname says {own}");
    }
    let _echo = udp_echo(pod, 7002)?;
    for ip in ["127.0.0.1", "::1"] {
        udp_round_trip(pod, SocketAddr::new(ip.parse()?, 7002), &token())?;
    }
    Ok(())
}

#[test]
fn loopback_is_left_alone() -> Result<()> {
    let world = world()?;
    for pod in ["mesh/a", "strict/t", "plain/p"] {
        check_loopback(&world.pod(pod)?).with_context(|| pod.to_owned())?;
    }
    Ok(())
}
