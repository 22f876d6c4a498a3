//! Many connections at once and one after another: all of them right, nothing left behind.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod};
use testkit::{receive, send};

use crate::maps::entries;
use crate::support::{
    APPLIES, PATIENCE, dial, echo, evidence, fresh_port, patient, round_trip, world,
};

/// What an agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    resident_kib: u64,
    /// Per pinned map, by name.
    map_entries: Vec<(String, usize)>,
}

fn held(lab: &Lab, node: &str) -> Result<Held> {
    let pid = lab.agent_pid(node).context("an agent runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.split_whitespace().next());
    Ok(Held {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        resident_kib: resident.context("VmRSS")?.parse()?,
        map_entries: entries(&lab.bpf_dir(node))?,
    })
}

/// Opens a connection, sends a few bytes and closes, again and again.
fn one_after_another(client: &Pod, to: SocketAddr, count: usize) -> Result<()> {
    client.run(|| {
        for number in 0..count {
            let attempt = || -> Result<()> {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                patient(&stream)?;
                round_trip(&stream, &number.to_be_bytes())
            };
            attempt().with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    })?
}

/// Opens them all, keeps them all open, and moves checked data through all of them.
fn all_at_once(client: &Pod, to: SocketAddr, count: u64, rounds: u64) -> Result<()> {
    let streams = (0..count).map(|number| {
        dial(client, to).with_context(|| format!("connection {number} beside the others"))
    });
    let streams: Vec<TcpStream> = streams.collect::<Result<_>>()?;
    for round in 0..rounds {
        for (seed, stream) in (round * count..).zip(&streams) {
            send(stream, seed, CHUNK).with_context(|| format!("round {round}"))?;
        }
        for (seed, stream) in (round * count..).zip(&streams) {
            receive(stream, seed, CHUNK).with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

/// Small enough to be under way on every connection at once.
const CHUNK: u64 = 16 << 10;

fn check_at_once(client: &str, server: &str) -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod(client)?, world.pod(server)?);
    let port = fresh_port();
    let echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    all_at_once(&client, to, 1000, 4).with_context(|| evidence(&world))?;
    ensure!(echo.accepted() == 1000, "{} accepted", echo.accepted());
    Ok(())
}

#[test]
fn a_thousand_connections_at_once_between_nodes_carry_their_own_bytes() -> Result<()> {
    check_at_once("mesh/a", "mesh/c")
}

#[test]
fn a_thousand_connections_at_once_on_one_node_carry_their_own_bytes() -> Result<()> {
    check_at_once("mesh/a", "mesh/b")
}

#[test]
fn a_thousand_plain_connections_at_once_carry_their_own_bytes() -> Result<()> {
    check_at_once("plain/p", "mesh/c")
}

/// Descriptors, memory and map entries of both agents, before and after.
#[test]
fn ten_thousand_connections_leave_nothing_behind() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let (near, plain) = (world.pod("mesh/b")?, world.pod("plain/p")?);
    let port = fresh_port();
    let _echo = (echo(&server, port)?, echo(&near, port)?);
    let far = SocketAddr::new(server.v6()?.into(), port);
    let near = SocketAddr::new(near.v4()?.into(), port);
    let legs = [
        (&client, far),
        (&client, near),
        (&plain, far),
        (&plain, near),
    ];
    // As many at once as will ever be, so that buffers and pools have their size.
    all_at_once(&client, far, 200, 1)?;
    for (client, to) in legs {
        one_after_another(client, to, 250)?;
    }
    let before: Vec<Held> = quiet(&world)?;
    for (client, to) in legs {
        one_after_another(client, to, 2500).with_context(|| evidence(&world))?;
    }
    for (node, before) in ["n1", "n2"].iter().zip(before) {
        let what = format!("the agent of {node} holds what it held");
        testkit::eventually(&what, APPLIES, || {
            let after = held(&world, node)?;
            ensure!(
                after.descriptors <= before.descriptors
                    && no_more(&after.map_entries, &before.map_entries)
                    && after.resident_kib <= before.resident_kib + GROWTH_KIB,
                "before {before:?}, after {after:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Whether no map has more entries. One that held what is tidied from time to time may have fewer.
fn no_more(after: &[(String, usize)], before: &[(String, usize)]) -> bool {
    let mut maps = after.iter().zip(before);
    after.len() == before.len()
        && maps.all(|(after, before)| after.0 == before.0 && after.1 <= before.1)
}

/// Less than half a KiB per connection: allocators breathe, but they do not forget.
const GROWTH_KIB: u64 = 4096;

/// What both agents hold once it no longer changes.
fn quiet(lab: &Lab) -> Result<Vec<Held>> {
    let look =
        || -> Result<Vec<Held>> { ["n1", "n2"].iter().map(|node| held(lab, node)).collect() };
    let mut last = look()?;
    testkit::eventually("the agents come to rest", APPLIES, || {
        std::thread::sleep(Duration::from_millis(300));
        let now = look()?;
        let still = now
            .iter()
            .zip(&last)
            .all(|(now, last)| now.descriptors == last.descriptors);
        last.clone_from(&now);
        ensure!(still, "{now:?}");
        Ok(now)
    })
}
