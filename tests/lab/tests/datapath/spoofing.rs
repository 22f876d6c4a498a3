//! A pod that writes another pod's address into its packets reaches nobody with them.
//!
//! The lab's nodes validate sources themselves, as a well-kept node does; here they are told not
//! to, so that what is left is the mesh's own guard.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Node, Pod, PodSpec};
use socket2::{Domain, Protocol, Socket, Type};
use tests_lab::namespace;

use crate::support::{Failures, changing_world, fresh_port};

/// A SYN as the kernel would send it, but with any source.
fn syn(source: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(0x1234_5678_u32.to_be_bytes());
    tcp.extend([0; 4]);
    // Header of five words, SYN, a window, checksum to come, no urgent data.
    tcp.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = octets(source.ip());
    pseudo.extend(octets(to.ip()));
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    let checksum = !sum(&pseudo);
    tcp.splice(16..18, checksum.to_be_bytes());
    let mut packet = if to.is_ipv4() {
        // The kernel fills in length, id and checksum (raw(7)).
        vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, 20, 6, 64]
    };
    packet.extend(octets(source.ip()));
    packet.extend(octets(to.ip()));
    packet.extend(tcp);
    packet
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let total: u32 = words.sum();
    let folded = (total & 0xffff) + (total >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

fn send(from: &Pod, packet: &[u8], to: SocketAddr) -> Result<()> {
    from.run(|| {
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol))?;
        // A raw IPv6 socket takes no port.
        socket.send_to(packet, &SocketAddr::new(to.ip(), 0).into())?;
        Ok(())
    })?
}

/// Lets the node forward whatever source a packet claims, unless the mesh objects.
fn be_careless(node: &Node, pods: &[&Pod]) -> Result<()> {
    let mut keys: Vec<String> = vec!["net.ipv4.conf.all.rp_filter".to_owned()];
    keys.extend(
        pods.iter()
            .map(|pod| format!("net.ipv4.conf.{}.rp_filter", pod.host_interface())),
    );
    for key in keys {
        node.netns().sysctl(&key, "0")?;
    }
    let delete = ["delete", "table", "ip6", "source-guard"];
    // It is gone already where a test before this one has been careless.
    drop(node.run(|| Command::new("nft").args(delete).output())??);
    Ok(())
}

fn check(lab: &Lab, attacker: &Pod, owner: &Pod, victim: &Pod) -> Result<()> {
    let port = fresh_port();
    let at_victim = victim.capture()?;
    for ((own, stolen), to) in attacker.ips().iter().zip(owner.ips()).zip(victim.ips()) {
        let to = SocketAddr::new(*to, port);
        for _ in 0..5 {
            for source in [own, stolen] {
                send(attacker, &syn(SocketAddr::new(*source, 4444), to), to)?;
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

/// From every kind of pod, in the name of every kind, to near and far.
#[test]
fn a_syn_with_another_local_pods_address_gets_nowhere() -> Result<()> {
    let lab = changing_world()?;
    lab.apply("liars.yaml", &namespace("liars", &[]))?;
    let plain_liar = lab.create(&PodSpec::new("liars", "plain", "n1"))?;
    let mesh_liar =
        lab.create(&PodSpec::new("liars", "captured", "n1").label("keelson.io/mesh", "enabled"))?;
    let owners = [lab.pod("mesh/a")?, lab.pod("plain/p")?];
    let victims = [lab.pod("mesh/b")?, lab.pod("strict/s")?, lab.pod("mesh/c")?];
    be_careless(&lab.node("n1")?, &[&plain_liar, &mesh_liar])?;
    let mut failures = Failures::default();
    for attacker in [&mesh_liar, &plain_liar] {
        for owner in &owners {
            for victim in &victims {
                let cell = format!("{} as {} to {}", attacker.key(), owner.key(), victim.key());
                failures.note(&cell, check(&lab, attacker, owner, victim));
            }
        }
    }
    failures
        .judge(&lab)
        .context("source validation of the node is off")
}
