//! A direct connection that policy refuses: the client knows at once, the operator reads why.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::mesh::{Mesh, PORT, mesh};
use crate::fixture::{APPLIES, Ended, at, call, call_here, joined, wait_for, wait_refusal};
use tests_lab::metrics::Metrics;

const NO_RIVAL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: keep-out, namespace: green}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [rival]}}]}]}
";
const ONLY_CLIENT: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guests, namespace: green}
spec: {action: ALLOW, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}
";

fn failed(mesh: &Mesh) -> Result<f64> {
    let labels = [
        ("reporter", "source"),
        ("source_workload", "rival"),
        ("destination_workload", "echo"),
        ("response_flags", "DENY"),
        ("connection_security_policy", "same_node"),
        (
            "source_principal",
            "spiffe://cluster.local/ns/green/sa/rival",
        ),
        (
            "destination_principal",
            "spiffe://cluster.local/ns/green/sa/echo",
        ),
    ];
    Ok(Metrics::of_agent(mesh, "n1")?.sum("istio_tcp_connections_failed_total", &labels))
}

fn opened(mesh: &Mesh, client: &str, security: &str) -> Result<f64> {
    let labels = [
        ("reporter", "source"),
        ("source_workload", client),
        ("destination_workload", "echo"),
        ("connection_security_policy", security),
    ];
    Ok(Metrics::of_agent(mesh, "n1")?.sum("istio_tcp_connections_opened_total", &labels))
}

/// F-ids of refusals: `connect` itself fails, in both families; line, metric and page name policy and reason.
#[test]
fn a_refused_client_knows_at_once_and_the_operator_reads_which_policy_it_was() -> Result<()> {
    let mesh = mesh()?;
    let echo = mesh.pod("green/echo")?;
    for (policy, name, reason) in [
        (NO_RIVAL, "green/keep-out", "policy_deny"),
        (ONLY_CLIENT, "green/guests", "policy_no_allow"),
    ] {
        mesh.policies(policy)?;
        for to in [at(echo.v4()?, PORT), at(echo.v6()?, PORT)] {
            wait_for(&mesh.rival, to, Ended::Refused)?;
            // What was refused until now is counted before we begin.
            mesh.settle()?;
            let (before, denied) = (failed(&mesh)?, mesh.decisions("outbound_denied")?);
            let lines = mesh.agent_log("n1").lines().count();
            let error = mesh.rival.run(|| std::net::TcpStream::connect(to))?;
            let error = error.err().context("it was let in")?;
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "by connect itself"
            );
            assert_eq!(
                mesh.decisions("outbound_denied")? - denied,
                1.0,
                "in the kernel"
            );
            testkit::eventually("metric and line tell of it", APPLIES, || {
                let grown = failed(&mesh)? - before;
                ensure!((grown - 1.0).abs() < 0.5, "counted {grown}");
                let log = mesh.agent_log("n1");
                let mut new = log.lines().skip(lines);
                let words = [name, "DENY", "direct", "green/rival", &to.to_string()];
                let told = new.any(|line| words.iter().all(|word| line.contains(word)));
                ensure!(told, "no line with {words:?}");
                Ok(())
            })?;
            let page = wait_refusal(&mesh, "n1", &[name, &to.to_string(), "green/rival"])?;
            assert_eq!(page["security"], "same_node", "{page:#}");
            assert_eq!(page["reason"], reason, "{page:#}");
            assert_eq!(call(&mesh.client, to)?, Ended::Answered);
        }
        mesh.clear()?;
    }
    Ok(())
}

/// What is allowed counts as `same_node`, never as encrypted.
#[test]
fn an_allowed_direct_connection_is_counted_as_same_node() -> Result<()> {
    let mesh = mesh()?;
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    mesh.wait_direct(&mesh.client, to)?;
    mesh.settle()?;
    let before = [
        opened(&mesh, "client", "same_node")?,
        opened(&mesh, "client", "mutual_tls")?,
    ];
    for _ in 0..5 {
        assert_eq!(call(&mesh.client, to)?, Ended::Answered);
    }
    testkit::eventually("five are counted", APPLIES, || {
        let now = [
            opened(&mesh, "client", "same_node")?,
            opened(&mesh, "client", "mutual_tls")?,
        ];
        let grown = [now[0] - before[0], now[1] - before[1]];
        ensure!(grown == [5.0, 0.0], "same_node and mutual_tls: {grown:?}");
        Ok(())
    })
}

/// Connects that are refused in the kernel, as fast as they go.
fn refused(mesh: &Mesh, to: SocketAddr, count: usize) -> Result<usize> {
    mesh.rival.run(|| {
        let ended = (0..count).map(|_| call_here(to, b"x"));
        ended.filter(|ended| *ended == Ended::Refused).count()
    })
}

/// Every refusal is counted, a few are told of one by one, the others by number.
#[test]
fn refusals_without_end_are_counted_without_a_gap_and_told_of_in_few_lines() -> Result<()> {
    let mesh = mesh()?;
    let to = at(mesh.pod("green/echo")?.v4()?, PORT);
    mesh.policies(NO_RIVAL)?;
    wait_for(&mesh.rival, to, Ended::Refused)?;
    // What was refused until now is counted before we begin.
    mesh.settle()?;
    let (counted, lost) = (failed(&mesh)?, mesh.decisions("event_lost")?);
    let lines = mesh.agent_log("n1").lines().count();
    let (threads, each) = (4, 50_000);
    let flood = threads * each;
    let start = Instant::now();
    let ended = std::thread::scope(|scope| -> Result<usize> {
        let flooding: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| refused(&mesh, to, each)))
            .collect();
        flooding.into_iter().map(|one| joined(one)?).sum()
    })?;
    assert_eq!(ended, flood, "all are refused");
    testkit::eventually("all are counted", APPLIES, || {
        let told = failed(&mesh)? - counted;
        ensure!((told - flood as f64).abs() < 0.5, "{told} of {flood}");
        Ok(())
    })?;
    let seconds = usize::try_from(start.elapsed().as_secs())?;
    assert_eq!(mesh.decisions("event_lost")?, lost);
    let log = mesh.agent_log("n1");
    let new: Vec<&str> = log
        .lines()
        .skip(lines)
        .filter(|line| line.contains("green/rival"))
        .collect();
    println!(
        "measured: {} lines for {flood} refusals in {seconds} s",
        new.len()
    );
    assert!(new.len() <= 64 + 4 * (seconds + 2), "{} lines", new.len());
    assert!(new.iter().any(|line| line.contains("more like it")));
    mesh.clear()
}
