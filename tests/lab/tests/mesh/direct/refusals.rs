//! A direct connection that policy refuses: the client knows at once, the operator reads why.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hamlet::{Hamlet, PORT, hamlet};
use crate::fixture::{APPLIES, Ended, at, call, call_here, wait_for, wait_refusal};
use crate::metrics::Metrics;

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

fn failed(hamlet: &Hamlet) -> Result<f64> {
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
    Ok(Metrics::of_agent(hamlet, "n1")?.sum("istio_tcp_connections_failed_total", &labels))
}

fn opened(hamlet: &Hamlet, client: &str, security: &str) -> Result<f64> {
    let labels = [
        ("reporter", "source"),
        ("source_workload", client),
        ("destination_workload", "echo"),
        ("connection_security_policy", security),
    ];
    Ok(Metrics::of_agent(hamlet, "n1")?.sum("istio_tcp_connections_opened_total", &labels))
}

/// F-ids of refusals: `connect` itself fails, in both families; line, metric and page name policy and reason.
#[test]
fn a_refused_client_knows_at_once_and_the_operator_reads_which_policy_it_was() -> Result<()> {
    let hamlet = hamlet()?;
    let echo = hamlet.pod("green/echo")?;
    for (policy, name, reason) in [
        (NO_RIVAL, "green/keep-out", "policy_deny"),
        (ONLY_CLIENT, "green/guests", "policy_no_allow"),
    ] {
        hamlet.policies(policy)?;
        for to in [at(echo.v4()?, PORT), at(echo.v6()?, PORT)] {
            wait_for(&hamlet.rival, to, Ended::Refused)?;
            // What was refused until now is counted before we begin.
            hamlet.settle()?;
            let (before, denied) = (failed(&hamlet)?, hamlet.decisions("outbound_denied")?);
            let lines = hamlet.agent_log("n1").lines().count();
            let error = hamlet.rival.run(|| std::net::TcpStream::connect(to))?;
            let error = error.err().context("it was let in")?;
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "by connect itself"
            );
            assert_eq!(
                hamlet.decisions("outbound_denied")? - denied,
                1.0,
                "in the kernel"
            );
            testkit::eventually("metric and line tell of it", APPLIES, || {
                let grown = failed(&hamlet)? - before;
                ensure!((grown - 1.0).abs() < 0.5, "counted {grown}");
                let log = hamlet.agent_log("n1");
                let mut new = log.lines().skip(lines);
                let words = [name, "DENY", "direct", "green/rival", &to.to_string()];
                let told = new.any(|line| words.iter().all(|word| line.contains(word)));
                ensure!(told, "no line with {words:?}");
                Ok(())
            })?;
            let page = wait_refusal(&hamlet, "n1", &[name, &to.to_string(), "green/rival"])?;
            assert_eq!(page["security"], "same_node", "{page:#}");
            assert_eq!(page["reason"], reason, "{page:#}");
            assert_eq!(call(&hamlet.client, to)?, Ended::Answered);
        }
        hamlet.clear()?;
    }
    Ok(())
}

/// What is allowed counts as `same_node`, never as encrypted.
#[test]
fn an_allowed_direct_connection_is_counted_as_same_node() -> Result<()> {
    let hamlet = hamlet()?;
    let to = at(hamlet.pod("green/echo")?.v4()?, PORT);
    hamlet.wait_direct(&hamlet.client, to)?;
    hamlet.settle()?;
    let before = [
        opened(&hamlet, "client", "same_node")?,
        opened(&hamlet, "client", "mutual_tls")?,
    ];
    for _ in 0..5 {
        assert_eq!(call(&hamlet.client, to)?, Ended::Answered);
    }
    testkit::eventually("five are counted", APPLIES, || {
        let now = [
            opened(&hamlet, "client", "same_node")?,
            opened(&hamlet, "client", "mutual_tls")?,
        ];
        let grown = [now[0] - before[0], now[1] - before[1]];
        ensure!(grown == [5.0, 0.0], "same_node and mutual_tls: {grown:?}");
        Ok(())
    })
}

/// A process that is stopped, and goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: i32) -> Result<Self> {
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        Ok(Self(Pid::from_raw(pid)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = kill(self.0, Signal::SIGCONT).is_err();
    }
}

/// Connects that are refused in the kernel, as fast as they go.
fn refused(hamlet: &Hamlet, to: SocketAddr, count: usize) -> Result<usize> {
    hamlet.rival.run(|| {
        let ended = (0..count).map(|_| call_here(to, b"x"));
        ended.filter(|ended| *ended == Ended::Refused).count()
    })
}

/// The ring holds about ten thousand events. While the agent cannot read it, what does not fit is
/// refused all the same, and counted as lost.
#[test]
fn an_event_that_finds_no_room_is_counted_and_its_connection_refused() -> Result<()> {
    let hamlet = hamlet()?;
    let to = at(hamlet.pod("green/echo")?.v4()?, PORT);
    hamlet.policies(NO_RIVAL)?;
    wait_for(&hamlet.rival, to, Ended::Refused)?;
    // What was refused until now is counted before we begin.
    hamlet.settle()?;
    let (counted, lost) = (failed(&hamlet)?, hamlet.decisions("event_lost")?);
    let flood = 15_000;
    let stopped = Stopped::stop(hamlet.agent_pid("n1").context("no agent")?)?;
    let ended = refused(&hamlet, to, flood);
    drop(stopped);
    assert_eq!(ended?, flood, "all are refused, told of or not");
    testkit::eventually("told and lost add up", APPLIES, || {
        let told = failed(&hamlet)? - counted;
        let lost = hamlet.decisions("event_lost")? - lost;
        ensure!(lost > 0.0, "nothing was lost: the ring was not full");
        ensure!(
            (told + lost - flood as f64).abs() < 0.5,
            "{told} told, {lost} lost of {flood}"
        );
        Ok(())
    })?;
    // With room again nothing is lost.
    let lost = hamlet.decisions("event_lost")?;
    let before = failed(&hamlet)?;
    assert_eq!(refused(&hamlet, to, 10)?, 10);
    testkit::eventually("ten more are told of", APPLIES, || {
        let told = failed(&hamlet)? - before;
        ensure!((told - 10.0).abs() < 0.5, "{told}");
        Ok(())
    })?;
    assert_eq!(hamlet.decisions("event_lost")?, lost);
    hamlet.clear()
}
