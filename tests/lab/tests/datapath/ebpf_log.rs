//! The kernel half's own lines: a build that has them tells what each hook decided, all others refuse the flag.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec};
use tests_lab::{namespace, syn, turn};

use crate::spoofing::{be_careless, check};
use crate::succession::NEXT_LAYOUT;
use crate::support::{APPLIES, attempt, fresh_port, wait_encrypted};
use crate::wall::{on_the_link, wait_enforced};

#[test]
fn a_build_with_lines_says_what_each_hook_decided_about_which_pod() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).build()?;
    let text = namespace("mesh", &[("keelson.io/mesh", "enabled")]) + &namespace("plain", &[]);
    lab.apply("mesh.yaml", &text)?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        let options = AgentOptions {
            program: NEXT_LAYOUT.to_owned(),
            args: vec!["--ebpf-log".to_owned()],
            ..AgentOptions::default()
        };
        lab.start_agent(node, &options)?;
    }
    let create = |space, name, node| lab.create(&PodSpec::new(space, name, node));
    let (client, neighbour) = (create("mesh", "a", "n1")?, create("mesh", "b", "n1")?);
    let server = create("mesh", "c", "n2")?;
    let plain = create("plain", "p", "n1")?;
    wait_encrypted(&lab, &client, &server)?;
    wait_enforced(&lab)?;
    let port = fresh_port();
    attempt(&client, SocketAddr::new(neighbour.v4()?.into(), port))?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    attempt(&client, to)?;
    let stray = syn::packet(SocketAddr::new(client.v4()?.into(), 4444), to);
    on_the_link(&lab, &client, &stray, to)?;
    be_careless(&lab.node("n1")?, &client)?;
    check(&lab, &client, &plain, &neighbour)?;
    // The hook, its reason, and the peer where a line has one.
    let lines = [
        ("n1", "connect", "outbound_captured", format!("peer={to}")),
        (
            "n1",
            "connect",
            "outbound_direct",
            format!("{}:{port}", neighbour.v4()?),
        ),
        ("n1", "lookup", "lookup_outbound", client.v4()?.to_string()),
        ("n2", "lookup", "inbound_hbone", client.v4()?.to_string()),
        ("n1", "wall", "wall_outbound", format!("peer={to}")),
        ("n1", "guard", "spoofed_source", "pod_id=".to_owned()),
    ];
    for (node, hook, reason, rest) in lines {
        let (hook, reason) = (format!("hook=\"{hook}\""), format!("reason=\"{reason}\""));
        testkit::eventually(
            &format!("{node} says {hook} {reason} {rest}"),
            APPLIES,
            || {
                let log = lab.agent_log(node);
                let is_it = |line: &str| {
                    let words = ["ebpf:", &hook, &reason, &rest];
                    words.iter().all(|word| line.contains(word))
                };
                log.lines()
                    .find(|line| is_it(line))
                    .map(drop)
                    .context("not yet")
            },
        )?;
    }
    Ok(())
}

#[test]
fn an_agent_without_lines_refuses_the_flag_in_one_sentence() -> Result<()> {
    let output = Command::new(lab::find_program("keelson-node-agent")?)
        .args(["--node", "n1", "--controller", "https://127.0.0.1:1"])
        .args(["--controller-ca", "/dev/null", "--token-file", "/dev/null"])
        .arg("--ebpf-log")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it started");
    ensure!(said.lines().count() == 1, "{said}");
    ensure!(said.contains("cargo xtask build --ebpf-log"), "{said}");
    Ok(())
}
