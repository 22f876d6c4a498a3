//! A pod that writes another pod's address into its packets reaches nobody with them.
//!
//! The lab's nodes validate sources themselves, as well-kept nodes do. On a careless one they do not,
//! and what is left is the mesh's own guard.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use lab::{Lab, Pod, PodSpec};
use tests_lab::{namespace, syn};

use crate::support::{Failures, changing_world, fresh_port};

fn send(from: &Pod, packet: &[u8], to: SocketAddr) -> Result<()> {
    from.run(|| syn::send(packet, to))?
}

/// Lets the node forward whatever source a packet of this pod claims, unless the mesh objects.
pub(crate) fn be_careless(node: &lab::Node, pod: &Pod) -> Result<()> {
    let filter = format!("net.ipv4.conf.{}.rp_filter", pod.host_interface());
    node.netns().sysctl(&filter, "0")?;
    let accept = format!(
        "insert rule ip6 source-guard prerouting iifname {} accept",
        pod.host_interface()
    );
    let words = accept.split(' ');
    let status = node.run(|| Command::new("nft").args(words).status())??;
    ensure!(status.success(), "nft {accept}: {status}");
    Ok(())
}

pub(crate) fn check(lab: &Lab, attacker: &Pod, owner: &Pod, victim: &Pod) -> Result<()> {
    let port = fresh_port();
    let at_victim = victim.capture()?;
    for ((own, stolen), to) in attacker.ips().iter().zip(owner.ips()).zip(victim.ips()) {
        let to = SocketAddr::new(*to, port);
        for _ in 0..5 {
            for source in [own, stolen] {
                let packet = syn::packet(SocketAddr::new(*source, 4444), to);
                send(attacker, &packet, to)?;
            }
        }
        let (honest, spoofed) = (at_victim.syns_from(*own), at_victim.syns_from(*stolen));
        ensure!(
            honest > 0,
            "no SYN with the true source {own}: the test sends nothing"
        );
        ensure!(
            spoofed == 0,
            "{spoofed} SYN with the stolen source {stolen} came through"
        );
    }
    ensure!(at_victim.counts().lost == 0, "the capture lost frames");
    ensure!(lab.agent_pid("n1").is_some(), "the agent ended");
    Ok(())
}

/// The node's care, or its lack of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    /// Validates sources at its pods' interfaces, as the lab's nodes do by themselves.
    Careful,
    /// Forwards what comes: the guard is the mesh's alone.
    Careless,
}

/// In the name of every kind of pod, to near and far.
fn check_liar(name: &str, label: Option<&str>, node: Node) -> Result<()> {
    let lab = changing_world()?;
    lab.apply("liars.yaml", &namespace("liars", &[]))?;
    let mut spec = PodSpec::new("liars", name, "n1");
    if let Some(value) = label {
        spec = spec.label("keelson.io/mesh", value);
    }
    let liar = lab.create(&spec)?;
    if node == Node::Careless {
        be_careless(&lab.node("n1")?, &liar)?;
    }
    let owners = [lab.pod("mesh/a")?, lab.pod("plain/p")?];
    // Far away a pod outside the mesh: no SYN at all goes from a captured pod to one on another node.
    let victims = [
        lab.pod("mesh/b")?,
        lab.pod("strict/s")?,
        lab.pod("plain/r")?,
    ];
    let mut failures = Failures::default();
    for owner in &owners {
        for victim in &victims {
            let cell = format!("{name} as {} to {}", owner.key(), victim.key());
            failures.note(&cell, check(&lab, &liar, owner, victim));
        }
    }
    lab.delete_pod(&liar.key())?;
    failures.judge(&lab)
}

#[test]
fn a_plain_pods_syn_with_another_local_pods_address_gets_nowhere() -> Result<()> {
    check_liar("plain", None, Node::Careful)
}

#[test]
fn a_captured_pods_syn_with_another_local_pods_address_gets_nowhere() -> Result<()> {
    check_liar("captured", Some("enabled"), Node::Careful)
}

#[test]
fn a_captured_pods_lie_gets_nowhere_on_a_careless_node() -> Result<()> {
    check_liar("captured-unchecked", Some("enabled"), Node::Careless)
}

#[test]
fn a_plain_pods_lie_gets_nowhere_on_a_careless_node() -> Result<()> {
    check_liar("plain-unchecked", None, Node::Careless)
}
