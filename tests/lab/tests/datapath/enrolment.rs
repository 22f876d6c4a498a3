//! Pods join and leave the mesh while they run: by which labels, and what their traffic notices.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod, PodSpec};
use tests_lab::namespace;

use crate::support::{
    APPLIES, Ended, Failures, Hammer, PATIENCE, both_ends, changing_world, dial, echo, evidence,
    fresh_port, link, round_trip, token, wait_encrypted, wait_readable,
};

const MESH: &str = "keelson.io/mesh";
const AMBIENT: &str = "istio.io/dataplane-mode";
const INJECT: &str = "sidecar.istio.io/inject";

/// A namespace outside the mesh with a client on n1 and a server on n2, each with a program.
fn plain_pair(lab: &Lab, space: &str) -> Result<(Pod, Pod)> {
    lab.apply(&format!("{space}.yaml"), &namespace(space, &[]))?;
    let pod = |name: &str, node: &str| {
        let spec = PodSpec::new(space, name, node).service_account(name);
        lab.create(&spec.container("app", &["keelson-lab-app", "sleep"]))
    };
    Ok((pod("client", "n1")?, pod("server", "n2")?))
}

/// Process ids and their start times: what a restart of any kind would change.
fn programs(lab: &Lab, pods: &[&Pod]) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for pod in pods {
        let pids = lab.containers(&pod.key(), |containers| {
            containers.iter().map(lab::Process::pid).collect::<Vec<_>>()
        });
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (_, fields) = stat.rsplit_once(')').context("/proc/pid/stat")?;
            let started = fields.split(' ').nth(20).context("the start time")?;
            found.push((pid, started.to_owned()));
        }
    }
    ensure!(found.len() == pods.len(), "every pod has a program");
    Ok(found)
}

/// A1: nothing restarts, what is open goes on, what is new is encrypted.
#[test]
fn a_label_takes_running_pods_into_the_mesh() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = plain_pair(&lab, "joining")?;
    let before = programs(&lab, &[&client, &server])?;
    wait_readable(&lab, &client, &server)?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let open = dial(&client, SocketAddr::new(server.v4()?.into(), port))?;
    let from_plain = dial(
        &lab.pod("plain/p")?,
        SocketAddr::new(server.v6()?.into(), port),
    )?;
    let to_plain = both_ends(&client, &lab.pod("plain/r")?)?;
    let mut slowest = std::time::Duration::ZERO;
    lab.label_namespace("joining", MESH, Some("enabled"))?;
    // The open connections talk all the time while the pods are taken in.
    let start = Instant::now();
    let link = link(&lab)?;
    testkit::eventually("new connections are encrypted", APPLIES, || {
        for stream in [&open, &from_plain] {
            let sent = Instant::now();
            round_trip(stream, &token()).context("an open connection")?;
            slowest = slowest.max(sent.elapsed());
        }
        link.clear();
        let bytes = token();
        round_trip(
            &dial(&client, SocketAddr::new(server.v4()?.into(), port))?,
            &bytes,
        )?;
        ensure!(!link.contains(&bytes)?, "still readable");
        Ok(())
    })
    .with_context(|| evidence(&lab))?;
    for _ in 0..20 {
        for stream in [&open, &from_plain] {
            round_trip(stream, &token()).context("an open connection, later")?;
        }
        std::io::Write::write_all(&mut &to_plain.0, b"x")?;
        std::io::Read::read_exact(&mut &to_plain.1, &mut [0]).context("to a plain pod")?;
    }
    ensure!(
        programs(&lab, &[&client, &server])? == before,
        "a program was restarted"
    );
    ensure!(
        slowest < PATIENCE,
        "an open connection paused for {slowest:?}"
    );
    ensure!(
        start.elapsed() < APPLIES,
        "joining took {:?}",
        start.elapsed()
    );
    Ok(())
}

/// What was captured ends as connections end; nothing hangs, no byte is lost or invented.
#[test]
fn without_its_label_a_pods_traffic_is_plain_again() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = plain_pair(&lab, "leaving")?;
    let before = programs(&lab, &[&client, &server])?;
    lab.label_namespace("leaving", MESH, Some("enabled"))?;
    wait_encrypted(&lab, &client, &server)?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let captured = dial(&client, to)?;
    round_trip(&captured, &token())?;
    lab.label_namespace("leaving", MESH, None)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Err(error) = round_trip(&captured, &token()) else {
            continue;
        };
        let cause = error.root_cause().downcast_ref::<std::io::Error>();
        let kind = cause.map(std::io::Error::kind);
        let ends = [
            ErrorKind::UnexpectedEof,
            ErrorKind::ConnectionReset,
            ErrorKind::BrokenPipe,
        ];
        ensure!(
            kind.is_some_and(|kind| ends.contains(&kind)),
            "a captured connection neither goes on nor ends: {error:#}"
        );
        break;
    }
    wait_readable(&lab, &client, &server)?;
    ensure!(
        programs(&lab, &[&client, &server])? == before,
        "a program was restarted"
    );
    Ok(())
}

/// After ten rounds the pods are as in the mesh as after one.
#[test]
fn labelling_again_and_again_under_traffic_leaves_no_pod_stuck() -> Result<()> {
    let lab = changing_world()?;
    let (client, server) = plain_pair(&lab, "wavering")?;
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let traffic = Hammer::start(&client, to, token());
    let rounds = || -> Result<()> {
        for round in 0..10 {
            lab.label_namespace("wavering", MESH, Some("enabled"))?;
            wait_encrypted(&lab, &client, &server).with_context(|| format!("round {round}"))?;
            lab.label_namespace("wavering", MESH, None)?;
            wait_readable(&lab, &client, &server).with_context(|| format!("round {round}"))?;
        }
        // Faster than anybody can follow; only the last one counts.
        for _ in 0..5 {
            lab.label_namespace("wavering", MESH, Some("enabled"))?;
            lab.label_namespace("wavering", MESH, None)?;
        }
        lab.label_namespace("wavering", MESH, Some("enabled"))?;
        wait_encrypted(&lab, &client, &server)
    };
    let went = rounds();
    let outcomes = traffic.stop()?;
    went?;
    let count = |wanted: Ended| {
        outcomes
            .iter()
            .filter(|(ended, _)| *ended == wanted)
            .count()
    };
    ensure!(
        count(Ended::Answered) > 100,
        "hardly any traffic: {}",
        count(Ended::Answered)
    );
    let hung: Vec<_> = outcomes
        .iter()
        .filter(|(ended, _)| *ended == Ended::Hung)
        .collect();
    ensure!(hung.is_empty(), "{} attempts hung: {hung:?}", hung.len());
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|(ended, _)| *ended != Ended::Answered)
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {} connections failed: {failed:?}",
        failed.len(),
        outcomes.len(),
    );
    Ok(())
}

/// Where a label stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Namespace,
    PodLabel,
    PodAnnotation,
}

type Row = (&'static [(On, &'static str, &'static str)], bool);

/// Labels and annotations, and whether the pod is then captured.
const ROWS: &[Row] = &[
    (&[], false),
    (&[(On::Namespace, MESH, "enabled")], true),
    (&[(On::Namespace, MESH, "disabled")], false),
    (&[(On::Namespace, AMBIENT, "ambient")], true),
    (&[(On::Namespace, AMBIENT, "none")], false),
    (&[(On::PodLabel, MESH, "enabled")], true),
    (&[(On::PodLabel, AMBIENT, "ambient")], true),
    (
        &[
            (On::Namespace, MESH, "enabled"),
            (On::PodLabel, MESH, "disabled"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, MESH, "enabled"),
            (On::PodLabel, AMBIENT, "none"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, AMBIENT, "ambient"),
            (On::PodLabel, AMBIENT, "none"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, AMBIENT, "ambient"),
            (On::PodLabel, MESH, "disabled"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, MESH, "enabled"),
            (On::PodAnnotation, INJECT, "false"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, MESH, "enabled"),
            (On::PodLabel, INJECT, "false"),
        ],
        false,
    ),
    (
        &[
            (On::Namespace, MESH, "enabled"),
            (On::PodAnnotation, INJECT, "true"),
        ],
        true,
    ),
    (
        &[
            (On::Namespace, MESH, "disabled"),
            (On::PodLabel, MESH, "enabled"),
        ],
        true,
    ),
    (&[(On::PodAnnotation, INJECT, "true")], false),
];

fn check_row(lab: &Lab, number: usize, row: &Row) -> Result<()> {
    let (labels, captured) = row;
    let space = format!("row-{number}");
    let of = |on: On| labels.iter().filter(move |label| label.0 == on);
    let on_space: Vec<_> = of(On::Namespace).map(|label| (label.1, label.2)).collect();
    lab.apply(&format!("{space}.yaml"), &namespace(&space, &on_space))?;
    let mut spec = PodSpec::new(&space, "client", "n1");
    for (_, key, value) in of(On::PodLabel) {
        spec = spec.label(key, value);
    }
    for (_, key, value) in of(On::PodAnnotation) {
        spec = spec.annotation(key, value);
    }
    let client = lab.create(&spec)?;
    let said = lab.enrolment(&client.key()).context("no enrolment")?;
    let expected = if *captured { "captured" } else { "exempt" };
    ensure!(said.capture == expected, "the agent says {said:?}");
    let server = lab.pod("mesh/c")?;
    if *captured {
        wait_encrypted(lab, &client, &server)?;
    } else {
        wait_readable(lab, &client, &server)?;
    }
    lab.delete_pod(&client.key())?;
    lab.delete(&format!("{space}.yaml"))
}

/// A2: only labelled namespaces. A3, F4: one pod may stay out, or come in alone.
#[test]
fn namespace_and_pod_decide_by_their_labels_and_annotations() -> Result<()> {
    let lab = changing_world()?;
    let mut failures = Failures::default();
    for (number, row) in ROWS.iter().enumerate() {
        failures.note(&format!("{row:?}"), check_row(&lab, number, row));
    }
    failures.judge(&lab)
}

/// A2: what every agent lists as captured is what the labels say.
#[test]
fn agents_list_the_pods_of_labelled_namespaces_as_captured() -> Result<()> {
    let lab = changing_world()?;
    for node in ["n1", "n2"] {
        for pod in lab.agent_pods(node)? {
            let field = |name: &str| pod.get(name).and_then(|value| value.as_str());
            let (space, state) = (field("namespace"), field("state"));
            let captured = state == Some("captured");
            match space {
                Some("mesh" | "strict") => ensure!(captured, "{pod}"),
                Some("plain") => ensure!(!captured, "{pod}"),
                _ => {}
            }
        }
    }
    Ok(())
}

/// F4, live: the pod's own word counts more than the namespace's, at any time.
#[test]
fn a_running_pod_follows_its_own_label() -> Result<()> {
    let lab = changing_world()?;
    let (client, _) = plain_pair(&lab, "deciding")?;
    let server = lab.pod("mesh/c")?;
    lab.label_pod(&client.key(), MESH, Some("enabled"))?;
    wait_encrypted(&lab, &client, &server)?;
    lab.label_pod(&client.key(), MESH, Some("disabled"))?;
    lab.label_namespace("deciding", AMBIENT, Some("ambient"))?;
    wait_readable(&lab, &client, &server)?;
    lab.label_pod(&client.key(), MESH, None)?;
    wait_encrypted(&lab, &client, &server)?;
    lab.label_namespace("deciding", AMBIENT, None)?;
    wait_readable(&lab, &client, &server)
}
