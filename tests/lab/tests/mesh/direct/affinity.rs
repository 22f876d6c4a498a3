//! `sessionAffinity: ClientIP`: a client keeps its endpoint, near or far, for as long as it is one.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use lab::Pod;

use super::mesh::{Mesh, SERVERS, kept_vip, mesh, who_answers};
use crate::fixture::APPLIES;

/// Connections in a row; drawn anew each, two servers would hardly ever be one.
const CONNECTIONS: usize = 60;

/// The one server that answers all of many connections in a row.
fn kept(client: &Pod, to: SocketAddr) -> Result<String> {
    client.run(|| {
        let first = who_answers(to)?;
        for _ in 1..CONNECTIONS {
            let name = who_answers(to)?;
            ensure!(name == first, "{name} answers where {first} did");
        }
        anyhow::Ok(first)
    })?
}

fn node_of(server: &str) -> Result<&'static str> {
    match SERVERS.iter().find(|(name, _, _)| *name == server) {
        Some((_, node, _)) => Ok(node),
        None => bail!("{server} is no server"),
    }
}

/// The client's endpoint leaves the Service, again and again, until it has kept each of the four.
fn through_all(mesh: &Mesh, to: SocketAddr) -> Result<()> {
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < SERVERS.len() {
        let mut now = String::new();
        testkit::eventually("it keeps one that is an endpoint", APPLIES, || {
            now = kept(&mesh.client, to)?;
            ensure!(!seen.contains(&now), "{now} has left");
            Ok(())
        })?;
        let direct = mesh.decisions("outbound_direct")?;
        ensure!(kept(&mesh.client, to)? == now, "not {now} any more");
        let went = mesh.decisions("outbound_direct")? - direct;
        let expected = if node_of(&now)? == "n1" {
            CONNECTIONS
        } else {
            0
        };
        ensure!(
            (went - expected as f64).abs() < 0.5,
            "{went} of {CONNECTIONS} connections to {now} went directly"
        );
        seen.push(now.clone());
        if seen.len() < SERVERS.len() {
            mesh.label_pod(&format!("green/{now}"), "role", Some("none"))?;
        }
    }
    // The others come back, and change nothing for whoever has one.
    let last = seen.pop().unwrap_or_default();
    for name in &seen {
        mesh.label_pod(&format!("green/{name}"), "role", Some("server"))?;
    }
    testkit::eventually("all are endpoints again", APPLIES, || {
        let dump = mesh.agent_json("n1", "/config_dump")?;
        let workloads = dump["workloads"].as_array().map_or(&[][..], Vec::as_slice);
        let endpoints = workloads
            .iter()
            .filter(|workload| workload["services"].get(KEPT).is_some());
        ensure!(endpoints.count() == SERVERS.len(), "not yet");
        Ok(())
    })?;
    ensure!(kept(&mesh.client, to)? == last, "not {last} any more");
    Ok(())
}

#[test]
fn a_client_keeps_its_endpoint_near_directly_and_far_through_the_agent() -> Result<()> {
    let mesh = mesh()?;
    let went = through_all(&mesh, kept_vip(false));
    for (name, _, _) in SERVERS {
        mesh.label_pod(&format!("green/{name}"), "role", Some("server"))?;
    }
    went?;
    // Another family is another session, and another client too.
    kept(&mesh.client, kept_vip(true))?;
    kept(&mesh.rival, kept_vip(false))?;
    Ok(())
}

const KEPT: &str = "green/kept.green.svc.cluster.local";
