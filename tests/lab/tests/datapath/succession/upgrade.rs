//! Under load one agent takes over from another: no new connection fails, open ones live until the drain
//! deadline.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    DRAIN, LONG, SHORT, Traffic, agent, expect_exit_0, judge_link, judge_load, with_agents,
};
use crate::load::Load;
use crate::support::{APPLIES, PATIENCE, World, both_ends, changing_world, evidence, token};
use lab::AgentOptions;
use tests_lab::metrics::decisions;

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
/// those between pods of one node, and those to who is outside of the mesh, never notice.
#[test]
fn open_connections_live_until_the_drain_deadline_and_direct_ones_do_not_notice() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let pair = |from: &str, to: &str| both_ends(&world.pod(from)?, &world.pod(to)?);
    let proxied = [
        ("out of the node", pair("mesh/a", "mesh/c")?),
        ("into the node", pair("mesh/c", "mesh/a")?),
        ("plain into the node", pair("plain/r", "mesh/a")?),
    ];
    let others = [
        ("direct", pair("mesh/a", "mesh/b")?),
        ("plain out of the node", left_alone(&world)?),
    ];
    let talk = |what: &str, (near, far): &(TcpStream, TcpStream)| {
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
        for (what, ends) in proxied.iter().chain(&others) {
            talk(what, ends).with_context(|| format!("{:?} after", started.elapsed()))?;
        }
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
    for (what, ends) in &others {
        talk(what, ends).context("after the end of the agent that saw it begin")?;
    }
    let log = before.log();
    ensure!(
        log.contains("cut=3"),
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

/// Both ends of a connection out of the mesh that the kernel has left alone, which it does once the agent
/// knows all of the mesh.
fn left_alone(world: &World) -> Result<(TcpStream, TcpStream)> {
    let decided = || decisions(world, "n1", "outbound_native");
    testkit::eventually("what is outside of the mesh is left alone", APPLIES, || {
        let before = decided()?;
        let ends = both_ends(&world.pod("mesh/a")?, &world.pod("plain/r")?)?;
        ensure!(decided()? > before, "it is carried");
        Ok(ends)
    })
}
