//! A far side that says nothing any more: its node has lost power, or the network between has. An application that
//! does not wait long for one notices with a mesh as it does without, and one that waits is not cut off. Row 19.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, PodSpec};
use socket2::{SockRef, TcpKeepalive};

use crate::support::{Failures, World, both_ends, changing_world, wait_encrypted};

/// Longer than an idle tunnel takes to find its peer silent: 10 s until it asks, 20 s for the answer.
const CUT: Duration = Duration::from_secs(33);
/// The kernel sends again after 51 s for the eighth time.
const AGAIN: Duration = Duration::from_secs(60);
/// The user's time-out. Keepalive is set to one second of idleness and two probes, a second apart.
const USER_TIMEOUT: Duration = Duration::from_secs(2);
/// Timers of the kernel are late by some milliseconds, and one end's may be less late than another's.
const TIMERS: Duration = Duration::from_millis(250);
/// A worker looks twice a second, and one of the machine's two processors may be somebody else's for a while.
const LATER: Duration = Duration::from_secs(4);

/// The link between the nodes, as a cable that somebody has pulled: packets vanish.
struct Pulled<'l>(&'l Lab);

impl<'l> Pulled<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        let rules = "table inet pulled { chain cable { type filter hook forward priority -500; policy drop; }; }";
        nft(lab, &[rules])?;
        Ok(Self(lab))
    }
}

impl Drop for Pulled<'_> {
    fn drop(&mut self) {
        nft(self.0, &["delete", "table", "inet", "pulled"]).unwrap();
    }
}

fn nft(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(arguments);
    let output = lab.node("n2")?.run(|| command.output())??;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Which end waits, and what it has set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waits {
    /// `TCP_USER_TIMEOUT` on the client, which sends.
    UserTimeout,
    /// `SO_KEEPALIVE` on the client.
    ClientProbes,
    /// `SO_KEEPALIVE` on the server.
    ServerProbes,
}

impl Waits {
    const ALL: [Self; 3] = [Self::UserTimeout, Self::ClientProbes, Self::ServerProbes];

    fn set(self, socket: &TcpStream) -> Result<()> {
        let socket = SockRef::from(socket);
        if self == Self::UserTimeout {
            return Ok(socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?);
        }
        let second = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new().with_time(second).with_interval(second);
        Ok(socket.set_tcp_keepalive(&keepalive.with_retries(2))?)
    }
}

/// One connection on which somebody waits; the other end is held open.
struct Waiting {
    what: String,
    waits: Waits,
    own: TcpStream,
    _other: TcpStream,
}

fn waiting(world: &World, mesh: &str, waits: Waits, from: &str, to: &str) -> Result<Waiting> {
    let (client, server) = both_ends(&world.pod(from)?, &world.pod(to)?)?;
    round(&client, &server)?;
    let (own, other) = match waits {
        Waits::ServerProbes => (server, client),
        _ => (client, server),
    };
    waits.set(&own)?;
    own.set_read_timeout(Some(CUT))?;
    Ok(Waiting {
        what: format!("{mesh}, {waits:?}"),
        waits,
        own,
        _other: other,
    })
}

/// A byte there and a byte back.
fn round(mut client: &TcpStream, mut server: &TcpStream) -> Result<()> {
    let mut byte = [0];
    client.write_all(b"x")?;
    server.read_exact(&mut byte)?;
    server.write_all(b"y")?;
    Ok(client.read_exact(&mut byte)?)
}

/// How long after the cable was pulled an end is told, and what.
fn told(mut waiting: Waiting, pulled: Instant) -> JoinHandle<(Waiting, Duration, ErrorKind)> {
    thread::spawn(move || {
        if waiting.waits == Waits::UserTimeout {
            waiting.own.write_all(b"into the void").unwrap();
        }
        let mut byte = [0];
        let error = waiting.own.read(&mut byte).unwrap_err();
        (waiting, pulled.elapsed(), error.kind())
    })
}

#[test]
fn a_silent_far_side_is_noticed_as_without_a_mesh_and_never_earlier() -> Result<()> {
    let world = changing_world()?;
    world.create(&PodSpec::new("plain", "far", "n2"))?;
    // An idle tunnel of their own would be probed by nobody.
    wait_encrypted(&world, &world.pod("mesh/a")?, &world.pod("mesh/c")?)?;
    let patient = both_ends(&world.pod("mesh/a")?, &world.pod("mesh/c")?)?;
    let sending = both_ends(&world.pod("mesh/a")?, &world.pod("mesh/c")?)?;
    for (client, server) in [&patient, &sending] {
        round(client, server)?;
        for end in [client, server] {
            end.set_read_timeout(Some(AGAIN))?;
        }
    }
    let mut all = Vec::new();
    for waits in Waits::ALL {
        for (mesh, from, to) in [
            ("without a mesh", "plain/p", "plain/far"),
            ("between two nodes", "mesh/a", "mesh/c"),
            ("from outside the mesh", "plain/p", "mesh/c"),
        ] {
            all.push(waiting(&world, mesh, waits, from, to)?);
        }
    }
    // So that what was sent is known to have arrived.
    thread::sleep(Duration::from_millis(1200));
    let mut failures = Failures::default();
    {
        let _pulled = Pulled::new(&world)?;
        let pulled = Instant::now();
        let all: Vec<_> = all.into_iter().map(|one| told(one, pulled)).collect();
        (&sending.0).write_all(b"s")?;
        let mut ended = Vec::new();
        for one in all {
            let (waiting, after, kind) = one.join().ok().context("a thread panicked")?;
            println!("{}: {kind} after {after:?}", waiting.what);
            ended.push((waiting, after));
        }
        // The first of each kind is the one without a mesh. A user's time-out runs out when the kernel next looks, which
        // may be some time after it has passed.
        for (waiting, after) in &ended {
            let native = ended.iter().find(|(one, _)| one.waits == waiting.waits);
            let native = native.map_or(CUT, |(_, native)| *native);
            let earliest = match waiting.waits {
                Waits::UserTimeout => USER_TIMEOUT,
                _ => native.saturating_sub(TIMERS),
            };
            let right = *after >= earliest && *after <= native + LATER;
            let said = format!("after {after:?}, without a mesh after {native:?}");
            failures.note(&waiting.what, right.then_some(()).context(said));
        }
        thread::sleep(CUT.saturating_sub(pulled.elapsed()));
    }
    // The two that wait as long as the kernel does have noticed nothing.
    let mut byte = [0];
    let late = (&sending.1).read_exact(&mut byte);
    failures.note("what was sent meanwhile", late.context("read"));
    for (what, (client, server)) in [("idle", &patient), ("sending", &sending)] {
        failures.note(what, round(client, server));
    }
    world.delete_pod("plain/far")?;
    failures.judge(&world)
}
