//! Agents that are asked to stop, and pods that start meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::{PodSpec, Process};
use nix::sys::signal::Signal;

use super::{SHORT, Traffic, agent, expect_exit_0, judge_link, judge_load, with_agents};
use crate::load::Load;
use crate::support::{
    APPLIES, PATIENCE, changing_world, echo, evidence, expect_echo, expect_refused, fresh_port,
    round_trip, token,
};

/// Where tunnels go to.
const HBONE_PORT: u16 = 15008;

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
    // The other worker may have opened a tunnel before the agent heard of it.
    let source: IpAddr = client.v4()?.into();
    let clear = link.count(|packet| {
        packet.is_syn() && packet.source == source && packet.destination_port != HBONE_PORT
    });
    ensure!(clear == 0, "{clear} SYNs in the clear");
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
