//! Certificates that live for seconds: how they are replaced while everything goes on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use tests_lab::turn;

use crate::fixture::{
    Ended, at, call_here, connect, echo, exchange, joined, mesh_namespace, pod, wait_for,
};

const TTL: Duration = Duration::from_secs(4);
const ROTATIONS: usize = 4;

/// What happened to calls that went on and on.
#[derive(Debug, Default)]
struct Load {
    calls: u32,
    failed: Vec<String>,
}

/// Calls over a new connection each time, every few milliseconds, until told to stop.
fn load(from: &Pod, to: SocketAddr, stop: &AtomicBool) -> Result<Load> {
    from.run(|| {
        let mut load = Load::default();
        while !stop.load(Ordering::Relaxed) {
            let ended = call_here(to, b"again and again");
            load.calls += 1;
            if ended != Ended::Answered {
                load.failed.push(format!("call {}: {ended}", load.calls));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        load
    })
}

/// The serial number and the end of the certificate that a node's agent has for a service account.
fn certificate(lab: &Lab, node: &str, service_account: &str) -> Result<(String, u64)> {
    let certs = lab.agent_json(node, "/certs")?;
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{service_account}");
    let mut certs = certs.as_array().context("no list")?.iter();
    let cert = certs.find(|cert| cert["identity"] == identity.as_str());
    let cert = cert.with_context(|| format!("{node} has no certificate of {identity}"))?;
    let serial = cert["serial"].as_str().context("no serial number")?;
    Ok((
        serial.to_owned(),
        cert["not_after"].as_u64().context("no end")?,
    ))
}

/// A40, F67, P57. New tunnels are made along the way, so each certificate is really used.
#[test]
fn certificates_that_live_for_seconds_are_replaced_without_a_failed_request() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).build()?;
    lab.apply("namespace.yaml", &mesh_namespace("shop"))?;
    lab.start_controller(&ControllerOptions {
        cert_ttl: Some(TTL),
        ..ControllerOptions::default()
    })?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    let client = lab.create(&pod("shop", "client", "n1"))?;
    let mut servers = Vec::new();
    let mut echoes = Vec::new();
    for index in 0..=ROTATIONS {
        let spec = pod("shop", &format!("server{index}"), "n2").service_account("server");
        let server = lab.create(&spec)?;
        echoes.push(echo(&server, 8080)?);
        servers.push(at(server.v4()?, 8080));
    }
    wait_for(&client, servers[0], Ended::Answered)?;
    let open = connect(&client, servers[0])?;
    assert_eq!(exchange(&open, b"before"), Ended::Answered);
    let stop = AtomicBool::new(false);
    let (load, seen) = std::thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load(&client, servers[0], &stop));
        let watched = watch_rotations(&lab, &client, &servers, &open);
        stop.store(true, Ordering::Relaxed);
        let load = joined(load)??;
        Ok((load, watched?))
    })?;
    assert_eq!(load.failed, Vec::<String>::new(), "of {} calls", load.calls);
    assert!(load.calls > 100, "only {} calls", load.calls);
    assert!(seen > ROTATIONS, "{seen} certificates");
    assert_eq!(exchange(&open, b"after"), Ended::Answered);
    Ok(())
}

/// Waits for the rotations; at each, an agent pair that has no tunnel yet must make one.
fn watch_rotations(
    lab: &Lab,
    client: &Pod,
    servers: &[SocketAddr],
    open: &std::net::TcpStream,
) -> Result<usize> {
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let deadline = Instant::now() + TTL * (u32::try_from(ROTATIONS)? + 3);
    let mut reached = 0;
    while reached < ROTATIONS {
        anyhow::ensure!(Instant::now() < deadline, "only {serials:?} were seen");
        for (known, (node, account)) in serials.iter_mut().zip([("n1", "client"), ("n2", "server")])
        {
            let (serial, end) = certificate(lab, node, account)?;
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            anyhow::ensure!(end >= now.as_secs(), "{node} lets its certificate expire");
            known.insert(serial);
        }
        let rotations = serials
            .iter()
            .map(|known| known.len() - 1)
            .min()
            .unwrap_or(0);
        if rotations > reached {
            reached = rotations;
            let to = *servers.get(reached).context("one server a rotation")?;
            let ended = client.run(|| call_here(to, b"over a new tunnel"))?;
            anyhow::ensure!(
                ended == Ended::Answered,
                "after {reached} rotations: {ended}"
            );
            let ended = exchange(open, b"over the old connection");
            anyhow::ensure!(ended == Ended::Answered, "the open connection: {ended}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(serials[0].len())
}
