//! An agent that does not move, or not as a whole: what it would have to look at is refused at once, and
//! what does not need it goes on.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests_lab::metrics::decisions;

use crate::support::{
    APPLIES, Ended, Failures, REFUSED_WITHIN, addresses, attempt, changing_world, dial, echo,
    evidence, expect_echo, expect_refused, fresh_port, round_trip, token,
};

/// A process that does not move until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn agent(lab: &Lab, node: &str) -> Result<Self> {
        let pid = lab.agent_pid(node).context("no agent runs")?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        Ok(Self(Pid::from_raw(pid)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).unwrap();
    }
}

/// Directly, through the agent, to outside the mesh, and from outside: each is refused at once, and comes
/// back with the agent. What is open between two sockets of the node does not notice.
#[test]
fn an_agent_that_stands_still_refuses_at_once_and_comes_back() -> Result<()> {
    let lab = changing_world()?;
    let port = fresh_port();
    let mut peers = Vec::new();
    let mut cells = Vec::new();
    for (client, server) in [
        ("mesh/a", "mesh/b"),
        ("mesh/a", "mesh/c"),
        ("mesh/a", "plain/r"),
        ("plain/p", "mesh/a"),
        ("plain/r", "mesh/a"),
    ] {
        let (client, server) = (lab.pod(client)?, lab.pod(server)?);
        peers.extend(echo(&server, port));
        cells.extend(
            addresses(&server, port)
                .into_iter()
                .map(|to| (client.clone(), to)),
        );
    }
    for (client, to) in &cells {
        expect_echo(client, *to)?;
    }
    let open = dial(&lab.pod("mesh/a")?, cells[0].1)?;
    let stopped = Stopped::agent(&lab, "n1")?;
    let mut failures = Failures::default();
    for (client, to) in &cells {
        // The worker counts as alive for two seconds after its last word.
        let refused = testkit::eventually("refused", APPLIES, || expect_refused(client, *to));
        failures.note(&format!("{} to {to}", client.key()), refused);
    }
    for (client, to) in &cells {
        for _ in 0..5 {
            let (ended, took) = attempt(client, *to)?;
            let at_once = ended == Ended::Refused && took < REFUSED_WITHIN / 10;
            let went = at_once
                .then_some(())
                .context(format!("{ended:?} in {took:?}"));
            failures.note(&format!("again {} to {to}", client.key()), went);
        }
    }
    failures.note("open and direct", round_trip(&open, &token()));
    drop(stopped);
    for (client, to) in &cells {
        let back = testkit::eventually("served", APPLIES, || expect_echo(client, *to));
        failures.note(&format!("{} to {to} afterwards", client.key()), back);
    }
    for reason in ["outbound_agent_hung", "inbound_agent_hung"] {
        let counted = decisions(&lab, "n1", reason)?;
        failures.note(reason, (counted > 0.0).then_some(()).context("not counted"));
    }
    failures.judge(&lab)
}

/// Both write beats for a while: those of the one that drains say nothing of the one in charge.
#[test]
fn an_agent_that_drains_does_not_cover_for_its_successor_that_stands_still() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    // Keeps the first one until its drain deadline.
    let open = dial(&client, to)?;
    let options = AgentOptions::default();
    let mut first = lab.succeed_agent("n1", &options)?;
    expect_echo(&client, to)?;
    let stopped = Stopped::agent(&lab, "n1")?;
    testkit::eventually("refused", APPLIES, || expect_refused(&client, to))
        .with_context(|| evidence(&lab))?;
    ensure!(first.exited()?.is_none(), "the first agent has ended");
    round_trip(&open, &token()).context("a connection that the first agent carries")?;
    drop(stopped);
    testkit::eventually("served", APPLIES, || expect_echo(&client, to))?;
    first.kill()
}

/// No part of an agent is missing while it looks alive.
#[test]
fn a_thread_or_task_of_the_agent_that_panics_ends_the_agent() -> Result<()> {
    let lab = changing_world()?;
    let mut failures = Failures::default();
    lab.kill_agent("n1")?;
    for (kind, name) in [
        ("thread", "worker-0"),
        ("thread", "direct"),
        ("thread", "enrol"),
        ("thread", "log"),
        ("task", "configuration"),
        ("task", "accept"),
        ("task", "cni"),
    ] {
        let options = AgentOptions {
            env: vec![("KEELSON_TEST_PANIC".to_owned(), name.to_owned())],
            ..AgentOptions::default()
        };
        let mut agent = lab.spawn_agent("n1", &options)?;
        let status = agent.wait(APPLIES)?;
        let aborted = status.is_some_and(|status| status.signal() == Some(Signal::SIGABRT as i32));
        let went = aborted.then_some(()).context(format!("{status:?}"));
        failures.note(name, went);
        let named = agent
            .log()
            .contains(&format!("the {kind} `{name}` has panicked"));
        failures.note(name, named.then_some(()).context("it is not named"));
        agent.kill()?;
    }
    lab.start_agent("n1", &AgentOptions::default())?;
    failures.judge(&lab)
}
