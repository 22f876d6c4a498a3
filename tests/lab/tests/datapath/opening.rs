//! `connect` of what the mesh carries: it succeeds when the far listener's kernel has completed the handshake, and says
//! otherwise what it says without a mesh. Issue 9, rows 15, 19 and 27.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod, PodSpec};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use testkit::{Behaviour, Peer};

use crate::support::{
    APPLIES, DECLARED, Failures, PATIENCE, addresses, changing_world, echo, fresh_port, patient,
    round_trip, serve, token, vips, world,
};
use tests_lab::metrics::decisions;

/// How long a black hole is listened to.
const SILENCE: Duration = Duration::from_secs(2);
/// Longer than clients wait until they send a SYN for the third time.
const LONG: Duration = Duration::from_secs(30);

/// A kind of socket.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    /// Between pods of one node, too, this goes through the agent.
    Multipath,
}

impl Kind {
    fn socket(self, to: SocketAddr) -> std::io::Result<Socket> {
        let protocol = match self {
            Self::Plain => Protocol::TCP,
            Self::Multipath => Protocol::from(libc::IPPROTO_MPTCP),
        };
        Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))
    }
}

/// What `connect` says: an error number, or nothing.
fn told(from: &Pod, kind: Kind, to: SocketAddr, patience: Duration) -> Result<Option<i32>> {
    let said = from.run(|| kind.socket(to)?.connect_timeout(&to.into(), patience))?;
    Ok(said.err().map(|error| match error.kind() {
        ErrorKind::TimedOut => libc::ETIMEDOUT,
        _ => error.raw_os_error().unwrap_or(0),
    }))
}

/// A server of the client's own node and one of another, each with the kind of socket for which the agent carries.
const CARRIED: [(&str, Kind); 4] = [
    ("mesh/b", Kind::Multipath),
    ("mesh/c", Kind::Plain),
    ("mesh/c", Kind::Multipath),
    ("strict/t", Kind::Plain),
];

/// Requires that a client of the mesh is told the same everywhere.
fn all_told(
    lab: &Lab,
    patience: Duration,
    expected: Option<i32>,
    port: impl Fn(&Pod) -> Result<u16>,
) -> Result<()> {
    let client = lab.pod("mesh/a")?;
    let mut failures = Failures::default();
    for (server, kind) in CARRIED {
        let server = lab.pod(server)?;
        for to in addresses(&server, port(&server)?) {
            let said = told(&client, kind, to, patience);
            let right = said.and_then(|said| {
                ensure!(said == expected, "{said:?}, not {expected:?}");
                Ok(())
            });
            failures.note(&format!("{kind:?} to {} at {to}", server.key()), right);
        }
    }
    failures.judge(lab)
}

#[test]
fn a_port_on_which_nobody_listens_refuses() -> Result<()> {
    let world = world()?;
    for _ in 0..10 {
        all_told(&world, PATIENCE, Some(libc::ECONNREFUSED), |_| {
            Ok(fresh_port())
        })?;
    }
    Ok(())
}

/// An application whose queue is full: who dials it is neither taken nor refused until it is served.
struct Busy {
    port: u16,
    listener: TcpListener,
    _queued: TcpStream,
}

impl Busy {
    fn new(pod: &Pod) -> Result<Self> {
        let port = fresh_port();
        pod.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(0)?;
            Ok(Self {
                port,
                listener: socket.into(),
                // The queue of a backlog of 0 takes one.
                _queued: TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), PATIENCE)?,
            })
        })?
    }

    /// Takes what is in the queue and what comes.
    fn serve(self, behaviour: Behaviour) -> Result<Peer> {
        Peer::serve(self.listener, behaviour)
    }
}

#[test]
fn who_does_not_answer_is_waited_for() -> Result<()> {
    let world = world()?;
    let servers = ["mesh/b", "mesh/c", "strict/t"];
    let busy: Result<Vec<(String, Busy)>> = servers
        .into_iter()
        .map(|key| Ok((key.to_owned(), Busy::new(&world.pod(key)?)?)))
        .collect();
    let busy = busy?;
    all_told(&world, SILENCE, Some(libc::ETIMEDOUT), |server| {
        let found = busy.iter().find(|(key, _)| *key == server.key());
        found.map(|(_, busy)| busy.port).context("no such server")
    })
}

/// Connects from a pod in a thread of its own.
fn connecting(
    from: &Pod,
    kind: Kind,
    to: SocketAddr,
) -> JoinHandle<Result<std::io::Result<TcpStream>>> {
    let pod = from.clone();
    thread::spawn(move || {
        pod.enter()?;
        let connect = || -> std::io::Result<TcpStream> {
            let socket = kind.socket(to)?;
            socket.connect_timeout(&to.into(), LONG)?;
            Ok(socket.into())
        };
        Ok(connect())
    })
}

/// Waits until a client has sent a SYN again that the agent holds.
fn wait_held_again(lab: &Lab, before: f64) -> Result<()> {
    testkit::eventually("the client asks again", APPLIES, || {
        ensure!(decisions(lab, "n1", "outbound_held_again")? > before);
        Ok(())
    })
}

/// A SYN that is sent again while its connection is being opened is the same SYN.
#[test]
fn a_connection_that_takes_long_is_opened_once() -> Result<()> {
    let world = world()?;
    let client = world.pod("mesh/a")?;
    let mut failures = Failures::default();
    for (server, kind) in CARRIED {
        let server = world.pod(server)?;
        let once = || -> Result<()> {
            let busy = Busy::new(&server)?;
            let to = SocketAddr::new(server.v4()?.into(), busy.port);
            let before = decisions(&world, "n1", "outbound_held_again")?;
            let connecting = connecting(&client, kind, to);
            wait_held_again(&world, before)?;
            let peer = busy.serve(Behaviour::Echo)?;
            let stream = connecting.join().unwrap()??;
            patient(&stream)?;
            round_trip(&stream, &token())?;
            // The one that filled the queue, and ours.
            ensure!(peer.clients().len() == 2, "{:?}", peer.clients());
            Ok(())
        };
        failures.note(&format!("{kind:?} to {}", server.key()), once());
    }
    failures.judge(&world)
}

/// A client that gives up and tries again from the same port gets the second attempt.
#[test]
fn of_two_attempts_with_the_same_ports_the_later_one_counts() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let busy = Busy::new(&server)?;
    let to = SocketAddr::new(server.v4()?.into(), busy.port);
    let own = SocketAddr::new(client.v4()?.into(), fresh_port());
    let attempt = || -> Result<Socket> {
        let socket = Kind::Plain.socket(to)?;
        socket.set_reuse_address(true)?;
        socket.bind(&own.into())?;
        socket.set_nonblocking(true)?;
        let said = socket.connect(&to.into());
        ensure!(
            said.as_ref()
                .is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)),
            "{said:?}"
        );
        Ok(socket)
    };
    let last = client.run(|| {
        for _ in 0..5 {
            drop(attempt()?);
        }
        attempt()
    })??;
    let peer = busy.serve(Behaviour::Echo)?;
    testkit::eventually("the last attempt succeeds", LONG, || {
        if let Some(error) = last.take_error()? {
            anyhow::bail!("{error}");
        }
        Ok(last.peer_addr()?)
    })?;
    last.set_nonblocking(false)?;
    let stream = TcpStream::from(last);
    patient(&stream)?;
    round_trip(&stream, &token())?;
    drop(peer);
    Ok(())
}

/// The agent that has the SYN dies: refused while there is no other, and the next one opens the connection anew.
#[test]
fn a_connection_outlives_the_agent_that_holds_its_syn_or_is_refused() -> Result<()> {
    let world = changing_world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    for successor in [false, true] {
        let busy = Busy::new(&server)?;
        let before = decisions(&world, "n1", "outbound_held")?;
        let to = SocketAddr::new(server.v4()?.into(), busy.port);
        let connecting = connecting(&client, Kind::Plain, to);
        testkit::eventually("the SYN is held", APPLIES, || {
            ensure!(decisions(&world, "n1", "outbound_held")? > before);
            Ok(())
        })?;
        if !successor {
            world.kill_agent("n1")?;
            let said = connecting.join().unwrap()?;
            let said = said.map_err(|error| error.raw_os_error());
            ensure!(
                matches!(said, Err(Some(libc::ECONNREFUSED))),
                "{said:?} without an agent"
            );
            world.start_agent("n1", &AgentOptions::default())?;
            continue;
        }
        // It takes over with the SYN still held.
        let _drains = world.succeed_agent("n1", &AgentOptions::default())?;
        let _peer = busy.serve(Behaviour::Echo)?;
        let stream = connecting.join().unwrap()??;
        patient(&stream)?;
        round_trip(&stream, &token())?;
    }
    Ok(())
}

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-entry, namespace: mesh}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ['PORT']}}]}]
";

#[test]
fn policy_refuses_in_connect() -> Result<()> {
    let world = changing_world()?;
    let port = fresh_port();
    let client = world.pod("mesh/a")?;
    let mut servers = Vec::new();
    for key in ["mesh/b", "mesh/c"] {
        servers.push(serve(&world.pod(key)?, port, Behaviour::Echo)?);
    }
    world.apply("deny.yaml", &DENY.replace("PORT", &port.to_string()))?;
    let refused = || -> Result<()> {
        for (key, kind) in [
            ("mesh/b", Kind::Plain),
            ("mesh/b", Kind::Multipath),
            ("mesh/c", Kind::Plain),
            ("mesh/c", Kind::Multipath),
        ] {
            for to in addresses(&world.pod(key)?, port) {
                let said = told(&client, kind, to, PATIENCE)?;
                ensure!(said == Some(libc::ECONNREFUSED), "{kind:?} {to}: {said:?}");
            }
        }
        Ok(())
    };
    let result = testkit::eventually("policy refuses", APPLIES, refused);
    world.delete("deny.yaml")?;
    result
}

/// A pod that the network has lost, and that the mesh still knows.
#[test]
fn a_pod_that_cannot_be_reached_is_not_connected_to() -> Result<()> {
    let world = changing_world()?;
    let client = world.pod("mesh/a")?;
    let server = world.create(&PodSpec::new("mesh", "lost", "n2"))?;
    let lost = || -> Result<()> {
        crate::support::wait_encrypted(&world, &client, &server)?;
        let mut down = Command::new("ip");
        down.args(["link", "set", "eth0", "down"]);
        let output = server.output(down)?;
        ensure!(output.status.success(), "{output:?}");
        for to in [
            SocketAddr::new(server.v4()?.into(), DECLARED),
            SocketAddr::new(server.v6()?.into(), DECLARED),
        ] {
            let said = told(&client, Kind::Plain, to, SILENCE)?;
            let right = [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH];
            ensure!(
                said.is_some_and(|said| right.contains(&said)),
                "{to}: {said:?}"
            );
        }
        Ok(())
    };
    let result = lost();
    world.delete_pod(&server.key())?;
    result
}

#[test]
fn a_service_without_endpoints_refuses() -> Result<()> {
    let world = world()?;
    let client = world.pod("mesh/a")?;
    for ip in crate::support::vip(crate::support::NOBODY)? {
        let said = told(&client, Kind::Plain, SocketAddr::new(ip, 80), PATIENCE)?;
        ensure!(said == Some(libc::ECONNREFUSED), "{ip}: {said:?}");
    }
    Ok(())
}

/// The first address refuses, and so the second one is used: what `nc -z` says is true of both.
#[test]
fn scans_and_happy_eyeballs_are_told_the_truth_of_pods_in_the_mesh() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", port)))??;
    let _echo = Peer::serve(listener, Behaviour::Echo)?;
    let open = SocketAddr::new(server.v4()?.into(), port);
    let closed = SocketAddr::new(server.v6()?.into(), port);
    for _ in 0..40 {
        let stream = client.run(|| TcpStream::connect(&[closed, open][..]))??;
        ensure!(stream.peer_addr()? == open, "{:?}", stream.peer_addr());
        patient(&stream)?;
        round_trip(&stream, &token())?;
    }
    Ok(())
}

/// Data in the SYN arrives once. Nobody takes it from a SYN on the way, so it is sent again.
#[test]
fn data_that_comes_with_the_syn_is_neither_lost_nor_doubled() -> Result<()> {
    /// `TCP_FASTOPEN_NO_COOKIE`, include/uapi/linux/tcp.h.
    const NO_COOKIE: libc::c_int = 34;
    let world = world()?;
    let client = world.pod("mesh/a")?;
    let mut failures = Failures::default();
    for server in ["mesh/b", "mesh/c"] {
        let server = world.pod(server)?;
        let port = fresh_port();
        let _echo = echo(&server, port)?;
        for to in addresses(&server, port) {
            for length in [1, 1000, 100_000] {
                let bytes: Vec<u8> = (0..length).map(|byte: u32| byte as u8).collect();
                let sent = client.run(|| -> Result<TcpStream> {
                    let socket = Kind::Plain.socket(to)?;
                    setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
                    set(&socket, NO_COOKIE, 1)?;
                    socket.connect(&to.into())?;
                    Ok(socket.into())
                })?;
                let went = sent.and_then(|stream| {
                    patient(&stream)?;
                    round_trip(&stream, &bytes)?;
                    stream.shutdown(std::net::Shutdown::Write)?;
                    let mut rest = Vec::new();
                    (&stream).read_to_end(&mut rest)?;
                    ensure!(rest.is_empty(), "{} bytes too many", rest.len());
                    Ok(())
                });
                failures.note(&format!("{length} bytes to {to}"), went);
            }
        }
    }
    failures.judge(&world)
}

#[expect(unsafe_code, reason = "no safe library offers the option")]
fn set(socket: &Socket, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the value outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A pod whose listeners keep no state of what is being opened.
#[test]
fn cookies_instead_of_state_change_nothing() -> Result<()> {
    let world = changing_world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let before = client.netns().read_sysctl("net.ipv4.tcp_syncookies")?;
    client.netns().sysctl("net.ipv4.tcp_syncookies", "2")?;
    let all = || -> Result<()> {
        for to in addresses(&server, port) {
            for _ in 0..20 {
                let stream = crate::support::dial(&client, to)?;
                round_trip(&stream, &token())?;
            }
        }
        Ok(())
    };
    let result = all();
    client
        .netns()
        .sysctl("net.ipv4.tcp_syncookies", before.trim())?;
    result
}

/// What is held is what is carried, and nothing is left of it.
#[test]
fn nothing_stays_held() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let before = decisions(&world, "n1", "outbound_held")?;
    let mut calls = 0.0;
    let [vip, _]: [IpAddr; 2] = vips(&server)?;
    for to in addresses(&server, port)
        .into_iter()
        .chain([SocketAddr::new(server.v4()?.into(), fresh_port())])
        .chain([SocketAddr::new(vip, 81)])
    {
        for _ in 0..10 {
            drop(client.run(|| TcpStream::connect_timeout(&to, PATIENCE))?);
            calls += 1.0;
        }
    }
    let held = decisions(&world, "n1", "outbound_held")? - before;
    ensure!(held >= calls, "{held} held of {calls}");
    let pins = format!("v{}", abi::ABI_VERSION);
    let map = world.bpf_dir("n1").join(pins).join(abi::maps::HELD);
    testkit::eventually("the kernel holds nothing", APPLIES, || {
        let entries = crate::maps::entries(&map)?;
        ensure!(entries.iter().all(|(_, count)| *count == 0), "{entries:?}");
        Ok(())
    })
}

/// Pods of one node without a mesh and with one: who floods, who calls, and whom both dial on the other node.
const FLOODS: [(&str, &str, &str); 2] = [
    ("plain/p", "plain/q", "plain/r"),
    ("mesh/b", "mesh/a", "mesh/c"),
];
/// Threads that connect and reset without end.
const FLOODING: usize = 4;
/// What the neighbour calls meanwhile.
const CALLS: usize = 300;

/// Whoever connects and resets without end waits for itself: each of its neighbour's calls is served.
#[test]
fn a_neighbour_of_a_pod_that_connects_and_resets_without_end_is_served() -> Result<()> {
    let world = world()?;
    for (greedy, neighbour, server) in FLOODS {
        let (greedy, neighbour) = (world.pod(greedy)?, world.pod(neighbour)?);
        let server = world.pod(server)?;
        let port = fresh_port();
        let _echo = echo(&server, port)?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        let mut quiet = call(&neighbour, to)?;
        // The first thread in a pod's cgroup changes its kind, which must not happen twice at once.
        greedy.run(|| ())?;
        let stop = AtomicBool::new(false);
        let (mut times, floods) = thread::scope(|scope| -> Result<_> {
            let flooding: Vec<_> = (0..FLOODING)
                .map(|_| scope.spawn(|| flood(&greedy, to, &stop)))
                .collect();
            let times = call(&neighbour, to);
            stop.store(true, Ordering::Relaxed);
            let mut floods = 0;
            for flood in flooding {
                floods += flood.join().unwrap()?;
            }
            Ok((times?, floods))
        })?;
        for (when, times) in [("alone", &mut quiet), ("in the flood", &mut times)] {
            times.sort();
            let at = |share: usize| times.get(times.len() * share / 100).copied();
            let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
            println!(
                "measured: {} {when}: p50 {p50:?}, p99 {p99:?}",
                neighbour.key()
            );
        }
        println!("measured: {} flooded {floods} times", greedy.key());
        ensure!(floods > 0, "no flood");
    }
    Ok(())
}

fn flood(from: &Pod, to: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    from.run(|| {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let socket = Kind::Plain.socket(to)?;
            socket.set_linger(Some(Duration::ZERO))?;
            // Also one that is refused is one.
            drop(socket.connect(&to.into()));
            count += 1;
        }
        Ok(count)
    })?
}

/// How long each call of an echo takes; all must be answered.
fn call(from: &Pod, to: SocketAddr) -> Result<Vec<Duration>> {
    from.run(|| {
        let each = |_| -> Result<Duration> {
            let (ended, took) = crate::support::attempt_here(to, b"still served?");
            ensure!(
                ended == crate::support::Ended::Answered,
                "{ended:?} after {took:?}"
            );
            Ok(took)
        };
        (0..CALLS).map(each).collect()
    })?
}
