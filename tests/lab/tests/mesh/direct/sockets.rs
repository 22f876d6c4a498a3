//! What an application's own calls say on a direct connection, and what is left alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::mesh::{Mesh, PORT, SERVERS, any_vip, mesh, near_vip, who_answers};
use crate::fixture::{APPLIES, Busy, CALL, Ended, at, exchange, wait_configured};

/// An IPv6 socket may dial an IPv4 address.
fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

/// `getpeername` shows the Service's address, though the kernel talks to the endpoint.
#[test]
fn the_application_sees_the_address_that_it_dialled() -> Result<()> {
    let mesh = mesh()?;
    for dialled in [near_vip(false), near_vip(true), mapped(near_vip(false))] {
        let direct = mesh.decisions("inbound_direct")?;
        let (peer, again) = mesh.client.run(|| -> Result<_> {
            let stream = std::net::TcpStream::connect_timeout(&dialled, CALL)?;
            let peer = stream.peer_addr()?;
            who_answers(dialled)?;
            Ok((peer, stream.try_clone()?.peer_addr()?))
        })??;
        assert_eq!((peer, again), (dialled, dialled));
        assert_eq!(
            mesh.decisions("inbound_direct")? - direct,
            2.0,
            "{dialled} not directly"
        );
    }
    // A socket that is dialled anew forgets what it dialled before.
    let to = mesh.server("one")?;
    let seen = mesh.client.run(|| -> Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.connect_timeout(&near_vip(false).into(), CALL)?;
        disconnect(&socket)?;
        socket.connect_timeout(&to.into(), CALL)?;
        Ok(socket.peer_addr()?.as_socket())
    })??;
    assert_eq!(seen, Some(to));
    Ok(())
}

/// A SYN that the kernel sends again is proved by the same socket, however late it is.
#[test]
fn a_server_with_a_full_queue_takes_a_direct_connection_later() -> Result<()> {
    let mesh = mesh()?;
    let echo = mesh.pod("green/echo")?;
    mesh.wait_direct(&mesh.client, at(echo.v4()?, PORT))?;
    mesh.policies(STRICT)?;
    wait_configured(&mesh, "n1", "istio_converted_static_strict", true)?;
    let (busy, to) = (Busy::new(&echo, 8085)?, at(echo.v4()?, 8085));
    let calling = {
        let client = mesh.client.clone();
        std::thread::spawn(move || -> Result<Ended> {
            let stream =
                client.run(|| std::net::TcpStream::connect_timeout(&to, 6 * APPLIES))??;
            Ok(exchange(&stream, b"at last"))
        })
    };
    busy.wait_dialled(&mesh.client, 5)?;
    let _peer = busy.serve()?;
    assert_eq!(calling.join().unwrap()?, Ended::Answered);
    mesh.clear()
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: green}
spec: {mtls: {mode: STRICT}}
";

/// connect(2) with `AF_UNSPEC` ends a connection and keeps the socket.
fn disconnect(socket: &Socket) -> Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    #[expect(unsafe_code, reason = "no safe library dissolves a connection")]
    // SAFETY: the address outlives the call and is as long as is said.
    let ended = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, 16) };
    ensure!(
        ended == 0,
        "disconnecting: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Answers datagrams with its own name until it is told to stop.
fn answer(pod: &Pod, name: &'static str, stop: &AtomicBool) -> Result<()> {
    let socket = pod.run(|| UdpSocket::bind(("::", 5353)))??;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(name.as_bytes(), from)?;
        }
    }
    Ok(())
}

/// One question to the Service over UDP; the answer has to come from the address that was asked.
fn ask(to: SocketAddr) -> Result<String> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    ensure!(
        socket.peer_addr()? == to,
        "getpeername says {:?}",
        socket.peer_addr()
    );
    socket.set_read_timeout(Some(CALL))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("asking {to}"))?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// UDP to a Service is the node's balancer's: all endpoints answer, and the mesh decides nothing.
#[test]
fn datagrams_to_a_service_are_left_to_the_nodes_balancer() -> Result<()> {
    let mesh = mesh()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut serving = Vec::new();
        for (name, _, _) in SERVERS {
            let pod = mesh.pod(&format!("green/{name}"))?;
            let stop = &stop;
            serving.push(scope.spawn(move || answer(&pod, name, stop)));
        }
        let asked = ask_all(&mesh);
        stop.store(true, Ordering::Relaxed);
        for thread in serving {
            crate::fixture::joined(thread)??;
        }
        asked
    })
}

fn ask_all(mesh: &Mesh) -> Result<()> {
    let decided = |mesh: &Mesh| -> Result<f64> {
        ["outbound_captured", "outbound_direct", "outbound_denied"]
            .iter()
            .map(|reason| mesh.decisions(reason))
            .sum()
    };
    for v6 in [false, true] {
        let vip = SocketAddr::new(any_vip(v6).ip(), 53);
        testkit::eventually("the balancer answers", APPLIES, || {
            mesh.client.run(|| ask(vip))??;
            Ok(())
        })?;
        let before = decided(mesh)?;
        let names = mesh
            .client
            .run(|| (0..200).map(|_| ask(vip)).collect::<Result<BTreeSet<_>>>())??;
        let all: BTreeSet<String> = SERVERS
            .iter()
            .map(|(name, _, _)| (*name).to_owned())
            .collect();
        assert_eq!(names, all);
        assert_eq!(
            decided(mesh)? - before,
            0.0,
            "the mesh decided about datagrams"
        );
    }
    Ok(())
}

/// The congestion control of both ends of a new connection to `to`.
fn both_ends(
    client: &Pod,
    server: &Pod,
    port: u16,
    chosen: [Option<&str>; 2],
) -> Result<[String; 2]> {
    let [at_client, at_server] = chosen;
    let listener = server.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(name) = at_server {
            socket.set_tcp_congestion(name.as_bytes())?;
        }
        socket.bind(&SocketAddr::from(([0_u16; 8], port)).into())?;
        socket.listen(8)?;
        Ok(socket)
    })??;
    let to = at(server.v4()?, port);
    let stream = client.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(name) = at_client {
            socket.set_tcp_congestion(name.as_bytes())?;
        }
        socket.connect_timeout(&to.into(), CALL)?;
        Ok(socket)
    })??;
    let (accepted, _) = listener.accept()?;
    let name = |socket: &Socket| -> Result<String> {
        let name = SockRef::from(socket).tcp_congestion()?;
        Ok(String::from_utf8_lossy(&name)
            .trim_end_matches('\0')
            .to_owned())
    };
    Ok([name(&stream)?, name(&accepted)?])
}

/// Whatever the node's default is, cubic carries a direct connection, unless its application chose.
#[test]
fn both_ends_use_cubic_unless_their_application_chose() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("green/client")?, mesh.pod("green/echo")?);
    let to = at(server.v4()?, PORT);
    let mut routes = Vec::new();
    for pod in [&client, &server] {
        routes.push((pod.netns().read_sysctl(DEFAULT)?, default_route(pod)?));
        pod.netns().sysctl(DEFAULT, "reno")?;
        // The lab's own choice lies in the route, and there it outranks the application.
        let own = default_route(pod)?.replace(" congctl cubic", "");
        ip(pod, &format!("route replace {own}"))?;
    }
    // A pod's default is read when an agent learns of it.
    restart(&mesh)?;
    mesh.wait_direct(&client, to)?;
    let judged = (|| {
        for (port, chosen, expected) in [
            (9301, [None, None], ["cubic", "cubic"]),
            (9302, [Some("bbr"), None], ["bbr", "cubic"]),
            (9303, [None, Some("bbr")], ["cubic", "bbr"]),
        ] {
            let direct = mesh.decisions("inbound_direct")?;
            let found = both_ends(&client, &server, port, chosen)?;
            assert_eq!(
                mesh.decisions("inbound_direct")? - direct,
                1.0,
                "not directly"
            );
            assert_eq!(found, expected, "chosen: {chosen:?}");
        }
        // A connection that is not direct keeps the default: the setting is not the pods'.
        let far = mesh.pod("green/far-echo")?;
        let [at_client, _] = both_ends(&client, &far, 9304, [None, None])?;
        assert_eq!(at_client, "reno", "to the other node");
        anyhow::Ok(())
    })();
    for (pod, (default, route)) in [&client, &server].into_iter().zip(routes) {
        pod.netns().sysctl(DEFAULT, &default)?;
        ip(pod, &format!("route replace {route}"))?;
    }
    restart(&mesh)?;
    mesh.wait_direct(&client, to)?;
    judged
}

const DEFAULT: &str = "net.ipv4.tcp_congestion_control";

/// The pod's IPv4 default route, as `ip` writes it.
fn default_route(pod: &Pod) -> Result<String> {
    ip(pod, "route show default")
}

fn ip(pod: &Pod, arguments: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    let output = pod.output(command)?;
    ensure!(output.status.success(), "ip {arguments}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn restart(lab: &Lab) -> Result<()> {
    lab.stop_agent("n1", Duration::from_secs(40))?;
    let options = AgentOptions {
        args: super::mesh::agent_args(),
        ..AgentOptions::default()
    };
    lab.start_agent("n1", &options)
}
