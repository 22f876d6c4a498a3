//! Which endpoint of a Service takes a connection: by weight, near and far alike, and by nearness where asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::mesh::{Mesh, SERVERS, any_vip, mesh, near_vip, repetitions, report, say, who_answers};
use crate::fixture::APPLIES;

/// How often each server answered.
type Counts = BTreeMap<String, u64>;

fn draw(mesh: &Mesh, to: SocketAddr, count: usize) -> Result<Counts> {
    mesh.client.run(|| {
        let mut counts = Counts::new();
        for _ in 0..count {
            *counts.entry(who_answers(to)?).or_default() += 1;
        }
        anyhow::Ok(counts)
    })?
}

/// Pearson's statistic of what was counted against shares by weight.
fn statistic(counts: &Counts, weights: &[(&str, u32)]) -> f64 {
    let total: u64 = counts.values().sum();
    let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
    weights
        .iter()
        .map(|(name, weight)| {
            let expected = total as f64 * f64::from(*weight) / f64::from(sum);
            let counted = counts.get(*name).copied().unwrap_or(0) as f64;
            (counted - expected).powi(2) / expected
        })
        .sum()
}

/// The value that Pearson's statistic exceeds once in a million tests, by degrees of freedom from 1.
const CRITICAL: [f64; 3] = [23.93, 27.63, 30.66];

fn check(counts: &Counts, weights: &[(&str, u32)]) -> Result<()> {
    let strangers = counts
        .keys()
        .any(|name| weights.iter().all(|(known, _)| known != name));
    ensure!(!strangers, "somebody else answered: {counts:?}");
    let limit = CRITICAL
        .get(weights.len() - 2)
        .context("degrees of freedom")?;
    let found = statistic(counts, weights);
    say(&format!(
        "chi-square of {counts:?} for {weights:?}: {found:.2}, limit {limit}"
    ));
    ensure!(
        found < *limit,
        "chi-square {found:.2} of {counts:?} for {weights:?}"
    );
    Ok(())
}

/// The servers that run on `node`, or on any.
fn weights(node: Option<&str>) -> Vec<(&'static str, u32)> {
    let of_node = SERVERS
        .iter()
        .filter(|(_, on, _)| node.is_none_or(|node| node == *on));
    of_node.map(|(name, _, weight)| (*name, *weight)).collect()
}

/// Ten thousand connections, endpoints on both nodes, four weights, both families.
#[test]
fn endpoints_near_and_far_are_drawn_by_weight() -> Result<()> {
    let mesh = mesh()?;
    let direct = mesh.decisions("outbound_direct")?;
    let mut counts = draw(&mesh, any_vip(false), 7500)?;
    for (name, count) in draw(&mesh, any_vip(true), 2500)? {
        *counts.entry(name).or_default() += count;
    }
    check(&counts, &weights(None))?;
    // The same counts for other weights: a statistic that cannot fail shows nothing.
    let mut even = weights(None);
    even.iter_mut().for_each(|(_, weight)| *weight = 1);
    ensure!(
        check(&counts, &even).is_err(),
        "it cannot tell weights apart"
    );
    let went_direct = mesh.decisions("outbound_direct")? - direct;
    let near: u64 = ["one", "three"]
        .iter()
        .filter_map(|name| counts.get(*name))
        .sum();
    ensure!(
        (went_direct - near as f64).abs() < 0.5,
        "{went_direct} of {near} connections to this node's endpoints went directly"
    );
    Ok(())
}

/// Where the Service prefers its clients' node, weights count among that node's endpoints.
#[test]
fn a_service_that_prefers_the_node_draws_there_by_weight() -> Result<()> {
    let mesh = mesh()?;
    for v6 in [false, true] {
        let counts = draw(&mesh, near_vip(v6), 2000)?;
        check(&counts, &weights(Some("n1")))?;
    }
    Ok(())
}

/// The near endpoints gone, the far ones take over; back again, they are preferred again.
#[test]
fn without_endpoints_on_the_node_the_far_ones_take_over() -> Result<()> {
    let mesh = mesh()?;
    let near = ["green/one", "green/three"];
    let went = (|| {
        for pod in near {
            mesh.label_pod(pod, "role", Some("none"))?;
        }
        wait_only(&mesh, near_vip(false), &["two", "four"])?;
        check(&draw(&mesh, near_vip(false), 500)?, &weights(Some("n2")))
    })();
    for pod in near {
        mesh.label_pod(pod, "role", Some("server"))?;
    }
    wait_only(&mesh, near_vip(false), &["one", "three"])?;
    went
}

/// Waits until a hundred connections in a row reach none but these.
fn wait_only(mesh: &Mesh, to: SocketAddr, wanted: &[&str]) -> Result<()> {
    testkit::eventually(&format!("only {wanted:?} answer"), APPLIES, || {
        let counts = draw(mesh, to, 100)?;
        let strangers = counts.keys().find(|name| !wanted.contains(&name.as_str()));
        ensure!(strangers.is_none(), "{counts:?}");
        Ok(())
    })
}

/// One endpoint leaves the Service and comes back, again and again; how long after the manifest's
/// change it was still chosen is reported, as is what the agent itself took.
#[test]
fn an_endpoint_that_left_the_service_is_chosen_no_more() -> Result<()> {
    let mesh = mesh()?;
    let to = any_vip(false);
    let mut last_chosen = Vec::new();
    let lines = mesh.agent_log("n1").lines().count();
    for _ in 0..repetitions(5) {
        let chosen = std::thread::scope(|scope| -> Result<Instant> {
            let client = &mesh.client;
            let (begun, begins) = mpsc::channel();
            let asking = scope.spawn(move || {
                client.run(|| {
                    let (start, mut last, mut without) = (Instant::now(), None, 0);
                    let chosen = loop {
                        if who_answers(to)? == "three" {
                            break Instant::now();
                        }
                        ensure!(start.elapsed() < APPLIES, "never chosen");
                    };
                    begun.send(())?;
                    // With three tenths of the weight it does not miss a hundred draws by chance.
                    while without < 100 {
                        ensure!(start.elapsed() < APPLIES, "still chosen");
                        let asked = Instant::now();
                        if who_answers(to)? == "three" {
                            (last, without) = (Some(asked), 0);
                        } else {
                            without += 1;
                        }
                    }
                    Ok(last.unwrap_or(chosen))
                })
            });
            // A thread that failed says so when it is joined.
            let _failed = begins.recv().is_err();
            let changed = Instant::now();
            mesh.label_pod("green/three", "role", Some("none"))?;
            let last = crate::fixture::joined(asking)???;
            last_chosen.push(last.saturating_duration_since(changed));
            Ok(last)
        });
        mesh.label_pod("green/three", "role", Some("server"))?;
        chosen?;
        testkit::eventually("it is chosen again", APPLIES, || {
            let counts = draw(&mesh, to, 30)?;
            ensure!(counts.contains_key("three"), "{counts:?}");
            Ok(())
        })?;
    }
    report(
        "last choice of a gone endpoint, from the manifest's change",
        last_chosen,
    );
    let log = mesh.agent_log("n1");
    report(
        "configuration at the agent until the kernel goes by it",
        super::mesh::times(
            log.lines().skip(lines),
            "the kernel goes by the new configuration",
        ),
    );
    Ok(())
}
