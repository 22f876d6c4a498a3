//! A pod that opens more connections than there is room for is refused, and its neighbours are not.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use testkit::{Behaviour, Peer};
use tests_lab::{Shared, service, turn};

use crate::fixture::{
    APPLIES, Ended, at, call, call_here, exchange, joined, mesh_namespace, plain_namespace, pod,
    refusals, serve, wait_for, wait_refusal,
};
use tests_lab::metrics::{Metrics, refused};

/// Connections of all pods of n1 together.
const ROOM: usize = 1000;
/// Connections of one pod of n2.
const PER_POD: usize = 60;
/// As `keelson_connections_refused_total` and the log name it.
const REASON: &str = "pod_connection_limit";

/// A mesh with little room. On n1: `greedy`, `neighbour` and `server`; on n2: `far` and `stranger`, who
/// is not in the mesh.
fn cramped() -> Result<&'static Lab> {
    static LAB: Shared = Shared::new(make);
    static SERVERS: OnceLock<Result<Vec<Peer>, String>> = OnceLock::new();
    let lab = LAB.lab()?;
    let servers = SERVERS.get_or_init(|| {
        let serve = |key| serve(&lab.pod(key)?, 8080, Behaviour::Echo);
        let all: Result<Vec<Peer>> = ["tight/server", "tight/far"]
            .into_iter()
            .map(serve)
            .collect();
        all.map_err(|error| format!("{error:#}"))
    });
    servers.as_ref().map_err(|error| anyhow!("{error}"))?;
    Ok(lab)
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let namespaces = [mesh_namespace("tight"), plain_namespace("out")];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    lab.start_controller(&ControllerOptions::default())?;
    for (node, limit) in [
        ("n1", format!("--max-connections={ROOM}")),
        ("n2", format!("--max-connections-per-pod={PER_POD}")),
    ] {
        let options = AgentOptions {
            args: vec![limit],
            ..AgentOptions::default()
        };
        lab.start_agent(node, &options)?;
    }
    for (namespace, name, node) in [
        ("tight", "greedy", "n1"),
        ("tight", "neighbour", "n1"),
        ("tight", "server", "n1"),
        ("tight", "far", "n2"),
        ("out", "stranger", "n2"),
        ("out", "target", "n2"),
    ] {
        lab.create(&pod(namespace, name, node))?;
    }
    let ports: Vec<_> = (8080..=8084).map(|port| ("TCP", port, port)).collect();
    lab.apply("target.yaml", &service("out", "target", 61, &ports))?;
    Ok(lab)
}

/// The Service of `target`, which is not in the mesh: what goes there is carried, which it would not be by
/// the pod's own address.
const TARGET: [u8; 4] = [10, 96, 0, 61];

/// Half of the room is divided among the three captured pods of n1, the other half is for everybody.
const MOST: usize = ROOM / 2 / 3 + ROOM / 2;

/// Attempts `count` connections and keeps those that are answered; the others must be refused.
fn grab(from: &Pod, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    from.run(|| {
        let mut kept = Vec::new();
        for number in 0..count {
            let stream = match TcpStream::connect(to) {
                // Who has no descriptor left cannot accept what it has opened: a reset, perhaps before
                // connect(2) returns.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
                    ) =>
                {
                    continue;
                }
                other => other.with_context(|| format!("attempt {number}"))?,
            };
            match exchange(&stream, b"mine") {
                Ended::Answered => kept.push(stream),
                Ended::Refused => {}
                ended => anyhow::bail!("attempt {number} ended {ended}"),
            }
        }
        Ok(kept)
    })?
}

/// Calls again and again until it is told to stop; how many were answered and how the others ended.
fn keep_calling(from: &Pod, to: SocketAddr, stop: &AtomicBool) -> Result<(usize, Vec<Ended>)> {
    from.run(|| {
        let (mut answered, mut failed) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            match call_here(to, b"still served?") {
                Ended::Answered => answered += 1,
                other => failed.push(other),
            }
        }
        (answered, failed)
    })
}

/// What the agent of n1 says of the connections that a pod has opened.
fn carried_for(lab: &Lab, pod: &str) -> Result<Vec<serde_json::Value>> {
    let page = lab.agent_json("n1", "/connections")?;
    let all = page.as_array().context("no list")?;
    let of_pod = all.iter().filter(|one| one.to_string().contains(pod));
    Ok(of_pod.cloned().collect())
}

/// Waits until no connection of an earlier test uses any room of n1.
fn wait_empty(lab: &Lab) -> Result<()> {
    testkit::eventually("n1 carries nothing", APPLIES, || {
        let page = lab.agent_json("n1", "/connections")?;
        let carried = page.as_array().context("no list")?;
        ensure!(
            carried.is_empty(),
            "{}: {:#?}",
            carried.len(),
            carried.first()
        );
        Ok(())
    })
}

/// Twenty thousand attempts of one pod, while its neighbour goes on to be served.
#[test]
fn a_pod_that_opens_twenty_thousand_connections_does_not_starve_its_neighbour() -> Result<()> {
    let _turn = turn()?;
    let lab = cramped()?;
    wait_empty(lab)?;
    let (greedy, neighbour) = (lab.pod("tight/greedy")?, lab.pod("tight/neighbour")?);
    // Nobody's pod: n2 has a limit of its own for its pods.
    let target = lab.pod("out/target")?;
    let _echo = serve(&target, 8080, Behaviour::Echo)?;
    let to = at(TARGET, 8080);
    wait_for(&neighbour, to, Ended::Answered)?;
    let before = refused(lab, "n1", REASON)?;
    let lines = lab.agent_log("n1").lines().count();
    let attempts = 20_000;
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (kept, calls) = std::thread::scope(|scope| -> Result<_> {
        let calling = scope.spawn(|| keep_calling(&neighbour, to, &stop));
        let kept = grab(&greedy, to, attempts);
        stop.store(true, Ordering::Relaxed);
        let calls = joined(calling)??;
        Ok((kept?, calls))
    })?;
    let seconds = start.elapsed().as_secs();
    println!(
        "measured: {} of {attempts} kept in {seconds} s, neighbour: {calls:?}",
        kept.len()
    );
    assert_eq!(
        kept.len(),
        MOST,
        "its own share and what pods have in common"
    );
    assert!(
        calls.1.is_empty(),
        "{} calls of the neighbour were answered, the others ended {:?}; what is carried of it: {:#?}",
        calls.0,
        calls.1,
        carried_for(lab, "tight/neighbour")?
    );
    assert!(calls.0 > 0);
    let counted = refused(lab, "n1", REASON)? - before;
    assert_eq!(counted, (attempts - MOST) as f64);
    let log = lab.agent_log("n1");
    let told = log
        .lines()
        .skip(lines)
        .filter(|line| line.contains(REASON))
        .count();
    let seconds = usize::try_from(seconds)?;
    assert!(
        told > 0 && told <= 64 + 4 * (seconds + 2),
        "{told} lines in {seconds} s"
    );
    let page = wait_refusal(lab, "n1", &[REASON, "tight/greedy"])?;
    let text = page["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("--max-connections"),
        "says what would help: {text}"
    );
    // The neighbour's own share is there for it, however many it wants at once.
    let share = grab(&neighbour, to, MOST)?;
    assert_eq!(share.len(), ROOM / 2 / 3);
    drop((kept, share));
    // What has ended gives its room back.
    wait_empty(lab)?;
    testkit::eventually("there is room again", APPLIES, || {
        let again = grab(&greedy, to, MOST)?;
        ensure!(again.len() == MOST, "only {}", again.len());
        Ok(())
    })?;
    wait_empty(lab)
}

/// Of a pod's own share, what others cannot use.
const FOR_OUTBOUND: usize = ROOM / 2 / 3 / 4;

/// What others open to a pod counts as that pod's, encrypted or not.
#[test]
fn connections_to_a_pod_use_that_pods_room() -> Result<()> {
    let _turn = turn()?;
    let lab = cramped()?;
    wait_empty(lab)?;
    let (stranger, far) = (lab.pod("out/stranger")?, lab.pod("tight/far")?);
    let (server, neighbour) = (lab.pod("tight/server")?, lab.pod("tight/neighbour")?);
    let to = at(server.v4()?, 8080);
    wait_for(&stranger, to, Ended::Answered)?;
    wait_for(&far, to, Ended::Answered)?;
    wait_empty(lab)?;
    let kept = grab(&stranger, to, 1500)?;
    // The tunnel of `far` uses some of the server's room itself.
    let (open, most) = (kept.len(), MOST - FOR_OUTBOUND);
    assert!(open <= most && open + 3 >= most, "{open} plain connections");
    let before = refused(lab, "n2", "refused_by_peer")?;
    assert_eq!(call(&far, to)?, Ended::Refused, "through the tunnel");
    assert!(refused(lab, "n2", "refused_by_peer")? > before);
    let told = wait_refusal(lab, "n2", &["refused_by_peer", "--max-connections"])?;
    assert_eq!(told["pod"], "tight/far", "{told:#}");
    // The neighbours have theirs: out of the node and into it.
    let far_at = at(far.v4()?, 8080);
    assert_eq!(call(&neighbour, far_at)?, Ended::Answered);
    // And the server itself has room to dial others.
    let target = lab.pod("out/target")?;
    let _echo = serve(&target, 8083, Behaviour::Echo)?;
    let others = grab(&server, at(TARGET, 8083), FOR_OUTBOUND)?;
    assert_eq!(others.len(), FOR_OUTBOUND);
    drop(others);
    // From pod to pod of one node the agent carries nothing.
    assert_eq!(call(&neighbour, to)?, Ended::Answered, "directly");
    drop(kept);
    wait_for(&stranger, to, Ended::Answered)?;
    wait_for(&far, to, Ended::Answered)?;
    wait_empty(lab)
}

/// Connections to a pod's tunnel port that say nothing: they cost the pod and its neighbours nothing.
#[test]
fn silent_strangers_at_the_tunnel_port_take_nobodys_room() -> Result<()> {
    let _turn = turn()?;
    let lab = cramped()?;
    wait_empty(lab)?;
    let (stranger, far) = (lab.pod("out/stranger")?, lab.pod("tight/far")?);
    let (server, neighbour) = (lab.pod("tight/server")?, lab.pod("tight/neighbour")?);
    let target = lab.pod("out/target")?;
    let _echo = serve(&target, 8084, Behaviour::Echo)?;
    let outside = at(TARGET, 8084);
    wait_for(&neighbour, outside, Ended::Answered)?;
    let before = refused(lab, "n1", "handshake_limit")?;
    let flood = 12_000;
    let tunnel_port = at(server.v4()?, 15008);
    let silent: Vec<TcpStream> = stranger.run(|| {
        let connect = |_| TcpStream::connect_timeout(&tunnel_port, Duration::from_secs(5));
        (0..flood)
            .filter_map(|number| connect(number).ok())
            .collect()
    })?;
    ensure!(silent.len() > flood / 2, "only {} connected", silent.len());
    let share = ROOM / 2 / 3;
    for pod in [&server, &neighbour] {
        let kept = grab(pod, outside, share)?;
        assert_eq!(kept.len(), share, "what {} opens", pod.key());
    }
    let used =
        Metrics::of_agent(lab, "n1")?.sum("keelson_connection_room", &[("kind", "common_used")]);
    assert!(used < 0.5, "{used} of what pods have in common");
    for _ in 0..20 {
        // Whoever has a certificate gets in, by a new tunnel too.
        assert_eq!(call(&far, at(server.v4()?, 8080))?, Ended::Answered);
    }
    testkit::eventually("who says nothing is sent away", APPLIES, || {
        let away = refused(lab, "n1", "handshake_limit")? - before;
        ensure!(away > 0.9 * flood as f64, "{away} of {flood}");
        Ok(())
    })?;
    drop(silent);
    wait_empty(lab)
}

/// A fixed limit holds however much room there is, and the pods beside it have their own.
#[test]
fn a_limit_per_pod_holds_whatever_room_there_is() -> Result<()> {
    let _turn = turn()?;
    let lab = cramped()?;
    let far = lab.pod("tight/far")?;
    let target = lab.pod("out/target")?;
    let _echo = serve(&target, 8081, Behaviour::Echo)?;
    let to = at(TARGET, 8081);
    // Tunnels that others keep to `far` count among its connections.
    let kept = grab(&far, to, 200)?;
    assert!(
        kept.len() <= PER_POD && kept.len() + 5 >= PER_POD,
        "{}",
        kept.len()
    );
    let listed = refusals(lab, "n2")?;
    let told = listed
        .iter()
        .any(|one| one.to_string().contains("--max-connections-per-pod"));
    assert!(told, "{:?}", listed.last());
    drop(kept);
    wait_for(&far, to, Ended::Answered)
}

fn set_limit(pid: i32, limit: usize) -> Result<()> {
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")])
        .status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

fn soft_limit(pid: i32) -> Result<usize> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let value = line.and_then(|line| line.split_whitespace().nth(3));
    Ok(value.context("no limit of open files")?.parse()?)
}

/// Should descriptors run out all the same: refused at once, counted, no processor kept busy, and
/// over as soon as there are some again.
#[test]
fn out_of_descriptors_the_agent_refuses_and_rests() -> Result<()> {
    let _turn = turn()?;
    let lab = cramped()?;
    wait_empty(lab)?;
    let greedy = lab.pod("tight/greedy")?;
    let target = lab.pod("out/target")?;
    let _echo = serve(&target, 8082, Behaviour::Echo)?;
    let to = at(TARGET, 8082);
    wait_for(&greedy, to, Ended::Answered)?;
    let pid = lab.agent_pid("n1").context("no agent")?;
    let (usual, open) = (
        soft_limit(pid)?,
        fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
    );
    // A connection takes two: with one more the last goes to its other half.
    for room in [20, 21] {
        let before = refused(lab, "n1", "no_descriptors")?;
        set_limit(pid, open + room)?;
        let tried = (|| {
            let kept = grab(&greedy, to, 200)?;
            ensure!(
                kept.len() <= room,
                "{} connections with {room} descriptors",
                kept.len()
            );
            // Some wait to be accepted and are not: the time in which a loop would show.
            let start = tests_lab::ticks(pid)?;
            let late: Vec<TcpStream> = greedy.run(|| {
                let all = (0..20).filter_map(|_| TcpStream::connect(to).ok());
                let all = all.collect();
                std::thread::sleep(Duration::from_secs(1));
                all
            })?;
            let spent = tests_lab::ticks(pid)? - start;
            println!("measured: {spent} ticks of 10 ms in one second without descriptors");
            ensure!(spent < 50, "{spent} ticks in one second: a busy loop");
            drop((kept, late));
            Ok(())
        })();
        set_limit(pid, usual)?;
        tried?;
        wait_for(&greedy, to, Ended::Answered)?;
        let counted = refused(lab, "n1", "no_descriptors")? - before;
        println!("measured: {counted} refused for want of descriptors");
        assert!(counted > 100.0, "of 220 attempts with {room} descriptors");
    }
    Ok(())
}
