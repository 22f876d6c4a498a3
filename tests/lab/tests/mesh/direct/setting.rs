//! Whether pods of one node talk directly is said once for the whole mesh, and all agents follow.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use tests_lab::turn;

use crate::fixture::{Ended, at, call, echo, mesh_namespace, pod};
use tests_lab::metrics::Metrics;

/// A controller that was away is found again within a few seconds.
const FOLLOWS: Duration = Duration::from_secs(20);

fn start_controller(lab: &Lab, args: &[&str]) -> Result<()> {
    if lab.controller_pid().is_some() {
        lab.kill_controller()?;
    }
    lab.start_controller(&ControllerOptions {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..ControllerOptions::default()
    })
}

/// Connections that went directly and those that were encrypted, so far.
fn ways(lab: &Lab) -> Result<(f64, f64)> {
    let metrics = Metrics::of_agent(lab, "n1")?;
    let direct = [("reason", "inbound_direct")];
    let name = "keelson_kernel_decisions_total";
    let opened = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let tunnelled = metrics.sum("istio_tcp_connections_opened_total", &opened);
    Ok((metrics.sum(name, &direct), tunnelled))
}

/// Waits until three calls in a row go the same way: `(3, 0)` directly, `(0, 3)` encrypted.
fn wait_way(lab: &Lab, from: &Pod, to: SocketAddr, expected: (f64, f64)) -> Result<()> {
    testkit::eventually(&format!("three calls go {expected:?}"), FOLLOWS, || {
        let before = ways(lab)?;
        for _ in 0..3 {
            let ended = call(from, to)?;
            ensure!(ended == Ended::Answered, "a call ended {ended}");
        }
        let now = ways(lab)?;
        let went = (now.0 - before.0, now.1 - before.1);
        ensure!(went == expected, "went {went:?}");
        Ok(())
    })
}

#[test]
fn all_agents_follow_what_the_mesh_says_of_pods_of_one_node() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    lab.apply("namespaces.yaml", &mesh_namespace("green"))?;
    start_controller(&lab, &["--same-node=mtls"])?;
    lab.start_agent("n1", &AgentOptions::default())?;
    let client = lab.create(&pod("green", "client", "n1"))?;
    let server = lab.create(&pod("green", "server", "n1"))?;
    let _echo = echo(&server, 8080)?;
    let to = at(server.v4()?, 8080);
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    // A new agent does not begin with another idea; the kernel's counters outlive it.
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    for _ in 0..20 {
        assert_eq!(call(&client, to)?, Ended::Answered);
    }
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    assert_eq!(ways(&lab)?.0, 0.0, "went directly");
    start_controller(&lab, &["--same-node=direct"])?;
    wait_way(&lab, &client, to, (3.0, 0.0))?;
    start_controller(&lab, &["--same-node=mtls"])?;
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    // Where the mesh says nothing, the agent's own setting counts.
    start_controller(&lab, &[])?;
    wait_way(&lab, &client, to, (3.0, 0.0))
}

/// P31: one file, followed without a restart; a wrong one is refused and named, a canary goes first.
#[test]
fn settings_are_followed_without_a_restart_and_wrong_ones_are_refused() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    lab.apply("namespaces.yaml", &mesh_namespace("green"))?;
    let file = lab.run_dir().join("settings.yaml");
    let say = |text: &str| fs::write(&file, text).context("writing the settings");
    say("sameNode: mtls\n")?;
    let args = [format!("--settings={}", file.display())];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    start_controller(&lab, &args)?;
    let controller = lab.controller_pid();
    lab.start_agent("n1", &AgentOptions::default())?;
    let client = lab.create(&pod("green", "client", "n1"))?;
    let server = lab.create(&pod("green", "server", "n1"))?;
    let _echo = echo(&server, 8080)?;
    let to = at(server.v4()?, 8080);
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    say("sameNode: direct\n")?;
    wait_way(&lab, &client, to, (3.0, 0.0))?;
    say("sameNode: direct\ncanary: {nodes: [n1], sameNode: mtls}\n")?;
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    say("sameNode: direct\ncanary: {nodes: [n2], sameNode: mtls}\n")?;
    wait_way(&lab, &client, to, (3.0, 0.0))?;
    say("sameNode: mtls\nsameNodes: direct\n")?;
    testkit::eventually("the finding", FOLLOWS, || {
        let page = lab.controller_get("/debug/diagnostics")?;
        ensure!(page.contains("sameNodes"), "{page}");
        Ok(())
    })?;
    let refused =
        || Metrics::of_controller(&lab)?.present("keelson_controller_settings_refused", &[]);
    ensure!(refused()? == 1.0, "not counted");
    wait_way(&lab, &client, to, (3.0, 0.0))?;
    ensure!(
        lab.controller_pid() == controller,
        "the controller was started anew"
    );
    // Whoever is started now has what was in force.
    start_controller(&lab, &args)?;
    wait_way(&lab, &client, to, (3.0, 0.0))?;
    say("sameNode: mtls\n")?;
    wait_way(&lab, &client, to, (0.0, 3.0))?;
    ensure!(refused()? == 0.0, "still counted as refused");
    Ok(())
}
