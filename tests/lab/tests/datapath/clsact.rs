//! Guard and wall where the kernel has no tcx: the same, by filters of clsact, which outlive their agent.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod, PodSpec};
use tests_lab::metrics::{decisions, metric};
use tests_lab::{namespace, syn, turn};

use crate::spoofing::{be_careless, check};
use crate::support::{APPLIES, fresh_port, wait_encrypted};
use crate::wall::{on_the_link, wait_enforced};

fn options() -> AgentOptions {
    AgentOptions {
        args: vec!["--no-tcx".to_owned(), "--audit-interval=1s".to_owned()],
        ..AgentOptions::default()
    }
}

fn tc(
    run: impl FnOnce(&mut Command) -> Result<std::process::Output>,
    line: &str,
) -> Result<String> {
    let mut command = Command::new("tc");
    let output = run(command.args(line.split(' ')))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "tc {line}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn filters(lab: &Lab, pod: &Pod) -> Result<[bool; 2]> {
    let node = lab.node("n1")?;
    let host = format!("filter show dev {} ingress", pod.host_interface());
    let host = tc(|command| Ok(node.run(|| command.output())??), &host)?;
    let own = tc(
        |command| Ok(pod.run(|| command.output())??),
        "filter show dev eth0 ingress",
    )?;
    Ok([
        host.contains("tcx_source_gua"),
        own.contains("tcx_inbound_wa"),
    ])
}

#[test]
fn without_tcx_guard_and_wall_are_filters_that_outlive_the_agent_and_go_with_it() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).build()?;
    let text = namespace("mesh", &[("keelson.io/mesh", "enabled")]) + &namespace("plain", &[]);
    lab.apply("mesh.yaml", &text)?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &options())?;
    }
    let create = |space, name, node| lab.create(&PodSpec::new(space, name, node));
    let (client, neighbour) = (create("mesh", "a", "n1")?, create("mesh", "b", "n1")?);
    let server = create("mesh", "c", "n2")?;
    create("plain", "p", "n1")?;
    wait_encrypted(&lab, &client, &server)?;
    wait_enforced(&lab)?;
    for gauge in ["keelson_pods_unguarded", "keelson_pods_without_wall"] {
        ensure!(metric(&lab, "n1", gauge, &[])? < 0.5, "{gauge}");
    }
    ensure!(filters(&lab, &client)? == [true, true], "not attached");
    be_careless(&lab.node("n1")?, &client)?;
    check(&lab, &client, &lab.pod("plain/p")?, &neighbour)?;
    let to = SocketAddr::new(server.v4()?.into(), fresh_port());
    let stray = syn::packet(SocketAddr::new(client.v4()?.into(), 4444), to);
    ensure!(on_the_link(&lab, &client, &stray, to)? == 0, "on the link");
    ensure!(decisions(&lab, "n1", "wall_outbound")? > 2.5, "not counted");

    lab.kill_agent("n1")?;
    ensure!(
        on_the_link(&lab, &client, &stray, to)? == 0,
        "on the link without an agent"
    );
    lab.start_agent("n1", &options())?;
    wait_enforced(&lab)?;

    // Somebody else takes it away.
    let line = format!("qdisc del dev {} clsact", client.host_interface());
    tc(
        |command| Ok(lab.node("n1")?.run(|| command.output())??),
        &line,
    )?;
    testkit::eventually("the audit puts it back", APPLIES, || {
        ensure!(filters(&lab, &client)? == [true, true], "not yet");
        Ok(())
    })?;
    let labels = [("kind", "programs")];
    let repaired = metric(&lab, "n1", "keelson_capture_repaired_total", &labels)?;
    ensure!(repaired > 0.5, "not counted");

    lab.uninstall_agent("n1").context("uninstalling")?;
    ensure!(filters(&lab, &client)? == [false, false], "left behind");
    Ok(())
}
