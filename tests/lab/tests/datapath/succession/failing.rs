//! Whoever ends or hangs in the middle of a succession leaves the node in one agent's charge.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Traffic, agent, judge_link, judge_load, with_agents};
use crate::load::{Client, Load};
use crate::support::{APPLIES, PATIENCE, changing_world, echo, evidence, expect_echo, token};

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
