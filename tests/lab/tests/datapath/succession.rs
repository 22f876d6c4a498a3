//! One agent takes over from another that runs: no new connection fails, open ones live until the
//! drain deadline, and whoever ends in the middle leaves the node in one agent's charge.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Capture, CaptureOptions, PodSpec, Process, UPLINK};
use nix::sys::signal::Signal;
use testkit::Peer;

use crate::load::{Client, Load, Served};
use crate::support::{
    APPLIES, Ended, PATIENCE, World, both_ends, changing_world, echo, evidence, expect_echo,
    expect_refused, fresh_port, round_trip, token, vips,
};

/// Connections of one round of the short test, and of the long one.
const SHORT: u64 = 4_000;
const LONG: u64 = 20_000;
/// Longer than what one turn of the tests takes, shorter than anybody's patience.
const DRAIN: Duration = Duration::from_secs(6);

fn agent() -> AgentOptions {
    AgentOptions {
        workers: 2,
        drain_deadline: DRAIN,
        ..AgentOptions::default()
    }
}

/// Starts the agents of both nodes anew with the options of this file.
fn with_agents(world: &World, options: &AgentOptions) -> Result<()> {
    for node in ["n1", "n2"] {
        world.kill_agent(node)?;
        world.start_agent(node, options)?;
    }
    for (from, to) in [("mesh/a", "mesh/c"), ("mesh/c", "mesh/a")] {
        let (from, to) = (world.pod(from)?, world.pod(to)?);
        crate::support::wait_encrypted(world, &from, &to)?;
    }
    Ok(())
}

/// Whom a load connects, each with bytes of its own, and whether those may be read on the link.
struct Traffic {
    clients: Vec<Client>,
    secret: Vec<u8>,
    port: u16,
    _peers: Vec<Peer>,
}

impl Traffic {
    /// Same node and two nodes, by address and by service, both families, and plain neighbours.
    fn new(world: &World) -> Result<Self> {
        let pod = |key: &str| world.pod(key);
        let (port, secret, open) = (fresh_port(), token(), token());
        let mut peers = Vec::new();
        for server in ["mesh/a", "mesh/b", "mesh/c", "strict/t", "plain/r"] {
            peers.push(echo(&pod(server)?, port)?);
            peers.push(echo(&pod(server)?, crate::support::DECLARED)?);
        }
        let v4 = |key: &str| -> Result<SocketAddr> { Ok((pod(key)?.v4()?, port).into()) };
        let v6 = |key: &str| -> Result<SocketAddr> { Ok((pod(key)?.v6()?, port).into()) };
        let vip = |key: &str| -> Result<SocketAddr> {
            let [v4, _] = vips(&pod(key)?)?;
            Ok(SocketAddr::new(v4, 80))
        };
        let client = |key: &str, to: SocketAddr, bytes: &Vec<u8>, counts: bool| -> Result<Client> {
            Ok(Client {
                pod: pod(key)?,
                to,
                bytes: bytes.clone(),
                counts,
            })
        };
        // Those between pods of one node go directly and are many: they do not count.
        let clients = vec![
            client("mesh/a", v4("mesh/c")?, &secret, true)?,
            client("mesh/a", v6("strict/t")?, &secret, true)?,
            client("mesh/b", vip("mesh/c")?, &secret, true)?,
            client("mesh/c", v6("mesh/a")?, &secret, true)?,
            client("strict/t", v4("mesh/b")?, &secret, true)?,
            client("plain/r", v4("mesh/a")?, &open, true)?,
            client("mesh/b", v4("plain/r")?, &open, true)?,
            client("mesh/a", v4("mesh/b")?, &secret, false)?,
            client("mesh/a", vip("mesh/b")?, &secret, false)?,
        ];
        Ok(Self {
            clients,
            secret,
            port,
            _peers: peers,
        })
    }

    /// A capture of the link that looks for what must not be there.
    fn watch(&self, world: &World) -> Result<Capture> {
        let options = CaptureOptions {
            keep: 0,
            needles: vec![self.secret.clone()],
        };
        Capture::start_with(world.node("n1")?.netns(), UPLINK, options)
    }
}

/// What crossed the link while agents changed: none of the captured pods' bytes.
fn judge_link(link: &Capture) -> Result<u64> {
    let counts = link.counts();
    ensure!(counts.lost == 0, "the capture lost {} frames", counts.lost);
    ensure!(
        counts.hits == [0],
        "{:?} packets in the clear of {}",
        counts.hits,
        counts.frames
    );
    Ok(counts.frames)
}

fn judge_load(world: &World, served: &Served, wanted: u64) -> Result<()> {
    ensure!(
        served.failed.is_empty(),
        "{} connections failed of {}:\n{}\n{}",
        served.failed.len(),
        served.total(),
        served
            .failed
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n"),
        evidence(world)
    );
    ensure!(
        served.total() >= wanted,
        "only {} connections",
        served.total()
    );
    tracing::info!(connections = ?served.echoed, "served");
    for (client, echoed) in &served.echoed {
        ensure!(
            *echoed >= wanted / 100,
            "{client}: only {echoed} connections"
        );
    }
    Ok(())
}

fn expect_exit_0(process: &mut Process) -> Result<()> {
    let status = process.wait(DRAIN + Duration::from_secs(15))?;
    let status = status.context("the first agent does not end")?;
    ensure!(status.success(), "the first agent ended with {status}");
    Ok(())
}

/// Both agents are succeeded, one after the other, while all clients connect without pause.
fn check_upgrade(world: &World, options: &AgentOptions, connections: u64) -> Result<()> {
    let traffic = Traffic::new(world)?;
    let link = traffic.watch(world)?;
    let started = Instant::now();
    let load = Load::start(&traffic.clients);
    let mut before = Vec::new();
    for (node, from) in [("n1", connections / 5), ("n2", connections * 3 / 5)] {
        load.wait_for(from)?;
        before.push(world.succeed_agent(node, options)?);
    }
    load.wait_for(connections)?;
    let served = load.stop(started)?;
    for process in &mut before {
        expect_exit_0(process)?;
    }
    judge_load(world, &served, connections)?;
    let frames = judge_link(&link)?;
    tracing::info!(total = served.total(), slowest = ?served.slowest, frames, port = traffic.port, "upgraded");
    #[expect(clippy::print_stdout, reason = "the numbers are what was measured")]
    {
        println!(
            "{} connections ({connections} carried) in {:?}, none failed, the slowest {:?}; {frames} frames on the link, none readable",
            served.total(),
            started.elapsed(),
            served.slowest,
        );
    }
    Ok(())
}

/// A67: a new agent beside the old one, on both nodes, and nobody's connection fails.
#[test]
fn no_new_connection_fails_while_agents_are_succeeded() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    check_upgrade(&world, &agent(), SHORT)
}

/// The same when pods of one node are carried by the agent, and with another number of workers.
#[test]
fn no_new_connection_fails_while_agents_that_carry_everything_are_succeeded() -> Result<()> {
    let world = changing_world()?;
    let mut options = agent();
    options.args = vec!["--same-node".to_owned(), "mtls".to_owned()];
    with_agents(&world, &options)?;
    for workers in [1, 3] {
        options.workers = workers;
        check_upgrade(&world, &options, SHORT).with_context(|| format!("{workers} workers"))?;
    }
    Ok(())
}

/// The same five times with 20,000 connections each; takes minutes.
#[test]
#[ignore = "takes minutes; run it with --ignored"]
fn no_new_connection_of_a_hundred_thousand_fails_while_agents_are_succeeded() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    for round in 1..=5 {
        check_upgrade(&world, &agent(), LONG).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Open connections of the agent that is succeeded go on until its deadline, and end with a reset;
/// those between pods of one node never notice.
#[test]
fn open_connections_live_until_the_drain_deadline_and_direct_ones_do_not_notice() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let pair = |from: &str, to: &str| both_ends(&world.pod(from)?, &world.pod(to)?);
    let proxied = [
        ("out of the node", pair("mesh/a", "mesh/c")?),
        ("into the node", pair("mesh/c", "mesh/a")?),
        ("plain into the node", pair("plain/r", "mesh/a")?),
        ("plain out of the node", pair("mesh/a", "plain/r")?),
    ];
    let direct = pair("mesh/a", "mesh/b")?;
    let talk = |what: &str, (near, far): &(std::net::TcpStream, std::net::TcpStream)| {
        for (from, mut to) in [(near, far), (far, near)] {
            let bytes = token();
            std::io::Write::write_all(&mut &*from, &bytes).context("writing")?;
            let mut back = vec![0; bytes.len()];
            std::io::Read::read_exact(&mut to, &mut back)
                .with_context(|| format!("{what}: reading"))?;
            ensure!(back == bytes, "{what}: other bytes");
        }
        Ok(())
    };
    let mut before = world.succeed_agent("n1", &agent())?;
    let started = Instant::now();
    while started.elapsed() < DRAIN - Duration::from_secs(1) {
        for (what, ends) in &proxied {
            talk(what, ends).with_context(|| format!("{:?} after", started.elapsed()))?;
        }
        talk("direct", &direct)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    expect_exit_0(&mut before)?;
    for (what, (near, far)) in &proxied {
        for mut end in [near, far] {
            end.set_read_timeout(Some(PATIENCE))?;
            let ended = std::io::Read::read(&mut end, &mut [0]);
            let reset = matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset);
            ensure!(reset, "{what}: {ended:?}");
        }
    }
    talk(
        "direct, after the end of the agent that saw it begin",
        &direct,
    )?;
    let log = before.log();
    ensure!(
        log.contains("cut=4"),
        "the log counts what was cut:\n{}",
        evidence(&world)
    );
    let told = "the predecessor has drained";
    ensure!(
        log.contains(told),
        "the successor is told:\n{}",
        evidence(&world)
    );
    Ok(())
}

/// An agent with another kernel contract shares no program and no map with the old one: its own are
/// attached beside, then the old ones detached, and back again. Connections are made all along, the
/// link shows nothing readable, and STRICT refuses whoever has no identity.
#[test]
fn another_version_of_the_kernel_contract_replaces_the_old_one_without_a_window() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let guarded = world.pod("strict/s")?;
    let strict = echo(&guarded, traffic.port)?;
    let stranger = |key: &str| -> Result<Client> {
        Ok(Client {
            pod: world.pod(key)?,
            to: (guarded.v4()?, traffic.port).into(),
            bytes: token(),
            counts: false,
        })
    };
    let direct = both_ends(&world.pod("mesh/a")?, &world.pod("mesh/b")?)?;
    let link = traffic.watch(&world)?;
    let plain = syns(&world, &traffic)?;
    let started = Instant::now();
    let load = Load::start(&traffic.clients);
    let strangers = Load::start(&[stranger("plain/p")?, stranger("plain/r")?]);
    let mut before = Vec::new();
    let mut reached = 0;
    for (version, node) in [(2, "n1"), (2, "n2"), (3, "n1"), (2, "n1")] {
        let mut options = agent();
        // Another cgroup, as another pod has: each must know the other's as an agent's.
        options.cgroup = format!("agent-{}", before.len());
        options.args = vec!["--abi-version".to_owned(), version.to_string()];
        reached += SHORT / 4;
        load.wait_for(reached)?;
        before.push(world.succeed_agent(node, &options)?);
        let attached = programs(&world, node)?;
        ensure!(
            attached == [format!("v{version}")],
            "on {node} programs of {attached:?} decide"
        );
    }
    load.wait_for(reached + SHORT / 4)?;
    let served = load.stop(started)?;
    let refused = strangers.stop(started)?;
    ensure!(
        refused.total() == 0 && strict.accepted() == 0,
        "STRICT was open {} times",
        strict.accepted()
    );
    ensure!(
        refused.failed.len() > 100,
        "too few strangers to say anything"
    );
    for process in &mut before {
        expect_exit_0(process)?;
    }
    judge_load(&world, &served, reached)?;
    let frames = judge_link(&link)?;
    let syns = plain.count(|packet| packet.is_syn() && packet.destination_port == traffic.port);
    let exempt = plain.count(|packet| {
        packet.is_syn()
            && packet.destination_port == traffic.port
            && is_plain(&world, packet.source, packet.destination)
    });
    ensure!(
        syns == exempt,
        "{} SYN of captured pods in the clear",
        syns - exempt
    );
    let (near, far) = &direct;
    std::io::Write::write_all(&mut &*near, b"still there").context("a direct connection")?;
    std::io::Read::read_exact(&mut &*far, &mut [0; 11]).context("a direct connection")?;
    println!(
        "{} connections over 4 changes of version, none failed, the slowest {:?}; {} refused by STRICT; {frames} frames on the link, none readable, {syns} SYN to the port, all of plain pods",
        served.total(),
        served.slowest,
        refused.failed.len(),
    );
    Ok(())
}

/// A dead agent of another version leaves programs that refuse: they go when the new one covers its pods.
#[test]
fn another_version_takes_over_from_a_dead_agent() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let link = traffic.watch(&world)?;
    let Client { pod, to, bytes, .. } = traffic.clients[0].clone();
    for version in ["2", "1"] {
        world.kill_agent("n1")?;
        let mut options = agent();
        options.args = vec!["--abi-version".to_owned(), version.to_owned()];
        world.start_agent("n1", &options)?;
        testkit::eventually("traffic returns", APPLIES, || {
            let (ended, took) = pod.run(|| crate::support::attempt_here(to, &bytes))?;
            ensure!(ended == Ended::Echoed, "{ended:?} after {took:?}");
            Ok(())
        })
        .with_context(|| evidence(&world))?;
        let attached = programs(&world, "n1")?;
        ensure!(attached == [format!("v{version}")], "{attached:?} decide");
    }
    judge_link(&link)?;
    Ok(())
}

/// The versions whose programs decide about connections on a node.
fn programs(world: &World, node: &str) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for dir in std::fs::read_dir(world.bpf_dir(node))? {
        let dir = dir?;
        let links = std::fs::read_dir(dir.path().join("links"))?;
        let decides = links.filter_map(Result::ok).any(|link| {
            !link
                .file_name()
                .to_string_lossy()
                .starts_with("getpeername")
        });
        if decides {
            versions.push(dir.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(versions)
}

/// A capture of the link whose packets are kept.
fn syns(world: &World, traffic: &Traffic) -> Result<Capture> {
    let options = CaptureOptions {
        keep: 512 << 20,
        needles: vec![traffic.secret.clone()],
    };
    Capture::start_with(world.node("n1")?.netns(), UPLINK, options)
}

/// Whether one end of a packet is a pod outside the mesh.
fn is_plain(world: &World, source: std::net::IpAddr, destination: std::net::IpAddr) -> bool {
    ["plain/p", "plain/q", "plain/r"]
        .iter()
        .filter_map(|key| world.pod(key).ok())
        .any(|pod| pod.ips().contains(&source) || pod.ips().contains(&destination))
}

/// Kubernetes' way with `maxSurge`: the old one is asked to stop as soon as there is a new one, ready
/// or not. It waits for it.
#[test]
fn an_agent_that_is_asked_to_stop_waits_for_a_successor_that_gets_ready() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let link = traffic.watch(&world)?;
    let (started, load) = (Instant::now(), Load::start(&traffic.clients));
    load.wait_for(SHORT / 4)?;
    let mut successor = world.spawn_agent("n1", &agent())?;
    let heard = || {
        Ok(world
            .agent_log("n1")
            .contains("gets ready to succeed this one"))
    };
    lab::wait_until("the successor is heard of", APPLIES, heard)?;
    let mut before = world.release_agent("n1")?;
    before.signal(Signal::SIGTERM)?;
    world.wait_in_charge("n1", &mut successor)?;
    drop(world.adopt_agent("n1", successor));
    load.wait_for(SHORT)?;
    let served = load.stop(started)?;
    expect_exit_0(&mut before)?;
    judge_load(&world, &served, SHORT)?;
    judge_link(&link)?;
    Ok(())
}

/// Pods that start while nobody enrols wait for the one or the other, and get an answer.
#[test]
fn pods_that_start_during_a_succession_are_captured() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let names: Vec<String> = (0..6).map(|number| format!("late-{number}")).collect();
    let mut before = std::thread::scope(|scope| -> Result<Process> {
        let creating = scope.spawn(|| -> Result<()> {
            for name in &names {
                world.create(&PodSpec::new("mesh", name, "n1"))?;
            }
            Ok(())
        });
        let before = world.succeed_agent("n1", &agent())?;
        creating.join().unwrap()?;
        Ok(before)
    })?;
    let port = fresh_port();
    let far = world.pod("mesh/c")?;
    let _echo = echo(&far, port)?;
    for name in &names {
        let key = format!("mesh/{name}");
        let enrolment = world.enrolment(&key).context("announced")?;
        ensure!(enrolment.capture == "captured", "{key}: {enrolment:?}");
        let pod = world.pod(&key)?;
        expect_echo(&pod, (far.v4()?, port).into())?;
        world.delete(&PodSpec::new("mesh", name, "n1").file_name())?;
    }
    expect_exit_0(&mut before)
}

/// Without a successor: refused at once, open connections go on until the deadline, the pins stay, and
/// a new agent need not wait for the end of the old one.
#[test]
fn an_agent_that_stops_refuses_and_a_new_one_need_not_wait_for_its_end() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to: SocketAddr = (server.v4()?, port).into();
    let open = crate::support::dial(&client, to)?;
    let link = crate::support::link(&world)?;
    let mut before = world.release_agent("n1")?;
    before.signal(Signal::SIGTERM)?;
    lab::wait_until("it refuses", PATIENCE, || {
        Ok(expect_refused(&client, to).is_ok())
    })?;
    for _ in 0..20 {
        expect_refused(&client, to)?;
        round_trip(&open, &token()).context("an open connection")?;
    }
    ensure!(
        link.syns_from(client.v4()?.into()) == 0,
        "a SYN in the clear"
    );
    ensure!(
        before.exited()?.is_none(),
        "it has ended although a connection is open"
    );
    world.start_agent("n1", &agent())?;
    testkit::eventually("traffic returns", APPLIES, || expect_echo(&client, to))
        .with_context(|| evidence(&world))?;
    ensure!(
        before.exited()?.is_none(),
        "the new one waited for the old one"
    );
    round_trip(&open, &token()).context("an open connection beside a new agent")?;
    expect_exit_0(&mut before)
}

/// One successor at a time; one that cannot get ready gives up by itself, and says why.
#[test]
fn a_second_successor_is_turned_away_and_one_that_cannot_get_ready_gives_up() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let (started, load) = (Instant::now(), Load::start(&traffic.clients));
    let pid = world.agent_pid("n1");
    let mut unconfigured = agent();
    let state = tempfile::tempdir()?;
    unconfigured.args = [
        "--controller",
        "https://127.0.0.1:1",
        "--takeover-timeout",
        "4s",
        "--state-dir",
        &state.path().display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    let mut first = world.spawn_agent("n1", &unconfigured)?;
    let heard = || {
        Ok(world
            .agent_log("n1")
            .contains("gets ready to succeed this one"))
    };
    lab::wait_until("the first successor is heard of", APPLIES, heard)?;
    let mut second = world.spawn_agent("n1", &agent())?;
    let ended = second.wait(PATIENCE)?.context("the second waits")?;
    ensure!(!ended.success(), "{ended}");
    let ended = first.wait(APPLIES)?.context("the first waits for ever")?;
    ensure!(!ended.success(), "{ended}");
    let log = world.agent_log("n1");
    for text in [
        "is already about to take over",
        "missing: configuration from the controller",
        "the successor gave up; this agent stays in charge",
    ] {
        ensure!(
            log.contains(text),
            "no word of {text:?}\n{}",
            evidence(&world)
        );
    }
    ensure!(world.agent_pid("n1") == pid, "another agent is in charge");
    let served = load.stop(started)?;
    judge_load(&world, &served, 1)
}

/// Killed at any moment of the succession, the successor leaves the old one in charge or, if it was
/// through, a node that refuses until there is a new agent. Nothing is readable, STRICT stays shut.
#[test]
fn a_successor_that_dies_in_the_middle_opens_nothing() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let (client, to) = (&traffic.clients[0].pod, traffic.clients[0].to);
    let guarded = world.pod("strict/s")?;
    let strict = echo(&guarded, traffic.port)?;
    let stranger = Client {
        pod: world.pod("plain/p")?,
        to: (guarded.v4()?, traffic.port).into(),
        bytes: token(),
        counts: false,
    };
    let link = traffic.watch(&world)?;
    let started = Instant::now();
    let load = Load::start(&traffic.clients);
    let strangers = Load::start(&[stranger]);
    let (mut stayed, mut replaced) = (0, 0);
    for step in 0..14_u64 {
        let mut successor = world.spawn_agent("n1", &agent())?;
        // From its first steps until after it has taken over.
        std::thread::sleep(Duration::from_millis(100 + 60 * step));
        successor.kill()?;
        let in_charge = || -> Result<bool> {
            let page = world.agent_json("n1", "/config_dump")?;
            let pid = page.get("pid").and_then(serde_json::Value::as_i64);
            Ok(pid == world.agent_pid("n1").map(i64::from))
        };
        if in_charge().unwrap_or(false) {
            stayed += 1;
        } else {
            replaced += 1;
            drop(world.release_agent("n1")?);
            world.start_agent("n1", &agent())?;
        }
        testkit::eventually("traffic goes on", APPLIES, || expect_echo(client, to))
            .with_context(|| format!("step {step}\n{}", evidence(&world)))?;
    }
    let served = load.stop(started)?;
    drop(strangers.stop(started)?);
    let hung = served
        .failed
        .iter()
        .filter(|failed| failed.contains("Hung"));
    ensure!(hung.count() == 0, "{:?}", served.failed);
    ensure!(
        strict.accepted() == 0,
        "STRICT was open {} times",
        strict.accepted()
    );
    println!(
        "{stayed} times the old one stayed in charge, {replaced} times it had been succeeded; {} connections, {} refused",
        served.total(),
        served.failed.len()
    );
    ensure!(
        stayed > 0,
        "the successor was never early enough to be killed"
    );
    judge_link(&link)?;
    Ok(())
}

/// An agent that hangs is killed by its successor: the node is not stuck with it.
#[test]
fn an_agent_that_hangs_is_killed_and_succeeded() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let (client, to) = (&traffic.clients[0].pod, traffic.clients[0].to);
    let link = traffic.watch(&world)?;
    let mut hung = world.release_agent("n1")?;
    hung.signal(Signal::SIGSTOP)?;
    let mut options = agent();
    options.args = vec!["--takeover-timeout".to_owned(), "2s".to_owned()];
    world.start_agent("n1", &options)?;
    let ended = hung.wait(PATIENCE)?.context("it still hangs")?;
    ensure!(!ended.success(), "{ended}");
    let told = world
        .agent_log("n1")
        .contains("the agent in charge hangs; killing it");
    ensure!(told, "no word of it\n{}", evidence(&world));
    testkit::eventually("traffic returns", APPLIES, || expect_echo(client, to))?;
    judge_link(&link)?;
    Ok(())
}
