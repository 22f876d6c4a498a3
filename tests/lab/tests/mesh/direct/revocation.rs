//! A policy that comes to refuse ends the direct connections that are open, and no others.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::Pod;
use socket2::{Domain, Protocol, Socket, Type};
use testkit::{Behaviour, Peer};

use super::mesh::{Mesh, PORT, mesh, repetitions, report, times};
use crate::fixture::{APPLIES, Ended, at, connect, exchange, joined, wait_for};
use tests_lab::metrics::Metrics;

/// Refuses `rival`, whomever it calls.
const NO_RIVAL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-rival, namespace: green}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [rival]}}]}]}
";
/// The same for one port that nobody uses.
const NOT_ON_81: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-on-81, namespace: green}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [rival]}}], to: [{operation: {ports: ['81']}}]}]}
";

/// Connections that an application in the pod holds open.
fn open(mesh: &Mesh, from: &Pod, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let before = mesh.decisions("inbound_direct")?;
    let streams: Vec<TcpStream> = (0..count)
        .map(|_| {
            let stream = connect(from, to)?;
            ensure!(exchange(&stream, b"hello") == Ended::Answered, "at first");
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    let direct = mesh.decisions("inbound_direct")? - before;
    ensure!(
        (direct - count as f64).abs() < 0.5,
        "{direct} of {count} went directly"
    );
    Ok(streams)
}

/// Blocks until the connection is cut; when that was.
fn cut(mut stream: &TcpStream) -> Result<Instant> {
    stream.set_read_timeout(Some(APPLIES))?;
    match stream.read(&mut [0]) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(Instant::now())
        }
        other => bail!("not reset: {other:?}"),
    }
}

/// Changes the policy while `streams` are open; how long each of them lived on.
fn cut_all(mesh: &Mesh, streams: &[TcpStream], policy: &str) -> Result<Vec<Duration>> {
    std::thread::scope(|scope| {
        let waiting: Vec<_> = streams
            .iter()
            .map(|stream| scope.spawn(move || cut(stream)))
            .collect();
        let changed = Instant::now();
        mesh.policies(policy)?;
        let ends: Result<Vec<Instant>> = waiting.into_iter().map(|one| joined(one)?).collect();
        Ok(ends?.into_iter().map(|end| end - changed).collect())
    })
}

/// Connections that the agent of n1 has cut because of policy.
fn policy_cuts(mesh: &Mesh) -> Result<f64> {
    let metrics = Metrics::of_agent(mesh, "n1")?;
    Ok(metrics.sum("keelson_connections_cut_total", &[("reason", "policy")]))
}

/// Multipath TCP survives the end of a path; so it is not talked directly, and its client is told at once.
#[test]
fn a_multipath_connection_that_policy_comes_to_refuse_tells_its_client_at_once() -> Result<()> {
    let mesh = mesh()?;
    let server = mesh.pod("green/echo")?;
    let to = at(server.v4()?, 8086);
    let listener: TcpListener = server.run(|| -> Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.bind(&at([0, 0, 0, 0], to.port()).into())?;
        socket.listen(16)?;
        Ok(socket.into())
    })??;
    let _echo = Peer::serve(listener, Behaviour::Echo)?;
    mesh.wait_direct(&mesh.rival, at(server.v4()?, PORT))?;
    let stream: TcpStream = mesh.rival.run(|| -> Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
        socket.connect_timeout(&to.into(), APPLIES)?;
        Ok(socket.into())
    })??;
    assert_eq!(exchange(&stream, b"hello"), Ended::Answered);
    cut_all(&mesh, &[stream], NO_RIVAL)?;
    mesh.clear()
}

/// Both families, and the neighbour's connections to the same port go on.
#[test]
fn a_direct_connection_that_policy_comes_to_refuse_is_cut_and_its_neighbour_is_not() -> Result<()> {
    let mesh = mesh()?;
    let echo = mesh.pod("green/echo")?;
    for to in [at(echo.v4()?, PORT), at(echo.v6()?, PORT)] {
        mesh.wait_direct(&mesh.rival, to)?;
        mesh.wait_direct(&mesh.client, to)?;
        let kept = open(&mesh, &mesh.client, to, 3)?;
        let refused = open(&mesh, &mesh.rival, to, 3)?;
        // A change that leaves them allowed leaves them alone.
        mesh.policies(NOT_ON_81)?;
        wait_for(&mesh.rival, at(to.ip(), 81), Ended::Refused)?;
        for stream in kept.iter().chain(&refused) {
            assert_eq!(exchange(stream, b"still"), Ended::Answered);
        }
        let lines = mesh.agent_log("n1").lines().count();
        let counted = policy_cuts(&mesh)?;
        cut_all(&mesh, &refused, NO_RIVAL)?;
        lab::wait_until("the cuts are counted", APPLIES, || {
            Ok(policy_cuts(&mesh)? - counted > refused.len() as f64 - 0.5)
        })?;
        let cuts = policy_cuts(&mesh)? - counted;
        assert!((cuts - refused.len() as f64).abs() < 0.5, "{cuts} counted");
        for stream in &kept {
            assert_eq!(exchange(stream, b"and on"), Ended::Answered);
        }
        wait_for(&mesh.rival, to, Ended::Refused)?;
        let told = || {
            let log = mesh.agent_log("n1");
            let told = log.lines().skip(lines).filter(|line| {
                ["policy changed", "green/no-rival", "green/rival"]
                    .iter()
                    .all(|text| line.contains(text))
            });
            told.count()
        };
        // Who logs does not wait for the line to be written.
        let what = "a line for each, with the policy's name";
        lab::wait_until(what, APPLIES, || Ok(told() >= refused.len()))?;
        assert_eq!(told(), refused.len(), "one line for each");
        mesh.clear()?;
        for stream in &kept {
            assert_eq!(exchange(stream, b"to the end"), Ended::Answered);
        }
    }
    Ok(())
}

/// A client that has left the mesh keeps the name by which its open connections were allowed.
#[test]
fn a_direct_connection_of_a_client_that_left_the_mesh_is_under_policy_still() -> Result<()> {
    let mesh = mesh()?;
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    mesh.wait_direct(&mesh.rival, to)?;
    let refused = open(&mesh, &mesh.rival, to, 2)?;
    let is_captured = |captured: bool| {
        lab::wait_until("the rival's state", APPLIES, || {
            let pods = mesh.agent_pods("n1")?;
            let rival = pods.iter().find(|pod| pod["name"] == "rival");
            Ok(rival.is_some_and(|pod| (pod["state"] == "captured") == captured))
        })
    };
    mesh.label_pod("green/rival", "keelson.io/mesh", Some("disabled"))?;
    is_captured(false)?;
    let judged = || -> Result<()> {
        for stream in &refused {
            assert_eq!(exchange(stream, b"still"), Ended::Answered);
        }
        cut_all(&mesh, &refused, NO_RIVAL).map(drop)
    };
    let judged = judged();
    mesh.label_pod("green/rival", "keelson.io/mesh", None)?;
    is_captured(true)?;
    judged
}

/// Many at once, and one after another; how long they lived on is reported.
#[test]
fn many_direct_connections_are_cut_by_one_change() -> Result<()> {
    let mesh = mesh()?;
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    mesh.wait_direct(&mesh.rival, to)?;
    let log = |skip: usize| -> Vec<String> {
        let log = mesh.agent_log("n1");
        log.lines().skip(skip).map(str::to_owned).collect()
    };
    let lines = log(0).len();
    let streams = open(&mesh, &mesh.rival, to, 200)?;
    let crowd = cut_all(&mesh, &streams, NO_RIVAL)?;
    report(
        "200 open connections, policy's file written until cut",
        crowd,
    );
    let ended = || times(log(lines).iter().map(String::as_str), "policy changed");
    let what = "a line for each of them";
    lab::wait_until(what, APPLIES, || Ok(ended().len() >= streams.len()))?;
    report("the same, change at the agent until destroyed", ended());
    let (mut from_file, lines) = (Vec::new(), log(0).len());
    for _ in 0..repetitions(5) {
        mesh.clear()?;
        mesh.wait_direct(&mesh.rival, to)?;
        let one = open(&mesh, &mesh.rival, to, 1)?;
        from_file.extend(cut_all(&mesh, &one, NO_RIVAL)?);
    }
    report("one connection, policy's file written until cut", from_file);
    let of_agent = log(lines);
    let of_agent = times(of_agent.iter().map(String::as_str), "policy changed");
    ensure!(!of_agent.is_empty(), "the agent tells how long it took");
    report("the same, change at the agent until destroyed", of_agent);
    mesh.clear()
}

/// A connection that is being made while policy changes is refused or cut, never left open.
#[test]
fn no_connection_slips_through_while_policy_changes() -> Result<()> {
    let mesh = mesh()?;
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    for _ in 0..repetitions(5).min(20) {
        mesh.clear()?;
        mesh.wait_direct(&mesh.rival, to)?;
        let streams = std::thread::scope(|scope| -> Result<Vec<TcpStream>> {
            let rival = &mesh.rival;
            // Opens and keeps what it gets, until it is refused for good.
            let opening = scope.spawn(move || {
                rival.run(|| {
                    let (start, mut streams, mut refused) = (Instant::now(), Vec::new(), 0);
                    while refused < 50 && start.elapsed() < APPLIES && streams.len() < 4000 {
                        match TcpStream::connect(to) {
                            Ok(stream) => streams.push(stream),
                            Err(_) => refused += 1,
                        }
                    }
                    streams
                })
            });
            mesh.policies(NO_RIVAL)?;
            joined(opening)?
        })?;
        ensure!(!streams.is_empty(), "none was opened before");
        wait_for(&mesh.rival, to, Ended::Refused)?;
        for (number, stream) in streams.iter().enumerate() {
            cut(stream).with_context(|| format!("connection {number} of {}", streams.len()))?;
        }
    }
    mesh.clear()
}
