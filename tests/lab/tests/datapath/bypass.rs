//! Never bypassed: what dies, starts late or cheats gets refused, and the wire shows nothing.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Capture, Lab, Pod};
use testkit::{Behaviour, Peer};

use crate::ports::{check_loopback, speak_encrypted, udp_echo, udp_round_trip};
use crate::support::{
    APPLIES, Ended, Failures, Hammer, PATIENCE, addresses, attempt_here, both_ends, changing_world,
    dial, echo, evidence, expect_echo, expect_refused, fresh_port, judge_refusal, link, round_trip,
    token, vips,
};

/// Within which a captured pod without an agent is told no.
const AT_ONCE: Duration = Duration::from_millis(100);

/// What left a pod by its interface and should not have.
fn judge_silence(pod: &Pod, eth0: &Capture, link: &Capture, bytes: &[u8]) -> Result<()> {
    for ip in pod.ips() {
        let syns = eth0.syns_from(*ip) + link.syns_from(*ip);
        ensure!(syns == 0, "{syns} SYN from {ip}");
    }
    ensure!(!eth0.contains(bytes)?, "readable at the pod");
    ensure!(!link.contains(bytes)?, "readable on the link");
    Ok(())
}

/// A65's other half: without its agent a captured pod is refused at once, wherever it wants to go.
#[test]
fn without_an_agent_new_connections_are_refused_at_once_and_nothing_leaves() -> Result<()> {
    let lab = changing_world()?;
    let client = lab.pod("mesh/a")?;
    let port = fresh_port();
    let mut peers = Vec::new();
    let mut targets = Vec::new();
    for server in ["mesh/b", "mesh/c", "strict/t", "plain/q", "plain/r"] {
        let server = lab.pod(server)?;
        peers.push(echo(&server, port)?);
        targets.extend(addresses(&server, port));
        targets.extend(vips(&server)?.map(|ip| SocketAddr::new(ip, 80)));
    }
    expect_echo(&client, targets[0])?;
    lab.kill_agent("n1")?;
    let served: u64 = peers.iter().map(Peer::accepted).sum();
    let (eth0, link) = (client.capture()?, link(&lab)?);
    let mut failures = Failures::default();
    let bytes = token();
    for to in &targets {
        for _ in 0..10 {
            let inside = client.run(|| attempt_here(*to, &bytes))?;
            let outside = client.run_outside_cgroup(|| attempt_here(*to, &bytes))?;
            for (ended, took) in [inside, outside] {
                let refused = ended == Ended::Refused && took < AT_ONCE;
                let went = refused
                    .then_some(())
                    .context(format!("{ended:?} in {took:?}"));
                failures.note(&to.to_string(), went);
            }
        }
    }
    failures.note("silence", judge_silence(&client, &eth0, &link, &bytes));
    let now: u64 = peers.iter().map(Peer::accepted).sum();
    ensure!(now == served, "{} connections came through", now - served);
    failures.judge(&lab)
}

#[test]
fn without_an_agent_nobody_reaches_a_captured_pod() -> Result<()> {
    let lab = changing_world()?;
    let port = fresh_port();
    let mut failures = Failures::default();
    for server in ["mesh/a", "strict/s"] {
        let server = lab.pod(server)?;
        let echo = echo(&server, port)?;
        expect_echo(
            &lab.pod("mesh/c")?,
            SocketAddr::new(server.v4()?.into(), port),
        )?;
        let served = echo.accepted();
        lab.kill_agent("n1")?;
        for to in addresses(&server, port) {
            for client in ["plain/p", "plain/r", "mesh/c"] {
                for _ in 0..5 {
                    let went = expect_refused(&lab.pod(client)?, to);
                    failures.note(&format!("{client} to {to}"), went);
                }
            }
            let bytes = token();
            let (ended, took) = lab.node("n1")?.run(|| attempt_here(to, &bytes))?;
            failures.note(&format!("node n1 to {to}"), judge_refusal(ended, took));
        }
        ensure!(echo.accepted() == served, "{} was reached", server.key());
        lab.start_agent("n1", &AgentOptions::default())?;
    }
    failures.judge(&lab)
}

/// P15: those who never asked for a mesh do not notice. UDP and loopback were never captured.
#[test]
fn without_an_agent_loopback_udp_and_plain_pods_go_on() -> Result<()> {
    let lab = changing_world()?;
    let (captured, far) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let (plain, plain_far) = (lab.pod("plain/p")?, lab.pod("plain/r")?);
    let port = fresh_port();
    let _echo = (
        udp_echo(&far, port)?,
        echo(&plain_far, port)?,
        echo(&captured, port)?,
    );
    let own = dial(&captured, SocketAddr::new("127.0.0.1".parse()?, port))?;
    round_trip(&own, &token())?;
    lab.kill_agent("n1")?;
    round_trip(&own, &token()).context("an open loopback connection")?;
    check_loopback(&captured)?;
    expect_echo(&captured, SocketAddr::new(captured.v4()?.into(), port)).context("to itself")?;
    for to in addresses(&far, port) {
        udp_round_trip(&captured, to, &token())?;
    }
    for to in addresses(&plain_far, port) {
        expect_echo(&plain, to)?;
    }
    Ok(())
}

#[test]
fn connections_of_an_agent_that_dies_end_and_do_not_hang() -> Result<()> {
    let lab = changing_world()?;
    for (client, server) in [
        ("mesh/a", "mesh/c"),
        ("mesh/c", "mesh/a"),
        ("plain/r", "mesh/a"),
    ] {
        let (near, far) = both_ends(&lab.pod(client)?, &lab.pod(server)?)?;
        lab.kill_agent("n1")?;
        for (end, mut stream) in [("client", near), ("server", far)] {
            match std::io::Read::read(&mut stream, &mut [0]) {
                Ok(0) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => anyhow::bail!("the {end} of {client} to {server}: {other:?}"),
            }
        }
        lab.start_agent("n1", &AgentOptions::default())?;
    }
    Ok(())
}

/// Pins and state are all that a new agent gets: nobody labels anything, no CNI call is repeated.
#[test]
fn a_new_agent_takes_over_and_traffic_returns() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let (strict, plain) = (lab.pod("strict/s")?, lab.pod("plain/p")?);
    let port = fresh_port();
    let _echo = [&client, &server, &strict].map(|pod| echo(pod, port).unwrap());
    let mut failures = Failures::default();
    for node in ["n1", "n2"] {
        lab.kill_agent(node)?;
        lab.start_agent(node, &AgentOptions::default())?;
        let link = link(&lab)?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        testkit::eventually("traffic returns", APPLIES, || expect_echo(&client, to))
            .with_context(|| evidence(&lab))?;
        // At once and for a while: state must not come back piece by piece.
        let settled = Instant::now() + Duration::from_secs(2);
        while Instant::now() < settled && failures.none() {
            for (client, server) in [(&client, &server), (&server, &client)] {
                for to in addresses(server, port) {
                    let cell = format!("{node} anew: {} to {to}", client.key());
                    failures.note(&cell, speak_encrypted(&link, client, to));
                }
            }
            for to in addresses(&strict, port) {
                let cell = format!("{node} anew: STRICT {to}");
                failures.note(&cell, expect_refused(&plain, to));
                failures.note(&cell, expect_echo(&client, to));
                failures.note(&cell, expect_echo(&server, to));
            }
        }
    }
    failures.judge(&lab)
}

/// Hammered all the time, through the deaths and births of both agents: what an agent does while
/// it is new, and what its peers think of its pods meanwhile, shows on the wire.
#[test]
fn nothing_slips_through_while_agents_come_and_go() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let (strict, plain) = (lab.pod("strict/s")?, lab.pod("plain/p")?);
    let port = fresh_port();
    let _echo = (echo(&server, port)?, echo(&client, port)?);
    let guarded = echo(&strict, port)?;
    let (link, bytes) = (link(&lab)?, token());
    let there = SocketAddr::new(server.v4()?.into(), port);
    let back = SocketAddr::new(client.v6()?.into(), port);
    let inside = [
        Hammer::start(&client, there, bytes.clone()),
        Hammer::start(&server, back, bytes.clone()),
    ];
    let stranger = Hammer::start(&plain, SocketAddr::new(strict.v6()?.into(), port), token());
    for node in ["n1", "n2", "n1", "n2"] {
        lab.kill_agent(node)?;
        lab.start_agent(node, &AgentOptions::default())?;
        for (from, to) in [(&client, there), (&server, back)] {
            testkit::eventually("traffic returns", APPLIES, || expect_echo(from, to))?;
        }
    }
    let inside = inside.map(Hammer::stop);
    let mut outcomes = stranger.stop()?;
    ensure!(
        guarded.accepted() == 0,
        "STRICT was open {} times",
        guarded.accepted()
    );
    for hammered in inside {
        let hammered = hammered?;
        let echoed = hammered
            .iter()
            .filter(|(ended, _)| *ended == Ended::Answered);
        ensure!(
            echoed.count() > 0,
            "a client was never served: {hammered:?}"
        );
        outcomes.extend(hammered);
    }
    let mut failures = Failures::default();
    for source in [client.v4()?.into(), IpAddr::from(server.v6()?)] {
        let syns = link.count(|packet| {
            packet.is_syn() && packet.source == source && packet.destination_port == port
        });
        let none = (syns == 0).then_some(());
        failures.note(
            &source.to_string(),
            none.context(format!("{syns} SYN in the clear")),
        );
    }
    let readable = link.contains(&bytes)?;
    failures.note("link", (!readable).then_some(()).context("readable"));
    for (ended, took) in outcomes {
        let hung = ended == Ended::Hung || took > PATIENCE;
        failures.note(
            "attempt",
            (!hung)
                .then_some(())
                .context(format!("{ended:?} after {took:?}")),
        );
    }
    failures.judge(&lab)
}

/// `kubectl debug` and misplaced processes: the namespace counts, not the cgroup.
#[test]
fn a_process_in_another_cgroup_is_captured() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let link = link(&lab)?;
    for to in addresses(&server, port) {
        let bytes = token();
        let (ended, took) = client.run_outside_cgroup(|| attempt_here(to, &bytes))?;
        ensure!(ended == Ended::Answered, "{ended:?} after {took:?}");
        ensure!(!link.contains(&bytes)?, "readable on the link");
    }
    let syns = link.count(|packet| packet.is_syn() && packet.destination_port == port);
    ensure!(syns == 0, "{syns} SYN in the clear");
    Ok(())
}

/// The agent's own connections are known by its cgroup. What else is in the cgroup that it was started in is
/// none of it.
#[test]
fn the_cgroup_in_which_an_agent_was_started_exempts_nobody_else() -> Result<()> {
    let lab = changing_world()?;
    exempts_nobody_else(&lab, AgentOptions::default())
}

/// A container of a node with cgroup v2 alone has a cgroup namespace of its own: what it is in is called `/`, which is not the root of
/// the node.
#[test]
fn a_cgroup_namespace_of_its_own_exempts_nobody_else() -> Result<()> {
    let lab = changing_world()?;
    let agent = lab::find_program("keelson-node-agent")?;
    let program = lab.run_dir().join("agent-in-a-cgroup-namespace");
    let script = format!(
        "#!/bin/sh\nexec unshare --cgroup {} \"$@\"\n",
        agent.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let options = AgentOptions {
        program: program.display().to_string(),
        ..AgentOptions::default()
    };
    exempts_nobody_else(&lab, options)
}

fn exempts_nobody_else(lab: &Lab, mut options: AgentOptions) -> Result<()> {
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    lab.kill_agent("n1")?;
    // Where `run_outside_cgroup` puts what it runs.
    "stray".clone_into(&mut options.cgroup);
    let is_private = options.program != AgentOptions::default().program;
    lab.start_agent("n1", &options)?;
    let pid = lab.agent_pid("n1").context("an agent runs")?;
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/cgroup"));
    let differs = namespace(&pid.to_string())? != namespace("self")?;
    ensure!(differs == is_private, "the agent's cgroup namespace");
    let link = link(lab)?;
    let mut failures = Failures::default();
    for to in addresses(&server, port) {
        let bytes = token();
        let (ended, took) = client.run_outside_cgroup(|| attempt_here(to, &bytes))?;
        let served = ended == Ended::Answered;
        failures.note(
            "served",
            served
                .then_some(())
                .context(format!("{ended:?} after {took:?}")),
        );
        let readable = link.contains(&bytes)?;
        failures.note(
            &to.to_string(),
            (!readable).then_some(()).context("readable on the link"),
        );
    }
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    failures.judge(lab)
}

/// A listener of a process in another cgroup is covered by the pod's policy as well.
#[test]
fn a_listener_in_another_cgroup_is_covered() -> Result<()> {
    let lab = changing_world()?;
    let server = lab.pod("strict/s")?;
    let port = fresh_port();
    let listener = server.run_outside_cgroup(|| std::net::TcpListener::bind(("::", port)))??;
    let echo = Peer::serve(listener, Behaviour::Echo)?;
    for to in addresses(&server, port) {
        expect_refused(&lab.pod("plain/p")?, to)?;
        ensure!(echo.accepted() == 0, "a plaintext client came through");
    }
    for to in addresses(&server, port) {
        expect_echo(&lab.pod("mesh/c")?, to)?;
        expect_echo(&lab.pod("mesh/b")?, to)?;
    }
    Ok(())
}
