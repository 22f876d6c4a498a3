//! The second wall: what a captured pod sends past every hook stays off the link, and what is older than the
//! wall goes on. Which means a pod finds to get there does not matter here: packets are sent as they are.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod, PodSpec};
use tests_lab::metrics::{Metrics, decisions, metric};
use tests_lab::{frame, namespace, syn};

use crate::support::{
    APPLIES, Failures, addresses, changing_world, dial, echo, evidence, expect_echo, fresh_port,
    link, round_trip, token, wait_encrypted, wait_readable,
};

const MESH: &str = "keelson.io/mesh";

/// Packets between captured pods of two nodes that a node has dropped because they were in no tunnel.
fn leaks(lab: &Lab, node: &str) -> Result<f64> {
    let of = |direction: &str| {
        let labels = [("direction", direction), ("outcome", "dropped")];
        metric(lab, node, "keelson_plaintext_leak_total", &labels)
    };
    Ok(of("outbound")? + of("inbound")?)
}

/// Waits until all walls of both nodes are enforced.
pub(crate) fn wait_enforced(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2"] {
        testkit::eventually("every wall is enforced", 2 * APPLIES, || {
            for of in ["pod", "address"] {
                let number =
                    |wall: &str| metric(lab, node, "keelson_wall", &[("of", of), ("wall", wall)]);
                let (count, enforce) = (number("count")?, number("enforce")?);
                ensure!(
                    count < 0.5 && enforce > 0.5,
                    "{node}: {of}: {count} only counted, {enforce} enforced"
                );
            }
            let gap = metric(lab, node, "keelson_pods_without_wall", &[])?;
            ensure!(gap < 0.5, "{node}: {gap} captured pods have no wall");
            Ok(())
        })
        .with_context(|| evidence(lab))?;
    }
    Ok(())
}

/// Sends a packet as it is, three times, and says how many packets to the port were on the link.
pub(crate) fn on_the_link(lab: &Lab, from: &Pod, packet: &[u8], to: SocketAddr) -> Result<usize> {
    let link = link(lab)?;
    // What is seen behind it shows that the capture works, and that the packet has had its time.
    let marker = fresh_port();
    let plain = lab.pod("plain/p")?;
    for _ in 0..3 {
        from.run(|| syn::send(packet, to))??;
    }
    let own = plain.ips().iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    let own = SocketAddr::new(*own.context("an address")?, 4444);
    let there = SocketAddr::new(to.ip(), marker);
    testkit::eventually("a plain pod's packet is on the link", APPLIES, || {
        plain.run(|| syn::send(&syn::packet(own, there), there))??;
        ensure!(
            link.count(|packet| packet.destination_port == marker) > 0,
            "not yet"
        );
        Ok(())
    })?;
    Ok(link.count(|packet| packet.destination_port == to.port()))
}

/// Pairs of addresses of two pods, of one family each.
fn pairs<'p>(from: &'p Pod, to: &'p Pod) -> impl Iterator<Item = (IpAddr, IpAddr)> + 'p {
    from.ips().iter().copied().zip(to.ips().iter().copied())
}

#[test]
fn plain_segments_of_a_captured_pod_stay_off_the_link() -> Result<()> {
    let lab = changing_world()?;
    wait_enforced(&lab)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let mut failures = Failures::default();
    for (own, peer) in pairs(&client, &server) {
        // A client that has bound the tunnel's port is no tunnel.
        for source in [4444, 15008] {
            let to = SocketAddr::new(peer, fresh_port());
            let before = decisions(&lab, "n1", "wall_outbound")?;
            let packet = syn::packet(SocketAddr::new(own, source), to);
            let seen = on_the_link(&lab, &client, &packet, to)?;
            let counted = decisions(&lab, "n1", "wall_outbound")? - before;
            let right = seen == 0 && counted > 2.5;
            let what = format!("{seen} on the link, {counted} counted");
            failures.note(
                &format!("{own} port {source}"),
                right.then_some(()).context(what),
            );
        }
    }
    failures.judge(&lab)
}

/// A carried socket that is taken off the way to the agent: the option is refused, or it leads to the wall.
#[test]
fn a_device_chosen_after_connect_puts_nothing_on_the_link() -> Result<()> {
    let lab = changing_world()?;
    wait_enforced(&lab)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let link = link(&lab)?;
    for to in addresses(&server, port) {
        let stream = dial(&client, to)?;
        round_trip(&stream, &token())?;
        let chosen = socket2::SockRef::from(&stream).bind_device(Some(b"eth0"));
        let (before, secret) = (decisions(&lab, "n1", "wall_outbound")?, token());
        std::io::Write::write_all(&mut &stream, &secret)?;
        testkit::eventually("it meets the wall or arrives", APPLIES, || {
            let met = decisions(&lab, "n1", "wall_outbound")? > before;
            // Refused, or without effect: it goes on as it was.
            let arrived = !met && matches!(stream.peek(&mut [0; 64]), Ok(1..));
            ensure!(met || arrived, "neither; the option: {chosen:?}");
            Ok(())
        })?;
        ensure!(!link.contains(&secret)?, "{to}: readable on the link");
    }
    Ok(())
}

/// A service's address is what a pod dials; the node makes an endpoint's of it only behind the wall.
#[test]
fn plain_segments_to_a_services_address_stay_off_the_link() -> Result<()> {
    let lab = changing_world()?;
    wait_enforced(&lab)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let own = SocketAddr::new(client.v4()?.into(), 4444);
    let [vip, _] = crate::support::vips(&server)?;
    let to = SocketAddr::new(vip, 80);
    let before = decisions(&lab, "n1", "wall_outbound")?;
    let link = link(&lab)?;
    client.run(|| syn::send(&syn::packet(own, to), to))??;
    testkit::eventually("it is counted", APPLIES, || {
        ensure!(decisions(&lab, "n1", "wall_outbound")? > before, "not yet");
        Ok(())
    })?;
    let seen = link.count(|packet| packet.source == own.ip() && packet.is_syn());
    ensure!(seen == 0, "{seen} on the link");
    Ok(())
}

#[test]
fn what_hides_its_ports_and_what_nothing_carries_stays_off_the_link() -> Result<()> {
    let lab = changing_world()?;
    wait_enforced(&lab)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let own = SocketAddr::new(client.v4()?.into(), 4444);
    let mut failures = Failures::default();
    for (name, reason, change) in [
        ("SCTP", "wall_transport", (9, 132)),
        ("DCCP", "wall_transport", (9, 33)),
        // More fragments.
        ("a fragment", "wall_headers", (6, 0x20)),
    ] {
        let to = SocketAddr::new(server.v4()?.into(), fresh_port());
        let mut packet = syn::packet(own, to);
        let (at, value) = change;
        *packet.get_mut(at).context("the header")? = value;
        let before = decisions(&lab, "n1", reason)?;
        let seen = on_the_link(&lab, &client, &packet, to)?;
        let counted = decisions(&lab, "n1", reason)? - before;
        let right = seen == 0 && counted > 2.5;
        let what = format!("{seen} on the link, {counted} counted");
        failures.note(name, right.then_some(()).context(what));
    }
    failures.judge(&lab)
}

/// Only the half at the pod's own interface sees this: another node is taken over, or its wall is missing.
#[test]
fn plain_segments_that_come_from_a_captured_pods_address_do_not_arrive() -> Result<()> {
    let lab = changing_world()?;
    wait_enforced(&lab)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let node = lab.node("n2")?;
    let mut failures = Failures::default();
    for (own, peer) in pairs(&client, &server) {
        let to = SocketAddr::new(own, fresh_port());
        let before = decisions(&lab, "n1", "wall_inbound")?;
        let packet = syn::packet(SocketAddr::new(peer, 4444), to);
        let arrived = testkit::eventually("it is dropped", APPLIES, || {
            node.run(|| syn::send(&packet, to))??;
            ensure!(decisions(&lab, "n1", "wall_inbound")? > before, "not yet");
            Ok(())
        });
        failures.note(&own.to_string(), arrived);
    }
    failures.judge(&lab)
}

/// The node takes VLAN tags off, all of them, before it looks at addresses.
#[test]
fn a_captured_pods_tagged_frames_stay_inside() -> Result<()> {
    let lab = changing_world()?;
    let (client, victim) = (lab.pod("mesh/a")?, lab.pod("mesh/b")?);
    let stolen = lab.pod("plain/p")?;
    // Its neighbour table then knows the node.
    let reached = lab.pod("plain/q")?;
    let port = fresh_port();
    let _echo = echo(&reached, port)?;
    expect_echo(&client, SocketAddr::new(reached.v4()?.into(), port))?;
    let mut failures = Failures::default();
    for source in [client.v4()?, stolen.v4()?] {
        for tags in 1..=3 {
            let to = SocketAddr::new(victim.v4()?.into(), fresh_port());
            let at_victim = victim.capture()?;
            let before = decisions(&lab, "n1", "guard_protocol")?;
            let packet = syn::packet(SocketAddr::new(source.into(), 4444), to);
            let sent = client.run(|| frame::send_tagged(&packet, tags))?;
            sent.context("sending a frame")?;
            let counted = testkit::eventually("it is counted", Duration::from_secs(5), || {
                ensure!(decisions(&lab, "n1", "guard_protocol")? > before, "not yet");
                Ok(())
            });
            let cell = format!("{source} behind {tags} tags");
            failures.note(&cell, counted);
            let came = at_victim.count(|packet| packet.destination_port == to.port());
            failures.note(&cell, (came == 0).then_some(()).context("it came through"));
        }
    }
    failures.judge(&lab)
}

/// Connections that were open when their ends joined go on when the wall is enforced, idle or not, and new
/// ones are in tunnels. When the pods leave, nothing of them meets a wall.
#[test]
fn what_is_older_than_the_wall_goes_on_and_what_leaves_meets_none() -> Result<()> {
    let lab = changing_world()?;
    lab.apply("elders.yaml", &namespace("elders", &[]))?;
    let client = lab.create(&PodSpec::new("elders", "client", "n1"))?;
    let server = lab.create(&PodSpec::new("elders", "server", "n2"))?;
    wait_readable(&lab, &client, &server)?;
    let port = fresh_port();
    let _echo = (echo(&server, port)?, echo(&client, port)?);
    let mut open = Vec::new();
    for (from, to) in [(&client, &server), (&server, &client)] {
        for to in addresses(to, port) {
            open.push(dial(from, to)?);
        }
    }
    let before = [leaks(&lab, "n1")?, leaks(&lab, "n2")?];
    lab.label_namespace("elders", MESH, Some("enabled"))?;
    wait_encrypted(&lab, &client, &server)?;
    wait_encrypted(&lab, &server, &client)?;
    wait_enforced(&lab)?;
    let mut failures = Failures::default();
    for stream in &open {
        let gone_on = round_trip(stream, &token());
        failures.note(&format!("{:?}", stream.peer_addr()), gone_on);
    }
    // Nobody lists what nobody has: the wall is there for anything else.
    let (own, peer) = pairs(&client, &server).next().context("addresses")?;
    let to = SocketAddr::new(peer, fresh_port());
    let stray = syn::packet(SocketAddr::new(own, 4444), to);
    let seen = on_the_link(&lab, &client, &stray, to)?;
    failures.note("a stray", (seen == 0).then_some(()).context("on the link"));

    lab.label_namespace("elders", MESH, None)?;
    wait_readable(&lab, &client, &server)?;
    wait_readable(&lab, &server, &client)?;
    for stream in &open {
        let gone_on = round_trip(stream, &token());
        failures.note(&format!("left: {:?}", stream.peer_addr()), gone_on);
    }
    let after = [leaks(&lab, "n1")?, leaks(&lab, "n2")?];
    let ours = [3.0, 0.0];
    for ((before, after), ours) in before.iter().zip(after).zip(ours) {
        let more = after - before - ours;
        let none = more.abs() < 0.5;
        let what = format!("{more} packets met a wall");
        failures.note("leaks", none.then_some(()).context(what));
    }
    for pod in [&client, &server] {
        lab.delete_pod(&pod.key())?;
    }
    failures.judge(&lab)
}

fn ip(pod: &Pod, lines: &[String]) -> Result<()> {
    for line in lines {
        let mut command = Command::new("ip");
        command.args(line.split(' '));
        let output = pod.output(command)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ip {line}: {error}");
    }
    Ok(())
}

fn why(lab: &Lab, node: &str, pod: &Pod) -> Result<(String, String)> {
    let pods = lab.agent_pods(node)?;
    let found = pods.iter().find(|found| {
        found.get("name").and_then(|name| name.as_str()) == Some(pod.name())
            && found.get("namespace").and_then(|name| name.as_str()) == Some(pod.namespace())
    });
    let field = |name: &str| {
        let value = found.and_then(|found| found.get(name)?.as_str());
        value.map(ToOwned::to_owned).context("not listed")
    };
    Ok((field("state")?, field("reason")?))
}

/// There the number of the peer means another device of the node, such as its uplink.
#[test]
fn a_pod_whose_interface_cannot_be_guarded_is_not_captured_and_it_is_said_why() -> Result<()> {
    let lab = changing_world()?;
    lab.apply("odd.yaml", &namespace("odd", &[]))?;
    let pod = lab.create(&PodSpec::new("odd", "pod", "n1"))?;
    let own = pod.v4()?;
    let six = pod.v6()?;
    let away = [
        format!("address del {own}/32 dev eth0"),
        format!("address del {six}/128 dev eth0"),
    ];
    ip(&pod, &away)?;
    let failures_of = || -> Result<f64> {
        let metrics = Metrics::of_agent(&lab, "n1")?;
        // An address that no interface has any more is what a sandboxed runtime leaves.
        let of = |reason| metrics.sum("keelson_capture_failed_total", &[("reason", reason)]);
        Ok(of("interface") + of("sandboxed"))
    };
    let before = failures_of()?;
    lab.label_namespace("odd", MESH, Some("enabled"))?;
    let mut failures = Failures::default();
    let cases = [
        ("none", Vec::new(), "which the cluster gave to it"),
        (
            "bridge",
            vec![
                "link add odd0 type bridge".to_owned(),
                format!("address add {own}/32 dev odd0"),
            ],
            "is no veth (bridge)",
        ),
        (
            "veth",
            vec![
                "link del odd0".to_owned(),
                "link add odd0 type veth peer name odd1".to_owned(),
                format!("address add {own}/32 dev odd0"),
            ],
            "is not the other end of the pod's interface odd0",
        ),
    ];
    for (name, lines, wanted) in cases {
        ip(&pod, &lines)?;
        let said = testkit::eventually("the agent says why", APPLIES, || {
            let (state, reason) = why(&lab, "n1", &pod)?;
            ensure!(
                state == "failed" && reason.contains(wanted),
                "{state}: {reason}"
            );
            Ok(())
        });
        failures.note(name, said);
    }
    let failed = failures_of()? - before;
    failures.note(
        "metric",
        (failed > 2.5).then_some(()).context(failed.to_string()),
    );
    // What is right again is captured.
    ip(
        &pod,
        &[
            "link del odd0".to_owned(),
            format!("address add {own}/32 dev eth0"),
            format!("address add {six}/128 dev eth0 nodad"),
        ],
    )?;
    let captured = testkit::eventually("it is captured", APPLIES, || {
        let (state, reason) = why(&lab, "n1", &pod)?;
        ensure!(state == "captured", "{state}: {reason}");
        Ok(())
    });
    failures.note("right again", captured);
    lab.delete_pod(&pod.key())?;
    failures.judge(&lab)
}
