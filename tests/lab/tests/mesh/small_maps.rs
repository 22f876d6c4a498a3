//! Kernel maps that are too small for the node: what does not fit is the agent's to carry and to judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use testkit::Behaviour;
use tests_lab::{service, turn};

use crate::fixture::{
    APPLIES, Ended, at, call, connect, exchange, mesh_namespace, plain_namespace, pod, serve,
    wait_for,
};
use tests_lab::metrics::Metrics;

/// Not even one pair of pods fits.
const VERDICTS: f64 = 3.0;

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    lab.apply("namespaces.yaml", &mesh_namespace("cramped"))?;
    lab.start_controller(&ControllerOptions::default())?;
    let limits = [
        format!("--max-verdicts={VERDICTS}"),
        "--max-service-ports=1".to_owned(),
        "--max-service-slots=1".to_owned(),
    ];
    let options = AgentOptions {
        args: limits.to_vec(),
        ..AgentOptions::default()
    };
    lab.start_agent("n1", &options)?;
    Ok(lab)
}

/// What does not fit is refused nothing that policy allows, and allowed nothing that it denies.
#[test]
fn full_maps_leave_connections_to_the_agent_and_say_which_setting_to_raise() -> Result<()> {
    let _turn = turn()?;
    let lab = make()?;
    let client = lab.create(&pod("cramped", "client", "n1"))?;
    let server = lab.create(&pod("cramped", "server", "n1"))?;
    let _open = [8080, 9001].map(|port| serve(&server, port, Behaviour::Echo));
    let vip = service(
        "cramped",
        "server",
        77,
        &[("TCP", 80, 8080), ("TCP", 81, 8080)],
    );
    lab.apply("service.yaml", &vip)?;
    let to = |port| -> Result<_> { Ok(at(server.v4()?, port)) };
    wait_for(&client, to(8080)?, Ended::Answered)?;
    let early = connect(&client, to(8080)?)?;
    ensure!(exchange(&early, b"early") == Ended::Answered, "before");

    // Ports that policies name, and pods, are what the map is for.
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: closed, namespace: cramped}\n\
        spec: {action: DENY, rules: [{to: [{operation: {ports: [\"9001\"]}}]}, \
        {from: [{source: {serviceAccounts: [thief]}}]}]}\n";
    lab.apply("policy.yaml", policy)?;
    let thief = lab.create(&pod("cramped", "thief", "n1"))?;
    wait_for(&client, to(9001)?, Ended::Refused)?;
    wait_for(&thief, to(8080)?, Ended::Refused)?;
    for _ in 0..20 {
        for (from, to, expected) in [
            (&client, to(8080)?, Ended::Answered),
            (&client, to(9001)?, Ended::Refused),
            (&thief, to(8080)?, Ended::Refused),
            (&client, at([10, 96, 0, 77], 80), Ended::Answered),
            (&client, at([10, 96, 0, 77], 81), Ended::Answered),
        ] {
            let ended = call(from, to)?;
            ensure!(ended == expected, "{} to {to}: {ended}", from.key());
        }
    }
    ensure!(
        exchange(&early, b"still") == Ended::Answered,
        "what was open goes on"
    );

    let of = |metrics: &Metrics, name: &str, map: &str| metrics.sum(name, &[("map", map)]);
    lab::wait_until("the metrics tell what did not fit", APPLIES, || {
        let metrics = Metrics::of_agent(&lab, "n1")?;
        let full = |map| of(&metrics, "keelson_map_refused_total", map) >= 1.0;
        Ok(full("VERDICTS") && (full("SLOTS") || full("SERVICES")))
    })?;
    let metrics = Metrics::of_agent(&lab, "n1")?;
    let capacity = of(&metrics, "keelson_map_capacity", "VERDICTS");
    assert!((capacity - VERDICTS).abs() < 1e-9, "{capacity}");
    assert!(of(&metrics, "keelson_map_entries", "VERDICTS") <= VERDICTS);
    assert!(
        of(&metrics, "keelson_map_entries", "PODS") >= 3.0,
        "pods are counted"
    );
    let log = lab.agent_log("n1");
    for setting in ["--max-verdicts", "--max-service-"] {
        log.contains(setting)
            .then_some(())
            .with_context(|| format!("the log names no {setting}"))?;
    }
    Ok(())
}

/// A pod that there is no room for is not captured, and the agent says so; the others do not notice.
#[test]
fn a_pod_beyond_the_room_is_reported_and_the_others_go_on() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    lab.apply("namespaces.yaml", &mesh_namespace("cramped"))?;
    lab.start_controller(&ControllerOptions::default())?;
    let options = AgentOptions {
        args: vec!["--max-pods=2".to_owned()],
        ..AgentOptions::default()
    };
    lab.start_agent("n1", &options)?;
    let client = lab.create(&pod("cramped", "client", "n1"))?;
    let server = lab.create(&pod("cramped", "server", "n1"))?;
    let _echo = serve(&server, 8080, Behaviour::Echo)?;
    let to = at(server.v4()?, 8080);
    wait_for(&client, to, Ended::Answered)?;
    let error = lab.create(&pod("cramped", "third", "n1"));
    let error = format!("{:#}", error.err().context("the third pod was taken")?);
    assert!(
        error.contains("PODS") && error.contains("--max-pods"),
        "{error}"
    );
    lab::wait_until("the third pod is counted", APPLIES, || {
        let metrics = Metrics::of_agent(&lab, "n1")?;
        Ok(metrics.sum("keelson_pods_wanted_not_captured", &[]) >= 1.0
            && metrics.sum("keelson_map_refused_total", &[("map", "PODS")]) >= 1.0)
    })?;
    ensure!(call(&client, to)? == Ended::Answered, "the others");
    Ok(())
}

/// Room for listening ports, and the part of it that one pod may use.
const PORTS: usize = 400;
const PORTS_EACH: usize = 100;

/// A node with little room for listening ports: `greedy` and `neighbour` are captured, `outside` is not.
fn few_ports() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    let namespaces = [mesh_namespace("cramped"), plain_namespace("out")];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    lab.start_controller(&ControllerOptions::default())?;
    let options = AgentOptions {
        args: vec![
            format!("--max-listening-ports={PORTS}"),
            format!("--max-listening-ports-per-pod={PORTS_EACH}"),
            "--audit-interval=1s".to_owned(),
        ],
        ..AgentOptions::default()
    };
    lab.start_agent("n1", &options)?;
    lab.create(&pod("cramped", "greedy", "n1"))?;
    lab.create(&pod("cramped", "neighbour", "n1"))?;
    lab.create(&pod("out", "outside", "n1"))?;
    Ok(lab)
}

/// So many listeners on an address of a pod, on ports of the kernel's choice.
fn listeners(of: &Pod, ip: impl Into<IpAddr>, count: usize) -> Result<Vec<TcpListener>> {
    let address = at(ip, 0);
    let listen = || (0..count).map(|_| TcpListener::bind(address)).collect();
    let all: std::io::Result<Vec<TcpListener>> = of.run(listen)?;
    Ok(all?)
}

fn listening(lab: &Lab) -> Result<f64> {
    let metrics = Metrics::of_agent(lab, "n1")?;
    Ok(metrics.sum("keelson_map_entries", &[("map", "LISTENING")]))
}

/// Whoever is outside the mesh, and what nobody outside a pod reaches, needs no room.
#[test]
fn only_what_the_mesh_is_asked_about_takes_room_for_listening_ports() -> Result<()> {
    let _turn = turn()?;
    let lab = few_ports()?;
    let (outside, greedy) = (lab.pod("out/outside")?, lab.pod("cramped/greedy")?);
    let before = listening(&lab)?;
    let loopback = Ipv4Addr::LOCALHOST;
    let open = [
        listeners(&outside, Ipv6Addr::UNSPECIFIED, 3 * PORTS)?,
        listeners(&outside, loopback, 3 * PORTS)?,
        listeners(&greedy, loopback, PORTS)?,
        listeners(&greedy, Ipv4Addr::new(127, 9, 9, 9), PORTS)?,
        listeners(&greedy, Ipv6Addr::LOCALHOST, PORTS)?,
        listeners(&greedy, loopback.to_ipv6_mapped(), PORTS)?,
    ];
    let while_open = listening(&lab)?;
    drop(open);
    let after = listening(&lab)?;
    assert!(
        (while_open - before).abs() < 1e-9,
        "{before} -> {while_open}"
    );
    assert!((after - before).abs() < 1e-9, "{before} -> {after}");
    let metrics = Metrics::of_agent(&lab, "n1")?;
    for reason in ["listening_lost", "listening_share"] {
        let count = metrics.sum("keelson_kernel_decisions_total", &[("reason", reason)]);
        assert!(count < 0.5, "{reason}: {count}");
    }
    Ok(())
}

/// A flood of listeners costs its own pod, and that only as long as it lasts.
#[test]
fn a_flood_of_listeners_leaves_the_neighbour_its_room_and_is_forgotten() -> Result<()> {
    let _turn = turn()?;
    let lab = few_ports()?;
    let (greedy, neighbour) = (lab.pod("cramped/greedy")?, lab.pod("cramped/neighbour")?);
    let outside = lab.pod("out/outside")?;
    let flood = listeners(&greedy, Ipv6Addr::UNSPECIFIED, 3 * PORTS)?;
    let entries = listening(&lab)?;
    assert!(entries <= PORTS_EACH as f64, "{entries} of one pod");
    let _open = [
        serve(&neighbour, 8080, Behaviour::Echo)?,
        serve(&greedy, 65_000, Behaviour::Echo)?,
    ];
    let (its, own) = (at(neighbour.v4()?, 8080), at(greedy.v4()?, 65_000));
    wait_for(&outside, its, Ended::Answered)?;
    ensure!(call(&outside, own)? == Ended::Refused, "beyond the share");
    let metrics = Metrics::of_agent(&lab, "n1")?;
    let beyond = [("reason", "listening_share")];
    assert!(metrics.sum("keelson_kernel_decisions_total", &beyond) > 1.0);
    lab::wait_until("the log names the setting", APPLIES, || {
        Ok(lab
            .agent_log("n1")
            .contains("--max-listening-ports-per-pod"))
    })?;
    drop(flood);
    wait_for(&outside, own, Ended::Answered)?;
    ensure!(call(&outside, its)? == Ended::Answered, "the neighbour");
    Ok(())
}

/// While the kernel cannot know every destination of the mesh, it leaves none alone; it does again as
/// soon as it can.
#[test]
fn while_not_every_destination_fits_all_are_carried() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    let text = mesh_namespace("cramped") + "---\n" + &plain_namespace("plain");
    lab.apply("namespaces.yaml", &text)?;
    lab.start_controller(&ControllerOptions::default())?;
    let options = AgentOptions {
        // Two pods of two families.
        args: vec!["--max-carried=4".to_owned()],
        ..AgentOptions::default()
    };
    lab.start_agent("n1", &options)?;
    let client = lab.create(&pod("cramped", "client", "n1"))?;
    lab.create(&pod("cramped", "second", "n1"))?;
    let outside = lab.create(&pod("plain", "outside", "n1"))?;
    let _echo = serve(&outside, 8080, Behaviour::Echo)?;
    let to = at(outside.v4()?, 8080);
    wait_left_alone(&lab, &client, to, true)?;
    let third = lab.create(&pod("cramped", "third", "n1"))?;
    wait_left_alone(&lab, &client, to, false)?;
    let log = lab.agent_log("n1");
    ensure!(log.contains("--max-carried"), "the log names no setting");
    lab.delete_pod(&third.key())?;
    wait_left_alone(&lab, &client, to, true)
}

/// Waits until calls of the pod are left alone or are not. Each of them is answered.
fn wait_left_alone(lab: &Lab, client: &Pod, to: SocketAddr, expected: bool) -> Result<()> {
    let what = format!("calls are left alone: {expected}");
    let native = || -> Result<f64> {
        let labels = [("reason", "outbound_native")];
        let metrics = Metrics::of_agent(lab, "n1")?;
        Ok(metrics.sum("keelson_kernel_decisions_total", &labels))
    };
    lab::wait_until(&what, APPLIES, || {
        let before = native()?;
        let ended = call(client, to)?;
        ensure!(ended == Ended::Answered, "{ended}");
        Ok((native()? > before) == expected)
    })
}
