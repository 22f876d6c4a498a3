//! Pods that come and go: covered from their first instant, forgotten with their last.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod, PodSpec};
use testkit::{Behaviour, Peer};
use tests_lab::{mtls, namespace};

use crate::support::{
    APPLIES, Failures, PATIENCE, addresses, changing_world, dial, echo, evidence, expect_echo,
    expect_refused, fresh_port, link, patient, round_trip, token, wait_encrypted,
};

/// `late/name` on n1, in a namespace that is STRICT but not in the mesh yet.
fn late_pod(lab: &Lab, space: &str) -> Result<Pod> {
    lab.apply(
        &format!("{space}.yaml"),
        &(namespace(space, &[]) + &mtls(space, "STRICT")),
    )?;
    lab.create(&PodSpec::new(space, "server", "n1"))
}

/// A listener that was there before the mesh is covered by it, and so is one that comes later.
#[test]
fn a_listener_older_than_enrolment_is_covered() -> Result<()> {
    let lab = changing_world()?;
    let server = late_pod(&lab, "older")?;
    let (client, plain) = (lab.pod("mesh/a")?, lab.pod("plain/p")?);
    let (both, v4, closed) = (fresh_port(), fresh_port(), fresh_port());
    let both_echo = echo(&server, both)?;
    let listener = crate::support::listen_on(&server, SocketAddr::from(([0; 4], v4)))?;
    let v4_echo = Peer::serve(listener, Behaviour::Echo)?;
    let closing = echo(&server, closed)?;
    let [at4, at6] = [server.v4()?.into(), server.v6()?.into()].map(|ip: IpAddr| ip);
    let old = [
        (at4, both),
        (at6, both),
        (at4, v4),
        (at4, closed),
        (at6, closed),
    ];
    for to in old {
        expect_echo(&plain, to.into()).context("before the mesh")?;
    }
    lab.label_namespace("older", "keelson.io/mesh", Some("enabled"))?;
    testkit::eventually("STRICT applies", APPLIES, || {
        expect_refused(&plain, old[0].into())
    })
    .with_context(|| evidence(&lab))?;
    // Nothing may pass from here on, also while clients of the mesh still learn of the new server.
    let echoes = [&both_echo, &v4_echo, &closing];
    let served: u64 = echoes.map(Peer::accepted).iter().sum();
    let mut failures = Failures::default();
    for to in old {
        let went = expect_refused(&plain, to.into());
        failures.note(&format!("plain to {to:?}"), went);
    }
    let now: u64 = echoes.map(Peer::accepted).iter().sum();
    ensure!(now == served, "{} came through in plaintext", now - served);
    testkit::eventually("the mesh's clients know the server", APPLIES, || {
        expect_echo(&client, old[0].into())
    })?;
    for to in old {
        failures.note(&format!("mesh to {to:?}"), expect_echo(&client, to.into()));
    }
    drop(closing);
    for to in [(at4, closed), (at6, closed)] {
        failures.note(
            &format!("closed {to:?}"),
            expect_refused(&client, to.into()),
        );
    }
    let newer = fresh_port();
    let _newer = echo(&server, newer)?;
    for to in addresses(&server, newer) {
        failures.note(&format!("plain to newer {to}"), expect_refused(&plain, to));
        failures.note(&format!("mesh to newer {to}"), expect_echo(&client, to));
    }
    failures.judge(&lab)
}

/// A5, P12: a pod whose program connects from its first instant.
#[test]
fn a_new_pod_never_speaks_in_the_clear() -> Result<()> {
    let lab = changing_world()?;
    let server = lab.pod("mesh/c")?;
    let port = fresh_port();
    let mut command = Command::new("keelson-lab-app");
    command.args(["http-server", "--port", &port.to_string()]);
    let process = server.spawn(command)?;
    let to = SocketAddr::new(server.v4()?.into(), port).to_string();
    testkit::eventually("the server serves", PATIENCE, || {
        let log = process.log();
        ensure!(log.contains("serving HTTP"), "{log}");
        Ok(())
    })?;
    let link = link(&lab)?;
    for number in 0..5 {
        let name = format!("eager-{number}");
        let client = ["keelson-lab-app", "http-client", "--interval", "1ms", &to];
        let spec = PodSpec::new("mesh", &name, "n1").service_account(&name);
        let pod = lab.create(&spec.container("app", &client))?;
        let key = pod.key();
        testkit::eventually("the new pod is served", APPLIES, || {
            let log = lab.containers(&key, |containers| containers[0].log());
            ensure!(log.lines().any(|line| line.starts_with("200 ")), "{log}");
            Ok(())
        })
        .with_context(|| evidence(&lab))?;
        lab.delete_pod(&key)?;
        let syns = link.count(|packet| packet.is_syn() && packet.destination_port == port);
        ensure!(syns == 0, "{syns} SYN of {key} in the clear");
        ensure!(
            !link.contains(b"GET / HTTP/1.1")?,
            "a request of {key} is readable"
        );
    }
    Ok(())
}

/// A5: no agent, no capture, no start.
#[test]
fn a_pods_containers_do_not_start_while_no_agent_runs() -> Result<()> {
    let lab = changing_world()?;
    let server = lab.pod("mesh/c")?;
    lab.kill_agent("n1")?;
    let spec = PodSpec::new("mesh", "waiting", "n1").container("app", &["sleep", "1000"]);
    let refused = lab.create(&spec);
    ensure!(refused.is_err(), "the pod was started without an agent");
    let started = lab.containers("mesh/waiting", |containers| containers.len());
    ensure!(started == 0, "{started} containers run");
    lab.start_agent("n1", &AgentOptions::default())?;
    lab.reconcile()?;
    let started = lab.containers("mesh/waiting", |containers| containers.len());
    ensure!(started == 1, "{started} containers run with an agent");
    wait_encrypted(&lab, &lab.pod("mesh/waiting")?, &server)?;
    lab.delete_pod("mesh/waiting")
}

/// The mesh forgets a pod that goes, and knows one that comes with the same name and address.
#[test]
fn a_pod_that_is_replaced_under_its_name_is_captured_again() -> Result<()> {
    let lab = changing_world()?;
    let server = lab.pod("mesh/c")?;
    for round in 0..5 {
        let spec = PodSpec::new("mesh", "phoenix", "n1").service_account("phoenix");
        let pod = lab.create(&spec)?;
        let port = fresh_port();
        let _echo = echo(&pod, port)?;
        wait_encrypted(&lab, &pod, &server).with_context(|| format!("round {round}"))?;
        let to = SocketAddr::new(pod.v4()?.into(), port);
        let back = testkit::eventually("it is reached", APPLIES, || dial(&server, to))?;
        patient(&back)?;
        round_trip(&back, &token())?;
        lab.delete_pod("mesh/phoenix")?;
        let known = lab.agent_pods("n1")?;
        let gone = !known.iter().any(|pod| pod.to_string().contains("phoenix"));
        ensure!(gone, "the agent still knows it: {known:?}");
    }
    Ok(())
}

/// Nobody says that they are gone: the runtime was killed, or somebody tidied up by hand.
#[test]
fn pods_whose_namespace_has_vanished_without_a_word_are_let_go() -> Result<()> {
    let lab = changing_world()?;
    let options = AgentOptions {
        args: vec!["--audit-interval".to_owned(), "200ms".to_owned()],
        ..AgentOptions::default()
    };
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &options)?;
    let server = lab.pod("mesh/c")?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let count = || crate::maps::entries(&lab.bpf_dir("n1").join(pins()).join("PODS"));
    let before = count()?;
    let captured = lab.create(&PodSpec::new("mesh", "lost", "n1").service_account("lost"))?;
    let exempt = lab.create(&PodSpec::new("plain", "lost", "n1"))?;
    wait_encrypted(&lab, &captured, &server)?;
    let carried = dial(&captured, SocketAddr::new(server.v4()?.into(), port))?;
    round_trip(&carried, &token())?;
    // A socket of the pod's would keep its namespace; the agent's end of it must not.
    drop(carried);
    for pod in [captured, exempt] {
        lab.lose_pod(pod)?;
    }
    let gone = testkit::eventually("they are let go", APPLIES, || {
        let now = (count()?, lab.agent_pods("n1")?);
        let known = now.1.iter().any(|pod| pod.to_string().contains("lost"));
        ensure!(now.0 == before && !known, "{now:?}");
        lab.agent_get("n1", "/healthz/ready").map(drop)
    })
    .with_context(|| evidence(&lab));
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    gone
}

fn pins() -> String {
    format!("v{}", abi::ABI_VERSION)
}

/// Replicas share a service account, and whatever the mesh shares between them survives each.
#[test]
fn a_pod_does_not_notice_the_end_of_its_replica() -> Result<()> {
    let lab = changing_world()?;
    let server = lab.pod("mesh/c")?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let replica =
        |name: &str| lab.create(&PodSpec::new("mesh", name, "n1").service_account("replicas"));
    let first = replica("replica-1")?;
    wait_encrypted(&lab, &first, &server)?;
    // The first one's connection is open when the second one's begins, and when it goes.
    let firsts = dial(&first, to)?;
    round_trip(&firsts, &token())?;
    let second = replica("replica-2")?;
    let seconds = dial(&second, to)?;
    round_trip(&seconds, &token())?;
    lab.delete_pod("mesh/replica-1")?;
    let went = round_trip(&seconds, &token())
        .context("the open connection of the replica that stays")
        .and_then(|()| round_trip(&dial(&second, to)?, &token()).context("a new one"))
        .and_then(|()| {
            let third = replica("replica-3")?;
            round_trip(&dial(&third, to)?, &token()).context("one of the replica that comes")
        })
        .with_context(|| evidence(&lab));
    for name in ["mesh/replica-2", "mesh/replica-3"] {
        if lab.pod(name).is_ok() {
            lab.delete_pod(name)?;
        }
    }
    went
}
