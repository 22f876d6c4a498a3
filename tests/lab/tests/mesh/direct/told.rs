//! What is told of direct connections: bytes while they live and at their end, lines, lists.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::hamlet::{Hamlet, PORT, hamlet};
use crate::fixture::{APPLIES, Ended, at, call, connect, exchange};
use crate::metrics::Metrics;

/// Opened, closed, request bytes, response bytes, as the source or the destination reports them.
fn counters(hamlet: &Hamlet, reporter: &str) -> Result<[f64; 4]> {
    let metrics = Metrics::of_agent(hamlet, "n1")?;
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

fn grown(hamlet: &Hamlet, before: &[[f64; 4]; 2]) -> Result<[[f64; 4]; 2]> {
    let mut grown = [
        counters(hamlet, "source")?,
        counters(hamlet, "destination")?,
    ];
    for (now, before) in grown.iter_mut().flatten().zip(before.iter().flatten()) {
        *now -= before;
    }
    Ok(grown)
}

fn to(hamlet: &Hamlet) -> Result<SocketAddr> {
    let to = at(hamlet.pod("green/echo")?.v4()?, PORT);
    hamlet.wait_direct(&hamlet.client, to)?;
    hamlet.settle()?;
    Ok(to)
}

/// A59: an operator sees a long flow while it lasts, and its end adds the rest, once.
#[test]
fn the_bytes_of_a_live_direct_connection_are_counted_before_it_ends() -> Result<()> {
    let hamlet = hamlet()?;
    let to = to(&hamlet)?;
    let before = [
        counters(&hamlet, "source")?,
        counters(&hamlet, "destination")?,
    ];
    let open = connect(&hamlet.client, to)?;
    assert_eq!(exchange(&open, &vec![b'y'; 50_000]), Ended::Answered);
    testkit::eventually("the open flow's bytes are counted", APPLIES, || {
        let grown = grown(&hamlet, &before)?;
        ensure!(grown == [[1.0, 0.0, 50_000.0, 50_000.0]; 2], "{grown:?}");
        Ok(())
    })?;
    let listed = hamlet.live()?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["request_bytes"], 50_000, "{listed:?}");
    assert_eq!(listed[0]["response_bytes"], 50_000, "{listed:?}");
    let lines = hamlet.agent_log("n1").lines().count();
    assert_eq!(exchange(&open, &vec![b'z'; 1234]), Ended::Answered);
    drop(open);
    testkit::eventually("and the rest at the end, nothing twice", APPLIES, || {
        let grown = grown(&hamlet, &before)?;
        ensure!(grown == [[1.0, 1.0, 51_234.0, 51_234.0]; 2], "{grown:?}");
        let log = hamlet.agent_log("n1");
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
    let hamlet = hamlet()?;
    let to = to(&hamlet)?;
    let before = [
        counters(&hamlet, "source")?,
        counters(&hamlet, "destination")?,
    ];
    let message = crate::fixture::PING.len() as f64;
    let count = 300;
    for _ in 0..count {
        assert_eq!(call(&hamlet.client, to)?, Ended::Answered);
    }
    let count = f64::from(count);
    testkit::eventually("all are counted", APPLIES, || {
        let grown = grown(&hamlet, &before)?;
        let expected = [count, count, count * message, count * message];
        ensure!(grown == [expected; 2], "{grown:?}, not {expected:?}");
        Ok(())
    })
}
