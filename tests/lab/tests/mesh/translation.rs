//! Address translation inside a captured pod, as a container runtime or a virtual machine in it sets up: policy is
//! asked about what the client dialled, a client in the mesh is itself at a translated port too, and nobody gets past
//! policy, in either direction.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Netns, Pod};
use testkit::{Behaviour, Peer};
use tests_lab::{mtls, turn};

use crate::fixture::{
    APPLIES, Ended, at, call, call_here, mesh_namespace, plain_namespace, pod, serve,
    wait_configured, wait_for, wait_refusal,
};
use tests_lab::metrics::Metrics;

/// What is dialled, with what it is translated to: another port, loopback, somebody behind the pod.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;
const LOOPBACK: u16 = 7002;
const BEHIND: u16 = 7003;
/// Where the application listens.
const PORT: u16 = 8080;
/// Where another listens, on loopback only.
const PRIVATE: u16 = 8081;

/// Says no to a port that nobody listens on, and nothing of the one that it is translated to.
const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: inside}
spec: {action: DENY, rules: [{to: [{operation: {ports: [\"7001\"]}}]}]}
";

/// Lets in whom the mesh knows, to ports that are translated and to no other.
const KNOWN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: known, namespace: inside}
spec:
  action: ALLOW
  selector: {matchLabels: {app: server}}
  rules:
  - from: [{source: {namespaces: [inside]}}]
    to: [{operation: {ports: [\"7000\", \"7001\", \"7002\", \"7003\"]}}]
";

/// Somebody behind a pod: a namespace that is reached through it alone.
struct Guest {
    name: String,
    netns: Netns,
}

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 2);

impl Guest {
    fn behind(pod: &Pod, lab: &Lab) -> Result<Self> {
        let name = format!("k{}-guest", lab.id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let guest = Self {
            netns: Netns::open(&name)?,
            name,
        };
        in_pod(
            pod,
            &format!(
                "ip link add guest0 type veth peer name eth0 netns {}",
                guest.name
            ),
        )?;
        in_pod(pod, "ip addr add 192.168.99.1/24 dev guest0")?;
        in_pod(pod, "ip link set guest0 up")?;
        for command in [
            "ip addr add 192.168.99.2/24 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 192.168.99.1",
        ] {
            guest.netns.run(|| run(&mut split(command)))??;
        }
        pod.netns().sysctl("net.ipv4.ip_forward", "1")?;
        Ok(guest)
    }

    fn call(&self, to: SocketAddr) -> Result<Ended> {
        self.netns.run(|| call_here(to, b"from behind"))
    }

    fn serve(&self, port: u16) -> Result<Peer> {
        let listener = self.netns.run(|| TcpListener::bind((GUEST, port)))??;
        Peer::serve(listener, Behaviour::Echo)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _gone = run(Command::new("ip").args(["netns", "del", &self.name])).is_err();
    }
}

fn split(command: &str) -> Command {
    let mut words = command.split(' ');
    let mut split = Command::new(words.next().unwrap_or_default());
    split.args(words);
    split
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

fn in_pod(pod: &Pod, command: &str) -> Result<()> {
    let output = pod.output(split(command))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {said}");
    Ok(())
}

/// Translates in a pod what comes in from outside.
fn translate(pod: &Pod) -> Result<()> {
    pod.netns()
        .sysctl("net.ipv4.conf.all.route_localnet", "1")?;
    in_pod(pod, "nft add table inet translation")?;
    in_pod(
        pod,
        "nft add chain inet translation in { type nat hook prerouting priority dstnat ; }",
    )?;
    for rule in [
        format!("tcp dport {{ {OPEN}, {CLOSED} }} redirect to :{PORT}"),
        format!("ip daddr 10.0.0.0/8 tcp dport {LOOPBACK} dnat ip to 127.0.0.1:{PRIVATE}"),
        format!("ip daddr 10.0.0.0/8 tcp dport {BEHIND} dnat ip to {GUEST}:{PORT}"),
    ] {
        in_pod(pod, &format!("nft add rule inet translation in {rule}"))?;
    }
    Ok(())
}

/// Has connection tracking in the pod keep what it knows in a zone of its own.
fn hide_in_a_zone(pod: &Pod) -> Result<()> {
    for hook in ["prerouting", "output"] {
        in_pod(
            pod,
            &format!(
                "nft add chain inet translation zone_{hook} {{ type filter hook {hook} priority raw ; }}"
            ),
        )?;
        in_pod(
            pod,
            &format!("nft add rule inet translation zone_{hook} ct zone set 5"),
        )?;
    }
    Ok(())
}

/// The applications of the server, and who is behind it.
fn serve_all(server: &Pod, guest: &Guest) -> Result<[Peer; 3]> {
    let private = server.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PRIVATE)))??;
    Ok([
        serve(server, PORT, Behaviour::Echo)?,
        Peer::serve(private, Behaviour::Echo)?,
        guest.serve(PORT)?,
    ])
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let namespaces = [mesh_namespace("inside"), plain_namespace("outside")];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    lab.apply("policy.yaml", POLICY)?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (namespace, name, node) in [
        ("inside", "server", "n1"),
        ("inside", "beside", "n1"),
        ("inside", "far", "n2"),
        ("outside", "near", "n1"),
        ("outside", "stranger", "n2"),
    ] {
        lab.create(&pod(namespace, name, node).label("app", name))?;
    }
    Ok(lab)
}

#[test]
fn policy_is_asked_about_the_port_that_was_dialled_and_translation_leads_nobody_past_it()
-> Result<()> {
    let _turn = turn()?;
    let lab = make()?;
    let server = lab.pod("inside/server")?;
    let guest = Guest::behind(&server, &lab)?;
    translate(&server)?;
    let peers = serve_all(&server, &guest)?;
    let [v4, v6]: [IpAddr; 2] = [server.v4()?.into(), server.v6()?.into()];
    let stranger = lab.pod("outside/stranger")?;
    wait_configured(&lab, "n1", "inside/closed", true)?;
    wait_for(&stranger, at(v4, PORT), Ended::Answered)?;
    let check = |to: SocketAddr, expected: Ended| -> Result<()> {
        for from in ["outside/stranger", "outside/near"] {
            let ended = call(&lab.pod(from)?, to)?;
            ensure!(ended == expected, "{from} to {to}: {ended}");
        }
        Ok(())
    };
    for ip in [v4, v6] {
        check(at(ip, OPEN), Ended::Answered)?;
        check(at(ip, CLOSED), Ended::Refused)?;
        check(at(ip, PORT), Ended::Answered)?;
        wait_refusal(&lab, "n1", &["inside/closed", &at(ip, CLOSED).to_string()])?;
    }
    // To loopback it is as to another port.
    check(at(v4, LOOPBACK), Ended::Answered)?;
    // Who is behind the pod is not asked by policy, so it does not answer.
    check(at(v4, BEHIND), Ended::Refused)?;

    lab.apply("strict.yaml", &mtls("inside", "STRICT"))?;
    wait_for(&stranger, at(v4, PORT), Ended::Refused)?;
    let accepted = || peers.iter().map(Peer::accepted).sum::<u64>();
    let before = accepted();
    for port in [OPEN, CLOSED, LOOPBACK, BEHIND, PORT] {
        check(at(v4, port), Ended::Refused)?;
    }
    for port in [OPEN, CLOSED, PORT] {
        check(at(v6, port), Ended::Refused)?;
    }
    ensure!(
        accepted() == before,
        "an application saw a stranger under STRICT"
    );
    lab::wait_until("what was forwarded is counted", APPLIES, || {
        let metrics = Metrics::of_agent(&lab, "n1")?;
        let reason = [("reason", "inbound_forwarded")];
        Ok(metrics.sum("keelson_kernel_decisions_total", &reason) >= 2.0)
    })
    .context("inbound_forwarded")
}

/// Whoever has an identity has it at a translated port, too, and policy is asked about that port.
#[test]
fn a_client_in_the_mesh_reaches_a_translated_port_as_itself() -> Result<()> {
    let _turn = turn()?;
    let lab = make()?;
    let server = lab.pod("inside/server")?;
    let guest = Guest::behind(&server, &lab)?;
    translate(&server)?;
    let _peers = serve_all(&server, &guest)?;
    let clients = [
        "inside/beside",
        "inside/far",
        "outside/near",
        "outside/stranger",
    ];
    for client in clients {
        wait_for(&lab.pod(client)?, at(server.v4()?, PORT), Ended::Answered)?;
    }
    lab.apply("known.yaml", KNOWN)?;
    for client in clients {
        wait_for(&lab.pod(client)?, at(server.v4()?, PORT), Ended::Refused)?;
    }
    let check = |to: SocketAddr, known: Ended| -> Result<()> {
        for client in clients {
            let expected = if client.starts_with("inside/") {
                known
            } else {
                Ended::Refused
            };
            let ended = call(&lab.pod(client)?, to)?;
            ensure!(ended == expected, "{client} to {to}: {ended}");
        }
        Ok(())
    };
    // Again and again: nothing is left of a question that was answered.
    for _ in 0..5 {
        for ip in [IpAddr::from(server.v4()?), server.v6()?.into()] {
            check(at(ip, OPEN), Ended::Answered)?;
            check(at(ip, CLOSED), Ended::Refused)?;
            check(at(ip, PORT), Ended::Refused)?;
        }
        check(at(server.v4()?, LOOPBACK), Ended::Answered)?;
    }
    // Who is behind the pod answers those alone whose connection the kernel half itself has found allowed.
    for (client, expected) in [
        ("inside/beside", Ended::Answered),
        ("inside/far", Ended::Refused),
        ("outside/near", Ended::Refused),
        ("outside/stranger", Ended::Refused),
    ] {
        let ended = call(&lab.pod(client)?, at(server.v4()?, BEHIND))?;
        ensure!(ended == expected, "{client} to somebody behind: {ended}");
    }
    Ok(())
}

/// Connection tracking may have what was dialled in any zone.
#[test]
fn policy_is_asked_about_what_was_dialled_in_whatever_zone_the_pod_tracks_it() -> Result<()> {
    let _turn = turn()?;
    let lab = make()?;
    let server = lab.pod("inside/server")?;
    let guest = Guest::behind(&server, &lab)?;
    translate(&server)?;
    hide_in_a_zone(&server)?;
    let _peers = serve_all(&server, &guest)?;
    wait_configured(&lab, "n1", "inside/closed", true)?;
    let clients = [
        "outside/near",
        "outside/stranger",
        "inside/beside",
        "inside/far",
    ];
    for client in clients {
        wait_for(&lab.pod(client)?, at(server.v4()?, PORT), Ended::Answered)?;
    }
    for ip in [IpAddr::from(server.v4()?), server.v6()?.into()] {
        for (port, expected) in [
            (OPEN, Ended::Answered),
            (CLOSED, Ended::Refused),
            (PORT, Ended::Answered),
        ] {
            for client in clients {
                let ended = call(&lab.pod(client)?, at(ip, port))?;
                ensure!(ended == expected, "{client} to {ip}, {port}: {ended}");
            }
        }
    }
    Ok(())
}

/// What somebody behind a pod opens is no socket of the pod. It goes to nobody in the mesh but as a stranger's.
#[test]
fn who_is_behind_a_pod_dials_nobody_past_policy() -> Result<()> {
    let _turn = turn()?;
    let lab = make()?;
    let server = lab.pod("inside/server")?;
    let guest = Guest::behind(&server, &lab)?;
    in_pod(&server, "nft add table inet translation")?;
    in_pod(
        &server,
        "nft add chain inet translation out { type nat hook postrouting priority srcnat ; }",
    )?;
    in_pod(
        &server,
        "nft add rule inet translation out ip saddr 192.168.99.0/24 oifname eth0 masquerade",
    )?;
    let far = lab.pod("inside/far")?;
    let beside = lab.pod("inside/beside")?;
    let stranger = lab.pod("outside/stranger")?;
    let _plain = serve(&stranger, PORT, Behaviour::Echo)?;
    let peers = [
        serve(&far, PORT, Behaviour::Echo)?,
        serve(&beside, PORT, Behaviour::Echo)?,
    ];
    lab.apply("strict.yaml", &mtls("inside", "STRICT"))?;
    for server in [&far, &beside] {
        wait_for(&stranger, at(server.v4()?, PORT), Ended::Refused)?;
    }
    // Outside of the mesh its translation works as without one.
    testkit::eventually("it reaches who is not in the mesh", APPLIES, || {
        let ended = guest.call(at(stranger.v4()?, PORT))?;
        ensure!(ended == Ended::Answered, "{ended}");
        Ok(())
    })?;
    let dropped = || -> Result<f64> {
        let reason = [("reason", "wall_outbound")];
        Ok(Metrics::of_agent(&lab, "n1")?.sum("keelson_kernel_decisions_total", &reason))
    };
    // All nodes know of a capture before walls rise.
    testkit::eventually("the wall stands", APPLIES, || {
        let before = dropped()?;
        let ended = guest.call(at(far.v4()?, PORT))?;
        ensure!(ended != Ended::Answered, "{ended}");
        ensure!(dropped()? > before, "nothing is dropped");
        Ok(())
    })?;
    let accepted = || peers.iter().map(Peer::accepted).sum::<u64>();
    let before = accepted();
    let link = lab.node("n1")?.capture_uplink()?;
    for to in [&far, &beside] {
        let ended = guest.call(at(to.v4()?, PORT))?;
        ensure!(ended != Ended::Answered, "{}: {ended}", to.key());
    }
    let own = IpAddr::from(far.v4()?);
    let plain = link.count(|packet| {
        let ends = [
            (packet.source, packet.source_port),
            (packet.destination, packet.destination_port),
        ];
        ends.contains(&(own, PORT))
    });
    ensure!(plain == 0, "{plain} packets on the link");
    ensure!(accepted() == before, "somebody behind a pod was served");
    Ok(())
}
