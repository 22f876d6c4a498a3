//! One agent takes over from another that runs: no new connection fails, open ones live until the
//! drain deadline, and whoever ends in the middle leaves the node in one agent's charge.

mod contract;
mod failing;
mod hanging;
mod stopping;
mod upgrade;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Capture, CaptureOptions, Process, UPLINK};
use testkit::Peer;

pub(crate) use self::contract::NEXT_LAYOUT;
use crate::load::{Client, Served};
use crate::support::{World, echo, evidence, fresh_port, token, vips};

/// Connections of one round of the short test, and of the long one.
const SHORT: u64 = 4_000;
const LONG: u64 = 20_000;
/// Longer than what one turn of the tests takes, shorter than anybody's patience.
const DRAIN: Duration = Duration::from_secs(6);

fn agent() -> AgentOptions {
    AgentOptions {
        workers: 2,
        drain_deadline: DRAIN,
        ..AgentOptions::default()
    }
}

/// Starts the agents of both nodes anew with the options of this file.
fn with_agents(world: &World, options: &AgentOptions) -> Result<()> {
    for node in ["n1", "n2"] {
        world.kill_agent(node)?;
        world.start_agent(node, options)?;
    }
    for (from, to) in [("mesh/a", "mesh/c"), ("mesh/c", "mesh/a")] {
        let (from, to) = (world.pod(from)?, world.pod(to)?);
        crate::support::wait_encrypted(world, &from, &to)?;
    }
    Ok(())
}

/// Whom a load connects, each with bytes of its own, and whether those may be read on the link.
struct Traffic {
    clients: Vec<Client>,
    secret: Vec<u8>,
    port: u16,
    _peers: Vec<Peer>,
}

impl Traffic {
    /// Same node and two nodes, by address and by service, both families, and plain neighbours.
    fn new(world: &World) -> Result<Self> {
        let pod = |key: &str| world.pod(key);
        let (port, secret, open) = (fresh_port(), token(), token());
        let mut peers = Vec::new();
        for server in ["mesh/a", "mesh/b", "mesh/c", "strict/t", "plain/r"] {
            peers.push(echo(&pod(server)?, port)?);
            peers.push(echo(&pod(server)?, crate::support::DECLARED)?);
        }
        let v4 = |key: &str| -> Result<SocketAddr> { Ok((pod(key)?.v4()?, port).into()) };
        let v6 = |key: &str| -> Result<SocketAddr> { Ok((pod(key)?.v6()?, port).into()) };
        let vip = |key: &str| -> Result<SocketAddr> {
            let [v4, _] = vips(&pod(key)?)?;
            Ok(SocketAddr::new(v4, 80))
        };
        let client = |key: &str, to: SocketAddr, bytes: &Vec<u8>, counts: bool| -> Result<Client> {
            Ok(Client {
                pod: pod(key)?,
                to,
                bytes: bytes.clone(),
                counts,
            })
        };
        // Those between pods of one node go directly and are many: they do not count.
        let clients = vec![
            client("mesh/a", v4("mesh/c")?, &secret, true)?,
            client("mesh/a", v6("strict/t")?, &secret, true)?,
            client("mesh/b", vip("mesh/c")?, &secret, true)?,
            client("mesh/c", v6("mesh/a")?, &secret, true)?,
            client("strict/t", v4("mesh/b")?, &secret, true)?,
            client("plain/r", v4("mesh/a")?, &open, true)?,
            client("mesh/b", v4("plain/r")?, &open, true)?,
            client("mesh/a", v4("mesh/b")?, &secret, false)?,
            client("mesh/a", vip("mesh/b")?, &secret, false)?,
        ];
        Ok(Self {
            clients,
            secret,
            port,
            _peers: peers,
        })
    }

    /// A capture of the link that looks for what must not be there.
    fn watch(&self, world: &World) -> Result<Capture> {
        let options = CaptureOptions {
            keep: 0,
            needles: vec![self.secret.clone()],
        };
        Capture::start_with(world.node("n1")?.netns(), UPLINK, options)
    }
}

/// What crossed the link while agents changed: none of the captured pods' bytes.
fn judge_link(link: &Capture) -> Result<u64> {
    let counts = link.counts();
    ensure!(counts.lost == 0, "the capture lost {} frames", counts.lost);
    ensure!(
        counts.hits == [0],
        "{:?} packets in the clear of {}",
        counts.hits,
        counts.frames
    );
    Ok(counts.frames)
}

fn judge_load(world: &World, served: &Served, wanted: u64) -> Result<()> {
    ensure!(
        served.failed.is_empty(),
        "{} connections failed of {}:\n{}\n{}",
        served.failed.len(),
        served.total(),
        served
            .failed
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n"),
        evidence(world)
    );
    ensure!(
        served.total() >= wanted,
        "only {} connections",
        served.total()
    );
    tracing::info!(connections = ?served.echoed, "served");
    for (client, echoed) in &served.echoed {
        ensure!(
            *echoed >= wanted / 100,
            "{client}: only {echoed} connections"
        );
    }
    Ok(())
}

fn expect_exit_0(process: &mut Process) -> Result<()> {
    let status = process.wait(DRAIN + Duration::from_secs(15))?;
    let status = status.context("the first agent does not end")?;
    ensure!(status.success(), "the first agent ended with {status}");
    Ok(())
}
