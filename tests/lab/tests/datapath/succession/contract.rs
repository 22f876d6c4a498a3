//! An agent with another version of the kernel contract takes over.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Capture, CaptureOptions, UPLINK};

use super::{SHORT, Traffic, agent, expect_exit_0, judge_link, judge_load, with_agents};
use crate::load::{Client, Load};
use crate::support::{APPLIES, Ended, World, both_ends, changing_world, echo, evidence, token};

/// The agent with the features `next-layout` and `ebpf-log`.
pub(crate) const NEXT_LAYOUT: &str = "keelson-node-agent-next-layout";
/// Versions that no agent has by itself.
const OTHER: u32 = abi::ABI_VERSION + 1;
const THIRD: u32 = abi::ABI_VERSION + 2;

/// An agent that takes its kernel contract for that version.
fn of_version(version: u32) -> AgentOptions {
    AgentOptions {
        args: vec!["--abi-version".to_owned(), version.to_string()],
        ..agent()
    }
}

/// An agent with another kernel contract shares no program and no map with the old one: its own are
/// attached beside, then the old ones detached, and back again. Connections are made all along, the
/// link shows nothing readable, and STRICT refuses whoever has no identity.
#[test]
fn another_version_of_the_kernel_contract_replaces_the_old_one_without_a_window() -> Result<()> {
    let world = changing_world()?;
    let step = |version: u32, node| (of_version(version), format!("v{version}"), node);
    let steps = [
        step(OTHER, "n1"),
        step(OTHER, "n2"),
        step(THIRD, "n1"),
        step(OTHER, "n1"),
    ];
    check_replacements(&world, &steps, |_| Ok(()))
}

/// The same with an agent whose maps have values of another size, with their fields in other places: what
/// one of them reads in the other's map would be nonsense.
#[test]
fn maps_of_another_layout_replace_the_old_ones_without_a_window() -> Result<()> {
    let world = changing_world()?;
    let next = || {
        let mut options = agent();
        options.program = NEXT_LAYOUT.to_owned();
        options
    };
    lab::find_program(NEXT_LAYOUT)
        .context("`cargo xtask test` builds it; with cargo alone: build node-agent with --features next-layout,ebpf-log and copy it")?;
    let version = |version: u32| format!("v{version}");
    let steps = [
        (next(), version(1001), "n1"),
        (next(), version(1001), "n2"),
        (agent(), version(abi::ABI_VERSION), "n1"),
        (next(), version(1001), "n1"),
    ];
    let mut sizes = BTreeSet::new();
    check_replacements(&world, &steps, |version| {
        let dir = world.bpf_dir("n1").join(version);
        for map in ["PODS", "FLOWS"] {
            sizes.insert((map, crate::maps::value_size(&dir.join(map))?));
        }
        Ok(())
    })?;
    println!("sizes of values: {sizes:?}");
    ensure!(sizes.len() == 4, "the layouts do not differ: {sizes:?}");
    Ok(())
}

/// Another agent, the version of its contract, and the node.
type Step = (AgentOptions, String, &'static str);

fn check_replacements(
    world: &World,
    steps: &[Step],
    mut look: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    with_agents(world, &agent())?;
    let traffic = Traffic::new(world)?;
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
    let link = traffic.watch(world)?;
    let plain = syns(world, &traffic)?;
    let started = Instant::now();
    let load = Load::start(&traffic.clients);
    let strangers = Load::start(&[stranger("plain/p")?, stranger("plain/r")?]);
    let mut before = Vec::new();
    let mut reached = 0;
    for (options, version, node) in steps {
        let mut options = options.clone();
        // Another cgroup, as another pod has: each must know the other's as an agent's.
        options.cgroup = format!("agent-{}", before.len());
        reached += SHORT / 4;
        load.wait_for(reached)?;
        before.push(world.succeed_agent(node, &options)?);
        let attached = programs(world, node)?;
        ensure!(
            attached == [version.as_str()],
            "on {node} programs of {attached:?} decide"
        );
        if *node == "n1" {
            look(version)?;
        }
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
    judge_load(world, &served, reached)?;
    let frames = judge_link(&link)?;
    let syns = plain.count(|packet| packet.is_syn() && packet.destination_port == traffic.port);
    let exempt = plain.count(|packet| {
        packet.is_syn()
            && packet.destination_port == traffic.port
            && is_plain(world, packet.source, packet.destination)
    });
    ensure!(
        syns == exempt,
        "{} SYN of captured pods in the clear",
        syns - exempt
    );
    let (near, far) = &direct;
    std::io::Write::write_all(&mut &*near, b"still there").context("a direct connection")?;
    std::io::Read::read_exact(&mut &*far, &mut [0; 11]).context("a direct connection")?;
    #[expect(clippy::print_stdout, reason = "the numbers are what was measured")]
    {
        println!(
            "{} connections over {} changes of version, none failed, the slowest {:?}; {} refused by STRICT; {frames} frames on the link, none readable, {syns} SYN to the port, all of plain pods",
            served.total(),
            steps.len(),
            served.slowest,
            refused.failed.len(),
        );
    }
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
    for version in [OTHER, abi::ABI_VERSION] {
        world.kill_agent("n1")?;
        world.start_agent("n1", &of_version(version))?;
        testkit::eventually("traffic returns", APPLIES, || {
            let (ended, took) = pod.run(|| crate::support::attempt_here(to, &bytes))?;
            ensure!(ended == Ended::Answered, "{ended:?} after {took:?}");
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
