//! The controller is killed: nothing that is known is forgotten, by anybody, whoever restarts.

use anyhow::{Context as _, Result, ensure};
use lab::AgentOptions;
use serde_json::Value;
use tests_lab::turn;

use super::village::{POLICY, POLICY_FILE, Village, village};
use crate::api::{AUTHORIZATION, Caller};
use crate::fixture::{Ended, call, connect, exchange, pod, wait_configured, wait_for};
use crate::metrics::Metrics;

/// The serial numbers of all certificates of a node.
fn serials(village: &Village, node: &str) -> Result<Vec<String>> {
    let certs = village.lab.agent_json(node, "/certs")?;
    let certs = certs.as_array().context("no list")?.iter();
    let mut serials: Vec<String> = certs.map(|cert| cert["serial"].to_string()).collect();
    serials.sort();
    Ok(serials)
}

/// A65, A41's first half.
#[test]
fn without_the_controller_new_connections_and_policies_work_as_before() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    let open = connect(&village.cart, village.to()?)?;
    assert_eq!(exchange(&open, b"before"), Ended::Answered);
    village.lab.kill_controller()?;
    let link = village.lab.node("n1")?.capture_uplink()?;
    for _ in 0..5 {
        village.check("without a controller")?;
    }
    assert_eq!(exchange(&open, b"and still"), Ended::Answered);
    village.check_encrypted(&link)?;
    village.start_controller()?;
    village.check("with the controller again")
}

/// A65, P40: an agent that starts alone knows everything, and has the certificates.
#[test]
fn agents_that_restart_without_the_controller_serve_from_disk_with_the_same_certificates()
-> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    village.wait_on_disk()?;
    let before = [serials(&village, "n1")?, serials(&village, "n2")?];
    assert!(before.iter().all(|serials| !serials.is_empty()));
    village.lab.kill_controller()?;
    for node in ["n2", "n1"] {
        village.lab.kill_agent(node)?;
        village.lab.start_agent(node, &AgentOptions::default())?;
        village.wait_check(&format!("{node} restarted without a controller"))?;
    }
    let link = village.lab.node("n1")?.capture_uplink()?;
    village.check("both restarted without a controller")?;
    village.check_encrypted(&link)?;
    assert_eq!([serials(&village, "n1")?, serials(&village, "n2")?], before);
    // And both at once, so that neither learns from a living peer.
    for node in ["n1", "n2"] {
        village.lab.kill_agent(node)?;
    }
    assert_eq!(
        call(&village.cart, village.to()?)?,
        Ended::Refused,
        "no agent, no way"
    );
    for node in ["n1", "n2"] {
        village.lab.start_agent(node, &AgentOptions::default())?;
    }
    village.wait_check("both restarted at once")
}

/// A65, P40: what the kernel holds captured is on disk before, so a successor knows it, however soon.
#[test]
fn a_pod_captured_a_moment_before_everything_is_killed_is_served_by_the_next_agent() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    for round in 0..3 {
        let name = format!("moment-{round}");
        let late = village.lab.create(&pod("shop", &name, "n1"))?;
        village.lab.kill_agent("n1")?;
        village.lab.kill_controller()?;
        village.lab.start_agent("n1", &AgentOptions::default())?;
        let served = wait_for(&late, village.to()?, Ended::Answered);
        let ready = village.lab.wait_agent_ready("n1");
        village.start_controller()?;
        village.lab.delete_pod(&format!("shop/{name}"))?;
        served.with_context(|| format!("round {round}; {}", village.last_words()))?;
        ready?;
    }
    Ok(())
}

/// What the agent kept about its pods is broken: they stay refused, and are never let go.
#[test]
fn an_agent_that_cannot_read_who_was_there_lets_nobody_go() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    let kept = village.lab.run_dir().join("nodes/n1/runtime/pods.json");
    village.lab.kill_agent("n1")?;
    let old = std::fs::read(&kept)?;
    std::fs::write(&kept, "[{")?;
    let options = AgentOptions {
        wait_ready: false,
        ..AgentOptions::default()
    };
    let link = village.lab.node("n1")?.capture_uplink()?;
    let checked = village.lab.start_agent("n1", &options).and_then(|()| {
        lab::wait_until("the agent says so", crate::fixture::APPLIES, || {
            let log = village.lab.agent_log("n1");
            Ok(log.contains("cannot read which pods the earlier agent knew"))
        })?;
        // Refused while nobody knows the pod; served once the agent has found it running.
        for _ in 0..20 {
            let ended = call(&village.cart, village.to()?)?;
            ensure!(
                matches!(ended, Ended::Refused | Ended::Answered),
                "{ended:?}"
            );
        }
        ensure!(!Village::is_readable(&link, &village.cart)?, "in the clear");
        Ok(())
    });
    village.lab.kill_agent("n1")?;
    std::fs::write(&kept, old)?;
    village.lab.start_agent("n1", &AgentOptions::default())?;
    checked?;
    village.wait_check("what was kept is readable again")
}

/// A successor that does not know a captured pod does not say that all is well.
#[test]
fn an_agent_that_does_not_know_a_captured_pod_is_not_ready_and_counts_it() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    village.wait_on_disk()?;
    let snapshot = village
        .lab
        .run_dir()
        .join("nodes/n1/state/configuration.snapshot");
    let old = std::fs::read(&snapshot)?;
    let late = village.lab.create(&pod("shop", "forgotten", "n1"))?;
    village.lab.kill_agent("n1")?;
    village.lab.kill_controller()?;
    std::fs::write(&snapshot, old)?;
    let options = AgentOptions {
        wait_ready: false,
        ..AgentOptions::default()
    };
    let checked = village.lab.start_agent("n1", &options).and_then(|()| {
        lab::wait_until("the pod is counted", crate::fixture::APPLIES, || {
            let metrics = Metrics::of_agent(village.lab, "n1")?;
            Ok(metrics.sum("keelson_pods_wanted_not_captured", &[]) >= 1.0)
        })?;
        assert_eq!(call(&late, village.to()?)?, Ended::Refused, "never let go");
        let ready = village.lab.agent_get("n1", "/healthz/ready");
        let reason = format!("{:#}", ready.err().context("it says that it is ready")?);
        ensure!(reason.contains("every captured pod is known"), "{reason}");
        village.start_controller()?;
        wait_for(&late, village.to()?, Ended::Answered)?;
        village.lab.wait_agent_ready("n1")
    });
    if village.lab.controller_pid().is_none() {
        village.start_controller()?;
    }
    village.lab.delete_pod("shop/forgotten")?;
    checked
}

/// A41's second half: who has no identity yet does not get into the mesh, nor out without it.
#[test]
fn without_the_controller_a_new_pod_waits_and_starts_when_it_is_back() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    village.lab.kill_controller()?;
    let late = pod("shop", "late", "n1").container("main", &["sleep", "1000"]);
    let refused = village.lab.create(&late);
    let started = village
        .lab
        .containers("shop/late", |containers| containers.len());
    village.start_controller()?;
    let captured = testkit::eventually("the pod gets in", crate::fixture::APPLIES, || {
        village.lab.reconcile()?;
        village
            .lab
            .enrolment("shop/late")
            .context("never announced")
    });
    let served = village
        .lab
        .pod("shop/late")
        .and_then(|late| wait_for(&late, village.to()?, Ended::Answered));
    village.lab.delete_pod("shop/late")?;
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
    let village = village()?;
    village.wait_on_disk()?;
    let root = std::fs::read(village.lab.root_cert())?;
    let open = connect(&village.cart, village.to()?)?;
    village.lab.kill_controller()?;
    let broken = POLICY
        .replace("action: DENY", "action: DENYY")
        .replace("STRICT", "STRICTT");
    village.lab.apply(POLICY_FILE, &broken)?;
    village
        .lab
        .apply("half.yaml", "kind: Service\nmetadata: {name: [half\n")?;
    village.start_controller()?;
    let served = Caller::of_node(village.lab, "n1")?
        .converse(|mut ads| async move { ads.all(AUTHORIZATION).await });
    let served = served.map(|response| {
        let resources = response.resources.into_iter();
        resources.map(|resource| resource.name).collect::<Vec<_>>()
    });
    let findings: Value = serde_json::from_str(&village.lab.controller_get("/debug/diagnostics")?)?;
    let checked = village.check("the controller is back, with broken manifests");
    village.lab.delete("half.yaml")?;
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
    assert_eq!(
        std::fs::read(village.lab.root_cert())?,
        root,
        "another root"
    );
    let ended = exchange(&open, b"nobody noticed");
    ensure!(
        ended == Ended::Answered,
        "the open connection: {ended}; {}",
        village.last_words()
    );
    Ok(())
}

/// Whatever changed meanwhile arrives, and agents need not be told where their controller is.
#[test]
fn agents_find_a_restarted_controller_and_hear_what_changed_meanwhile() -> Result<()> {
    let _turn = turn()?;
    let village = village()?;
    village.lab.kill_controller()?;
    let changed = POLICY
        .replace("no-thieves", "everybody")
        .replace("[thief]", "[nobody]");
    village.lab.apply(POLICY_FILE, &changed)?;
    assert_eq!(
        call(&village.thief, village.to()?)?,
        Ended::Refused,
        "nobody has told them"
    );
    village.start_controller()?;
    // Agents wait up to 15 seconds between two attempts.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while wait_configured(village.lab, "n2", "shop/everybody", true).is_err() {
        ensure!(
            std::time::Instant::now() < until,
            "n2 does not find the controller"
        );
    }
    wait_configured(village.lab, "n2", "shop/no-thieves", false)?;
    wait_for(&village.thief, village.to()?, Ended::Answered)?;
    assert_eq!(call(&village.stranger, village.to()?)?, Ended::Refused);
    Ok(())
}
