//! `connect` tells the truth: what an application is told of a destination is what it is told without a
//! mesh. Issue 9, rows 15, 16, 19 and 20.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Capture, Lab, Pod, PodSpec};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use testkit::{Behaviour, Peer};
use tests_lab::metrics::decisions;

use crate::support::{
    APPLIES, DECLARED, Failures, addresses, changing_world, dial, echo, fresh_port, round_trip,
    serve, token, vips, world,
};

/// How long a black hole is listened to: longer than any of the lab's answers takes.
const SILENCE: Duration = Duration::from_secs(2);

/// What `connect` says: an error number, or nothing.
fn told(from: &Pod, to: SocketAddr) -> Result<Option<i32>> {
    let said = from.run(|| TcpStream::connect_timeout(&to, SILENCE))?;
    Ok(said.err().map(|error| match error.kind() {
        ErrorKind::TimedOut => libc::ETIMEDOUT,
        _ => error.raw_os_error().unwrap_or(0),
    }))
}

/// Requires that both pods are told the same.
fn same(with: &Pod, without: &Pod, to: SocketAddr) -> Result<()> {
    let (with, without) = (told(with, to)?, told(without, to)?);
    ensure!(
        with == without,
        "{to}: {with:?} with a mesh, {without:?} without"
    );
    Ok(())
}

/// Outside of the mesh, the kernel itself answers.
#[test]
fn outside_the_mesh_connect_says_what_it_says_without_a_mesh() -> Result<()> {
    let world = world()?;
    let (captured, plain) = (world.pod("mesh/a")?, world.pod("plain/p")?);
    let closed = fresh_port();
    let mut destinations = Vec::new();
    for server in ["plain/q", "plain/r"] {
        destinations.extend(addresses(&world.pod(server)?, closed));
    }
    let node = world.node("n2")?;
    for ip in [IpAddr::from(node.v4()), IpAddr::from(node.v6())] {
        destinations.push(SocketAddr::new(ip, closed));
    }
    // Nobody has these, on the pods' own network or anywhere.
    for text in [
        "10.244.1.250",
        "10.244.2.250",
        "192.0.2.1",
        "2001:db8::1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        destinations.push(SocketAddr::new(text.parse()?, closed));
    }
    let mut failures = Failures::default();
    for to in destinations {
        failures.note(&captured.key(), same(&captured, &plain, to));
    }
    failures.judge(&world)
}

/// A server that is not in the mesh sees who called, and from which port.
#[test]
fn a_plain_server_sees_the_clients_own_address_and_port() -> Result<()> {
    let world = world()?;
    let client = world.pod("mesh/a")?;
    let mut failures = Failures::default();
    for server in ["plain/q", "plain/r"] {
        let server = world.pod(server)?;
        let port = fresh_port();
        let _server = serve(&server, port, Behaviour::TellPeer)?;
        for to in addresses(&server, port) {
            let mut stream = dial(&client, to)?;
            let mut seen = String::new();
            stream.read_to_string(&mut seen)?;
            let own = stream.local_addr()?;
            let seen: SocketAddr = seen.trim().parse()?;
            let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
            let result = (seen == own).then_some(());
            let result = result.with_context(|| format!("{seen}, not {own}"));
            failures.note(&format!("{} to {to}", client.key()), result);
        }
    }
    failures.judge(&world)
}

/// An even number: of an odd one the kernel leaves a port out now and then (`__inet_hash_connect`).
const PORTS: usize = 96;

/// As many connections fit between two addresses as without a mesh.
#[test]
fn ephemeral_ports_are_not_halved() -> Result<()> {
    let world = changing_world()?;
    let server = world.pod("plain/r")?;
    // Pods that nobody has called: the agent's legs hold ports of their clients.
    let with = world.create(&PodSpec::new("mesh", "dials", "n1"))?;
    let without = world.create(&PodSpec::new("plain", "dials", "n1"))?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let count = |client: &Pod| -> Result<usize> {
        client.run(|| -> Result<usize> {
            let setting = "/proc/sys/net/ipv4/ip_local_port_range";
            let before = std::fs::read_to_string(setting)?;
            std::fs::write(setting, "47001 47096")?;
            let mut open = Vec::new();
            let ended = loop {
                let stream = TcpStream::connect(to).map_err(anyhow::Error::from);
                match stream.and_then(|stream| round_trip(&stream, b"x").map(|()| stream)) {
                    Ok(stream) if open.len() < PORTS => open.push(stream),
                    Ok(_) => break "all ports are used twice".to_owned(),
                    Err(error) => break format!("{error:#}"),
                }
            };
            std::fs::write(setting, before)?;
            println!("{} connections, then: {ended}", open.len());
            Ok(open.len())
        })?
    };
    let counts = count(&with).and_then(|with| Ok((with, count(&without)?)));
    for pod in [&with, &without] {
        world.delete_pod(&pod.key())?;
    }
    let (with, without) = counts?;
    ensure!(with >= without, "{with} with a mesh, {without} without");
    Ok(())
}

/// What is left alone is in the list, in the metrics and in the log, with its bytes.
#[test]
fn what_is_left_alone_is_told_of() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("plain/r")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let live = dial(&client, to)?;
    round_trip(&live, &[7; 1000])?;
    let listed = || -> Result<Option<Value>> {
        let all = world.agent_json("n1", "/connections")?;
        let all = all.as_array().cloned().unwrap_or_default();
        let destination = Value::from(to.to_string());
        Ok(all
            .into_iter()
            .find(|one| one.pointer("/destination/addr") == Some(&destination)))
    };
    let found = testkit::eventually("the connection is listed", APPLIES, || {
        let one = listed()?.context("not listed")?;
        ensure!(one["request_bytes"] == 1000, "{one}");
        Ok(one)
    })?;
    let source = Value::from(live.local_addr()?.to_string());
    for (pointer, expected) in [
        ("/direction", Value::from("outbound")),
        ("/security", Value::from("none")),
        ("/source/addr", source),
        ("/destination/workload", Value::from("r")),
        ("/response_bytes", Value::from(1000)),
    ] {
        let is = found.pointer(pointer);
        ensure!(is == Some(&expected), "{pointer}: {is:?}, not {expected}");
    }
    drop(live);
    testkit::eventually("its end is in the log", APPLIES, || {
        let log = world.agent_log("n1");
        let line = log
            .lines()
            .find(|line| line.contains("connection closed") && line.contains(&to.to_string()));
        let line = line.context("no line")?;
        ensure!(line.contains("bytes_recv=1000"), "{line}");
        Ok(())
    })?;
    ensure!(listed()?.is_none(), "still listed");
    Ok(())
}

/// A pod that a server is dialled in by is captured for its clients from the moment that it is.
#[test]
fn a_destination_that_becomes_captured_is_left_alone_no_longer() -> Result<()> {
    let world = changing_world()?;
    world.apply("newly.yaml", &tests_lab::namespace("newly", &[]))?;
    let client = world.pod("mesh/a")?;
    let server = world.create(&PodSpec::new("newly", "server", "n2").service_account("server"))?;
    let result = flips(&world, &client, &server);
    world.delete_pod(&server.key())?;
    world.delete("newly.yaml")?;
    result
}

fn flips(lab: &Lab, client: &Pod, server: &Pod) -> Result<()> {
    let port = fresh_port();
    let _echo = echo(server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let native = || -> Result<f64> { decisions(lab, "n1", "outbound_native") };
    for on in [true, false, true] {
        let value = on.then_some("enabled");
        lab.label_namespace("newly", "keelson.io/mesh", value)?;
        let what = if on {
            crate::support::wait_encrypted
        } else {
            crate::support::wait_readable
        };
        what(lab, client, server)?;
        let before = native()?;
        for _ in 0..5 {
            round_trip(&dial(client, to)?, &token())?;
        }
        let left_alone = native()? - before;
        ensure!(
            left_alone == if on { 0.0 } else { 5.0 },
            "captured: {on}, left alone: {left_alone}"
        );
    }
    Ok(())
}

/// A pod without an address of a family is told so at once, and nothing leaves. Row 16.
#[test]
fn a_family_that_the_pod_lacks_is_unreachable_and_nothing_leaves() -> Result<()> {
    let world = changing_world()?;
    for (name, ip) in [("four", "10.244.1.240"), ("six", "fd00:10:244:1::241")] {
        let ip: IpAddr = ip.parse()?;
        let client = world.create(&PodSpec::new("mesh", name, "n1").ips(&[ip]))?;
        let result = lacks_a_family(&world, &client, ip.is_ipv4());
        world.delete_pod(&client.key())?;
        result.with_context(|| format!("{name} has {ip} only"))?;
    }
    Ok(())
}

fn lacks_a_family(lab: &Lab, client: &Pod, has_v4: bool) -> Result<()> {
    let port = fresh_port();
    let mut destinations = Vec::new();
    let mut servers = Vec::new();
    for name in ["mesh/c", "mesh/b", "plain/r", "plain/q"] {
        let server = lab.pod(name)?;
        destinations.extend(addresses(&server, port));
        destinations.extend(vips(&server)?.map(|vip| SocketAddr::new(vip, 80)));
        servers.push(echo(&server, port)?);
        servers.push(echo(&server, DECLARED)?);
    }
    for far in ["192.0.2.1:9", "[2001:db8::1]:9"] {
        destinations.push(far.parse()?);
    }
    destinations.retain(|to| to.is_ipv4() != has_v4);
    let unreachable = Some(libc::ENETUNREACH);
    testkit::eventually("the pod is captured", APPLIES, || {
        let before = decisions(lab, "n1", "outbound_no_family")?;
        for to in &destinations {
            ensure!(told(client, *to)? == unreachable, "{to}");
        }
        let refused = decisions(lab, "n1", "outbound_no_family")? - before;
        ensure!(refused > 0.0, "the hook has refused nothing");
        Ok(())
    })?;
    let node = lab.node("n1")?;
    let interface = Capture::start(node.netns(), client.host_interface())?;
    let link = crate::support::link(lab)?;
    let accepted = || servers.iter().map(Peer::accepted).sum::<u64>();
    let before = accepted();
    for to in &destinations {
        let said = told(client, *to)?;
        ensure!(said == unreachable, "{to}: {said:?}");
    }
    for (place, capture) in [("the pod's interface", &interface), ("the link", &link)] {
        let counts = capture.counts();
        ensure!(counts.lost + counts.not_kept == 0, "{place}: {counts:?}");
        let ours = capture.count(|packet| {
            let ends = [packet.source, packet.destination];
            ends.iter().any(|ip| client.ips().contains(ip))
                || destinations.iter().any(|to| ends.contains(&to.ip()))
        });
        ensure!(ours == 0, "{ours} packets on {place}");
    }
    ensure!(accepted() == before, "a server was reached");
    Ok(())
}

/// What applications with two addresses do: the first that works is used.
#[test]
fn happy_eyeballs_find_the_address_that_works() -> Result<()> {
    let world = world()?;
    let (client, good) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let listener = good.run(|| std::net::TcpListener::bind(("0.0.0.0", port)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            // A client that has gone needs no answer.
            drop(answer(stream));
        }
    });
    let refusing = world.pod("plain/r")?.v6()?;
    for bad in ["2001:db8::1".to_owned(), refusing.to_string()] {
        let resolve = format!("x.test:{port}:[{bad}],{}", good.v4()?);
        for _ in 0..40 {
            let mut curl = Command::new("curl");
            curl.args(["-s", "-o", "/dev/null", "-m", "8", "--resolve", &resolve]);
            curl.arg(format!("http://x.test:{port}/"));
            let output = client.output(curl)?;
            ensure!(output.status.success(), "{bad}: {output:?}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        if length == 0 {
            return Ok(());
        }
        request.extend(part.iter().take(length));
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

/// That a far application refuses is told in the words of its own agent. Row 19.
#[test]
fn a_far_application_that_refuses_is_told_apart() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    for to in addresses(&server, fresh_port()) {
        crate::support::expect_refused(&client, to)?;
        let destination = Value::from(to.to_string());
        testkit::eventually("both agents say so", APPLIES, || {
            for node in ["n1", "n2"] {
                let all = world.agent_json(node, "/refusals")?;
                let all = all.as_array().cloned().unwrap_or_default();
                let one = all
                    .iter()
                    .find(|one| one.pointer("/destination/addr") == Some(&destination));
                let one = one.with_context(|| format!("{node} does not list {to}"))?;
                ensure!(one["reason"] == "application_refused", "{node}: {one}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// An urgent byte arrives in its place among the others. Row 17.
#[test]
fn an_urgent_byte_of_a_carried_connection_is_not_lost() -> Result<()> {
    let world = world()?;
    for (client, server) in [("mesh/a", "mesh/c"), ("plain/p", "mesh/b")] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let (near, mut far) = crate::support::both_ends(&client, &server)?;
        let near = Socket::from(near);
        for (part, urgent) in [(b"abc".as_slice(), false), (b"U", true), (b"xyz", false)] {
            let sent = if urgent {
                near.send_out_of_band(part)?
            } else {
                near.send(part)?
            };
            ensure!(sent == part.len(), "{sent} bytes sent");
            let mut got = vec![0; part.len()];
            far.read_exact(&mut got)
                .with_context(|| format!("{} to {}: {part:?}", client.key(), server.key()))?;
            ensure!(got == part, "{got:?} instead of {part:?}");
        }
    }
    Ok(())
}

/// What is sent before an urgent byte and after it arrives as well, in order, and waits for nothing that is still to be
/// sent; in both directions, through a tunnel, through the agent without one, and directly. Row 17.
#[test]
fn nothing_waits_behind_an_urgent_byte() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in [
        ("mesh/a", "mesh/c"),
        ("plain/p", "mesh/b"),
        ("mesh/a", "mesh/b"),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let (near, far) = crate::support::both_ends(&client, &server)?;
        crate::support::patient(&near)?;
        let name = format!("{} to {}", client.key(), server.key());
        for (direction, from, to) in [("there", &near, &far), ("back", &far, &near)] {
            // A direct connection is the kernel's own, and so is what it does with an urgent byte.
            SockRef::from(to).set_out_of_band_inline(true)?;
            let all = (0..50).try_for_each(|_| urgent(from, to));
            failures.note(&format!("{name} {direction}"), all);
        }
    }
    failures.judge(&world)
}

/// Sends bytes with an urgent one among them and requires all that was sent, before anything else is.
fn urgent(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let socket = SockRef::from(from);
    for (before, after) in [("abc", ""), ("", "xyz"), ("abc", "xyz"), ("", "")] {
        // Held back until the urgent byte takes it along, so that both arrive at once.
        socket.send_with_flags(before.as_bytes(), libc::MSG_MORE)?;
        socket.send_out_of_band(b"U")?;
        socket.send(after.as_bytes())?;
        let expected = format!("{before}U{after}");
        let mut got = vec![0; expected.len()];
        let mut to = to;
        to.read_exact(&mut got)
            .with_context(|| format!("waiting for {expected}"))?;
        ensure!(got == expected.as_bytes(), "{got:?} instead of {expected}");
    }
    Ok(())
}

/// What is carried keeps its source address, and its port's class. Row 20.
#[test]
fn a_carried_connection_keeps_the_class_of_its_port() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server, through_service) in [
        ("mesh/a", "mesh/c", false),
        ("plain/p", "mesh/b", false),
        ("mesh/a", "plain/r", true),
    ] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let _server = serve(&server, DECLARED, Behaviour::TellPeer)?;
        let to = if through_service {
            SocketAddr::new(vips(&server)?[0], 80)
        } else {
            SocketAddr::new(server.v4()?.into(), DECLARED)
        };
        for privileged in [true, false] {
            let seen = seen_from(&client, privileged, to);
            let right = seen.and_then(|seen| {
                ensure!(seen.ip() == IpAddr::from(client.v4()?), "{seen}");
                ensure!((seen.port() < 1024) == privileged, "{seen}");
                Ok(())
            });
            failures.note(
                &format!("{} to {to}, privileged: {privileged}", client.key()),
                right,
            );
        }
    }
    failures.judge(&world)
}

/// Whom a server sees that is called from a port that only root may bind, or from another.
fn seen_from(client: &Pod, privileged: bool, to: SocketAddr) -> Result<SocketAddr> {
    let stream = client.run(|| -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if privileged {
            socket.set_reuse_address(true)?;
            let own = (600..1000).find(|port| {
                let own = SocketAddr::from(([0; 4], *port));
                socket.bind(&own.into()).is_ok()
            });
            own.context("no privileged port is free")?;
        }
        socket.connect_timeout(&to.into(), crate::support::PATIENCE)?;
        Ok(socket.into())
    })?;
    let mut stream = stream?;
    crate::support::patient(&stream)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let seen: SocketAddr = text.trim().parse()?;
    Ok(SocketAddr::new(seen.ip().to_canonical(), seen.port()))
}
