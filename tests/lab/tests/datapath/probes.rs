//! Whose connections count as a kubelet's probe, and what they may reach.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Node, Pod};

use crate::support::{
    Ended, Failures, PROBED, addresses, attempt_here, echo, judge_refusal, token, world,
};

/// Who connects from a node's own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Kubelet,
    /// Anything else on the node: a shell, a host-network pod's process, a NodePort client.
    Host,
}

impl From {
    fn attempt(self, node: &Node, to: SocketAddr) -> Result<(Ended, Duration)> {
        let bytes = token();
        match self {
            Self::Kubelet => node.run_as_kubelet(|| attempt_here(to, &bytes)),
            Self::Host => node.run(|| attempt_here(to, &bytes)),
        }
    }
}

/// Ports that no pod's own probes declare.
const UNDECLARED: [u16; 2] = [8087, 10_255];

fn check(
    from: From,
    node: &str,
    pod: &Pod,
    expected: fn(Ended, Duration) -> Result<()>,
) -> Result<()> {
    check_ports(from, node, pod, &PROBED, expected)
}

fn check_ports(
    from: From,
    node: &str,
    pod: &Pod,
    ports: &[u16],
    expected: fn(Ended, Duration) -> Result<()>,
) -> Result<()> {
    let world = world()?;
    let node = world.node(node)?;
    let mut failures = Failures::default();
    for port in ports.iter().copied() {
        let _echo = echo(pod, port)?;
        for to in addresses(pod, port) {
            let (ended, took) = from.attempt(&node, to)?;
            let cell = format!("{from:?} of {} to {to}", node.name());
            failures.note(&cell, expected(ended, took));
        }
    }
    failures.judge(&world)
}

fn pod(key: &str) -> Result<Pod> {
    world()?.pod(key)
}

fn answered(ended: Ended, took: Duration) -> Result<()> {
    ensure!(ended == Ended::Answered, "{ended:?} after {took:?}");
    Ok(())
}

/// A38, P13.
#[test]
fn the_kubelets_probes_reach_a_strict_pod_on_every_port_that_it_declares() -> Result<()> {
    check(From::Kubelet, "n1", &pod("strict/s")?, answered)?;
    check(From::Kubelet, "n2", &pod("strict/t")?, answered)
}

/// P13.
#[test]
fn the_kubelets_probes_reach_permissive_and_plain_pods() -> Result<()> {
    check(From::Kubelet, "n1", &pod("mesh/a")?, answered)?;
    check(From::Kubelet, "n1", &pod("plain/p")?, answered)
}

/// A38: the exemption is the kubelet's, not the node's.
#[test]
fn other_traffic_of_the_node_is_no_probe() -> Result<()> {
    check(From::Host, "n1", &pod("strict/s")?, judge_refusal)?;
    check(From::Host, "n2", &pod("strict/t")?, judge_refusal)
}

/// A38: a kubelet probes the pods of its own node.
#[test]
fn the_kubelet_of_another_node_is_no_prober() -> Result<()> {
    check(From::Kubelet, "n2", &pod("strict/s")?, judge_refusal)?;
    check(From::Host, "n2", &pod("strict/s")?, judge_refusal)
}

/// Whoever writes a manifest can make the kubelet call any pod (`httpGet.host`): on a port that the pod's own
/// probes do not declare that is plain text like any other.
#[test]
fn the_kubelet_reaches_nothing_that_a_pods_own_probes_do_not_declare() -> Result<()> {
    for (node, pod_key, expected) in [
        (
            "n1",
            "strict/s",
            judge_refusal as fn(Ended, Duration) -> Result<()>,
        ),
        ("n2", "strict/t", judge_refusal),
        ("n1", "mesh/a", answered),
        ("n1", "plain/p", answered),
    ] {
        check_ports(From::Kubelet, node, &pod(pod_key)?, &UNDECLARED, expected)?;
    }
    Ok(())
}

/// A37.
#[test]
fn the_node_reaches_a_permissive_pod_as_any_plain_client() -> Result<()> {
    check(From::Host, "n1", &pod("mesh/a")?, answered)?;
    check(From::Host, "n2", &pod("mesh/a")?, answered)
}

/// A probe must fail fast, or it counts as slow and not as down.
#[test]
fn a_probe_of_a_port_nobody_listens_on_is_refused() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for pod in ["strict/s", "mesh/a"] {
        for to in addresses(&world.pod(pod)?, 6668) {
            let (ended, took) = From::Kubelet.attempt(&world.node("n1")?, to)?;
            let went = judge_refusal(ended, took).and_then(|()| {
                ensure!(ended == Ended::Refused, "{ended:?} instead of ECONNREFUSED");
                Ok(())
            });
            failures.note(&to.to_string(), went);
        }
    }
    failures.judge(&world)
}

/// The hook that recognises the kubelet leaves its other connections as they are.
#[test]
fn a_kubelet_keeps_its_own_address_towards_everything_else() -> Result<()> {
    let world = world()?;
    let (n1, n2) = (world.node("n1")?, world.node("n2")?);
    let listener = n2.run(|| std::net::TcpListener::bind("[::]:6669"))??;
    let server = testkit::Peer::serve(listener, testkit::Behaviour::Echo)?;
    for (to, own) in [
        (n2.v4().into(), std::net::IpAddr::from(n1.v4())),
        (n2.v6().into(), n1.v6().into()),
    ] {
        let to: std::net::IpAddr = to;
        let (ended, took) = From::Kubelet.attempt(&n1, (to, 6669).into())?;
        answered(ended, took)?;
        let seen = server.clients().last().map(|seen| seen.ip().to_canonical());
        ensure!(seen == Some(own), "{to} saw {seen:?}");
    }
    Ok(())
}
