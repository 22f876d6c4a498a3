//! Kernel maps that are too small for the node: what does not fit is the agent's to carry and to judge.

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab};
use testkit::Behaviour;
use tests_lab::{service, turn};

use crate::fixture::{
    APPLIES, Ended, at, call, connect, exchange, mesh_namespace, pod, serve, wait_for,
};
use crate::metrics::Metrics;

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
