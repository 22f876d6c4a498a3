//! What is told of direct connections: bytes while they live and at their end, lines, lists.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::mesh::{Mesh, PORT, mesh};
use crate::fixture::{APPLIES, Ended, at, call, connect, exchange};
use tests_lab::metrics::Metrics;

/// Opened, closed, request bytes, response bytes, as the source or the destination reports them.
fn counters(mesh: &Mesh, reporter: &str) -> Result<[f64; 4]> {
    let metrics = Metrics::of_agent(mesh, "n1")?;
    let labels = [
        ("reporter", reporter),
        ("source_workload", "client"),
        ("destination_workload", "echo"),
        ("connection_security_policy", "same_node"),
        ("response_flags", "-"),
    ];
    Ok([
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sent_bytes_total",
    ]
    .map(|name| metrics.sum(name, &labels)))
}

fn grown(mesh: &Mesh, before: &[[f64; 4]; 2]) -> Result<[[f64; 4]; 2]> {
    let mut grown = [counters(mesh, "source")?, counters(mesh, "destination")?];
    for (now, before) in grown.iter_mut().flatten().zip(before.iter().flatten()) {
        *now -= before;
    }
    Ok(grown)
}

fn to(mesh: &Mesh) -> Result<SocketAddr> {
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    mesh.wait_direct(&mesh.client, to)?;
    mesh.settle()?;
    Ok(to)
}

/// A59: an operator sees a long flow while it lasts, and its end adds the rest, once.
#[test]
fn the_bytes_of_a_live_direct_connection_are_counted_before_it_ends() -> Result<()> {
    let mesh = mesh()?;
    let to = to(&mesh)?;
    let before = [counters(&mesh, "source")?, counters(&mesh, "destination")?];
    let open = connect(&mesh.client, to)?;
    assert_eq!(exchange(&open, &vec![b'y'; 50_000]), Ended::Answered);
    testkit::eventually("the open flow's bytes are counted", APPLIES, || {
        let grown = grown(&mesh, &before)?;
        ensure!(grown == [[1.0, 0.0, 50_000.0, 50_000.0]; 2], "{grown:?}");
        Ok(())
    })?;
    let listed = mesh.live()?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["request_bytes"], 50_000, "{listed:?}");
    assert_eq!(listed[0]["response_bytes"], 50_000, "{listed:?}");
    let lines = mesh.agent_log("n1").lines().count();
    assert_eq!(exchange(&open, &vec![b'z'; 1234]), Ended::Answered);
    drop(open);
    testkit::eventually("and the rest at the end, nothing twice", APPLIES, || {
        let grown = grown(&mesh, &before)?;
        ensure!(grown == [[1.0, 1.0, 51_234.0, 51_234.0]; 2], "{grown:?}");
        let log = mesh.agent_log("n1");
        let mut new = log.lines().skip(lines);
        let words = [
            "connection closed",
            "same_node",
            "bytes_sent=51234",
            "bytes_recv=51234",
        ];
        ensure!(
            new.any(|line| words.iter().all(|word| line.contains(word))),
            "no line"
        );
        Ok(())
    })
}

/// Each way of ending counts the application's bytes and nothing else.
#[test]
fn the_bytes_of_many_short_direct_connections_add_up() -> Result<()> {
    let mesh = mesh()?;
    let to = to(&mesh)?;
    let before = [counters(&mesh, "source")?, counters(&mesh, "destination")?];
    let message = crate::fixture::PING.len() as f64;
    let count = 300;
    for _ in 0..count {
        assert_eq!(call(&mesh.client, to)?, Ended::Answered);
    }
    let count = f64::from(count);
    testkit::eventually("all are counted", APPLIES, || {
        let grown = grown(&mesh, &before)?;
        let expected = [count, count, count * message, count * message];
        ensure!(grown == [expected; 2], "{grown:?}, not {expected:?}");
        Ok(())
    })
}
