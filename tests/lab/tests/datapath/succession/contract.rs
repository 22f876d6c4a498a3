//! An agent with another version of the kernel contract takes over.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::{Capture, CaptureOptions, UPLINK};

use super::{SHORT, Traffic, agent, expect_exit_0, judge_link, judge_load, with_agents};
use crate::load::{Client, Load};
use crate::support::{APPLIES, Ended, World, both_ends, changing_world, echo, evidence, token};

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
