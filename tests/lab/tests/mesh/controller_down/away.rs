//! The controller is killed: nothing that is known is forgotten, by anybody, whoever restarts.

use anyhow::{Context as _, Result, ensure};
use lab::AgentOptions;
use serde_json::Value;
use tests_lab::turn;

use super::mesh::{Mesh, POLICY, POLICY_FILE, mesh};
use crate::api::{AUTHORIZATION, Caller};
use crate::fixture::{Ended, call, connect, exchange, pod, wait_configured, wait_for};
use tests_lab::metrics::Metrics;

/// The serial numbers of all certificates of a node.
fn serials(mesh: &Mesh, node: &str) -> Result<Vec<String>> {
    let certs = mesh.lab.agent_json(node, "/certs")?;
    let certs = certs.as_array().context("no list")?.iter();
    let mut serials: Vec<String> = certs.map(|cert| cert["serial"].to_string()).collect();
    serials.sort();
    Ok(serials)
}

/// A65, A41's first half.
#[test]
fn without_the_controller_new_connections_and_policies_work_as_before() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let open = connect(&mesh.cart, mesh.to()?)?;
    assert_eq!(exchange(&open, b"before"), Ended::Answered);
    mesh.lab.kill_controller()?;
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    for _ in 0..5 {
        mesh.check("without a controller")?;
    }
    assert_eq!(exchange(&open, b"and still"), Ended::Answered);
    mesh.check_encrypted(&link)?;
    mesh.start_controller()?;
    mesh.check("with the controller again")
}

/// A65, P40: an agent that starts alone knows everything, and has the certificates.
#[test]
fn agents_that_restart_without_the_controller_serve_from_disk_with_the_same_certificates()
-> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.wait_on_disk()?;
    let before = [serials(&mesh, "n1")?, serials(&mesh, "n2")?];
    assert!(before.iter().all(|serials| !serials.is_empty()));
    mesh.lab.kill_controller()?;
    for node in ["n2", "n1"] {
        mesh.lab.kill_agent(node)?;
        mesh.lab.start_agent(node, &AgentOptions::default())?;
        mesh.wait_check(&format!("{node} restarted without a controller"))?;
    }
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    mesh.check("both restarted without a controller")?;
    mesh.check_encrypted(&link)?;
    assert_eq!([serials(&mesh, "n1")?, serials(&mesh, "n2")?], before);
    // And both at once, so that neither learns from a living peer.
    for node in ["n1", "n2"] {
        mesh.lab.kill_agent(node)?;
    }
    assert_eq!(
        call(&mesh.cart, mesh.to()?)?,
        Ended::Refused,
        "no agent, no way"
    );
    for node in ["n1", "n2"] {
        mesh.lab.start_agent(node, &AgentOptions::default())?;
    }
    mesh.wait_check("both restarted at once")
}

/// A65, P40: what the kernel holds captured is on disk before, so a successor knows it, however soon.
#[test]
fn a_pod_captured_a_moment_before_everything_is_killed_is_served_by_the_next_agent() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for round in 0..3 {
        let name = format!("moment-{round}");
        let late = mesh.lab.create(&pod("shop", &name, "n1"))?;
        mesh.lab.kill_agent("n1")?;
        mesh.lab.kill_controller()?;
        mesh.lab.start_agent("n1", &AgentOptions::default())?;
        let served = wait_for(&late, mesh.to()?, Ended::Answered);
        let ready = mesh.lab.wait_agent_ready("n1");
        mesh.start_controller()?;
        mesh.lab.delete_pod(&format!("shop/{name}"))?;
        served.with_context(|| format!("round {round}; {}", mesh.last_words()))?;
        ready?;
    }
    Ok(())
}

/// What the agent kept about its pods is broken: they stay refused, and are never let go.
#[test]
fn an_agent_that_cannot_read_who_was_there_lets_nobody_go() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let kept = mesh.lab.run_dir().join("nodes/n1/runtime/pods.json");
    mesh.lab.kill_agent("n1")?;
    let old = std::fs::read(&kept)?;
    std::fs::write(&kept, "[{")?;
    let options = AgentOptions {
        wait_ready: false,
        ..AgentOptions::default()
    };
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    let checked = mesh.lab.start_agent("n1", &options).and_then(|()| {
        lab::wait_until("the agent says so", crate::fixture::APPLIES, || {
            let log = mesh.lab.agent_log("n1");
            Ok(log.contains("cannot read which pods the earlier agent knew"))
        })?;
        // Refused while nobody knows the pod; served once the agent has found it running.
        for _ in 0..20 {
            let ended = call(&mesh.cart, mesh.to()?)?;
            ensure!(
                matches!(ended, Ended::Refused | Ended::Answered),
                "{ended:?}"
            );
        }
        ensure!(!Mesh::is_readable(&link, &mesh.cart)?, "in the clear");
        Ok(())
    });
    mesh.lab.kill_agent("n1")?;
    std::fs::write(&kept, old)?;
    mesh.lab.start_agent("n1", &AgentOptions::default())?;
    checked?;
    mesh.wait_check("what was kept is readable again")
}

/// A successor that does not know a captured pod does not say that all is well.
#[test]
fn an_agent_that_does_not_know_a_captured_pod_is_not_ready_and_counts_it() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.wait_on_disk()?;
    let snapshot = mesh
        .lab
        .run_dir()
        .join("nodes/n1/state/configuration.snapshot");
    let old = std::fs::read(&snapshot)?;
    let late = mesh.lab.create(&pod("shop", "forgotten", "n1"))?;
    mesh.lab.kill_agent("n1")?;
    mesh.lab.kill_controller()?;
    std::fs::write(&snapshot, old)?;
    let options = AgentOptions {
        wait_ready: false,
        ..AgentOptions::default()
    };
    let checked = mesh.lab.start_agent("n1", &options).and_then(|()| {
        lab::wait_until("the pod is counted", crate::fixture::APPLIES, || {
            let metrics = Metrics::of_agent(mesh.lab, "n1")?;
            Ok(metrics.sum("keelson_pods_wanted_not_captured", &[]) >= 1.0)
        })?;
        assert_eq!(call(&late, mesh.to()?)?, Ended::Refused, "never let go");
        let ready = mesh.lab.agent_get("n1", "/healthz/ready");
        let reason = format!("{:#}", ready.err().context("it says that it is ready")?);
        ensure!(reason.contains("every captured pod is known"), "{reason}");
        mesh.start_controller()?;
        wait_for(&late, mesh.to()?, Ended::Answered)?;
        mesh.lab.wait_agent_ready("n1")
    });
    if mesh.lab.controller_pid().is_none() {
        mesh.start_controller()?;
    }
    mesh.lab.delete_pod("shop/forgotten")?;
    checked
}

/// A41's second half: who has no identity yet does not get into the mesh, nor out without it.
#[test]
fn without_the_controller_a_new_pod_waits_and_starts_when_it_is_back() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab.kill_controller()?;
    let late = pod("shop", "late", "n1").container("main", &["sleep", "1000"]);
    let refused = mesh.lab.create(&late);
    let started = mesh
        .lab
        .containers("shop/late", |containers| containers.len());
    mesh.start_controller()?;
    let captured = testkit::eventually("the pod gets in", crate::fixture::APPLIES, || {
        mesh.lab.reconcile()?;
        mesh.lab.enrolment("shop/late").context("never announced")
    });
    let served = mesh
        .lab
        .pod("shop/late")
        .and_then(|late| wait_for(&late, mesh.to()?, Ended::Answered));
    mesh.lab.delete_pod("shop/late")?;
    assert!(
        refused.is_err(),
        "its agent said ok without knowing anything of it"
    );
    assert_eq!(
        started, 0,
        "its container ran before the pod was in the mesh"
    );
    assert_eq!(captured?.capture, "captured");
    served
}

/// P40: the controller keeps its root, its last good configuration, and who is captured.
#[test]
fn a_controller_that_restarts_with_broken_manifests_serves_the_last_good_ones() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.wait_on_disk()?;
    let root = std::fs::read(mesh.lab.root_cert())?;
    let open = connect(&mesh.cart, mesh.to()?)?;
    mesh.lab.kill_controller()?;
    let broken = POLICY
        .replace("action: DENY", "action: DENYY")
        .replace("STRICT", "STRICTT");
    mesh.lab.apply(POLICY_FILE, &broken)?;
    mesh.lab
        .apply("half.yaml", "kind: Service\nmetadata: {name: [half\n")?;
    mesh.start_controller()?;
    let served = Caller::of_node(mesh.lab, "n1")?
        .converse(|mut ads| async move { ads.all(AUTHORIZATION).await });
    let served = served.map(|response| {
        let resources = response.resources.into_iter();
        resources.map(|resource| resource.name).collect::<Vec<_>>()
    });
    let findings: Value = serde_json::from_str(&mesh.lab.controller_get("/debug/diagnostics")?)?;
    let checked = mesh.check("the controller is back, with broken manifests");
    mesh.lab.delete("half.yaml")?;
    let served = served?;
    assert!(served.contains(&"shop/no-thieves".to_owned()), "{served:?}");
    assert!(
        served.iter().any(|name| name.contains("strict")),
        "{served:?}"
    );
    let findings = findings.to_string();
    for told in ["DENYY", "STRICTT", "half.yaml"] {
        assert!(findings.contains(told), "{told} is not told: {findings}");
    }
    checked?;
    assert_eq!(std::fs::read(mesh.lab.root_cert())?, root, "another root");
    let ended = exchange(&open, b"nobody noticed");
    ensure!(
        ended == Ended::Answered,
        "the open connection: {ended}; {}",
        mesh.last_words()
    );
    Ok(())
}

/// Whatever changed meanwhile arrives, and agents need not be told where their controller is.
#[test]
fn agents_find_a_restarted_controller_and_hear_what_changed_meanwhile() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab.kill_controller()?;
    let changed = POLICY
        .replace("no-thieves", "everybody")
        .replace("[thief]", "[nobody]");
    mesh.lab.apply(POLICY_FILE, &changed)?;
    assert_eq!(
        call(&mesh.thief, mesh.to()?)?,
        Ended::Refused,
        "nobody has told them"
    );
    mesh.start_controller()?;
    // Agents wait up to 15 seconds between two attempts.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while wait_configured(mesh.lab, "n2", "shop/everybody", true).is_err() {
        ensure!(
            std::time::Instant::now() < until,
            "n2 does not find the controller"
        );
    }
    wait_configured(mesh.lab, "n2", "shop/no-thieves", false)?;
    wait_for(&mesh.thief, mesh.to()?, Ended::Answered)?;
    assert_eq!(call(&mesh.stranger, mesh.to()?)?, Ended::Refused);
    Ok(())
}
