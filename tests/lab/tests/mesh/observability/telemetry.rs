//! The TCP metrics: Istio's names and labels, on both sides, while a connection lasts and after it.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests_lab::turn;

use super::mesh::{CATALOGUE, Mesh, mesh};
use crate::fixture::{APPLIES, Ended, call, call_here, connect, exchange};
use tests_lab::metrics::Metrics;

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

type Labels = &'static [(&'static str, &'static str)];

/// F100: of the front end's connections to the Service.
const OF_CLIENT: Labels = &[
    ("source_workload", "front-end"),
    ("source_workload_namespace", "sock-shop"),
    ("source_app", "front-end"),
    ("source_version", "v2"),
    (
        "source_principal",
        "spiffe://cluster.local/ns/sock-shop/sa/front-end",
    ),
    ("destination_workload", "catalogue"),
    ("destination_workload_namespace", "sock-shop"),
    ("destination_app", "catalogue"),
    ("destination_version", "v1"),
    (
        "destination_principal",
        "spiffe://cluster.local/ns/sock-shop/sa/catalogue",
    ),
    (
        "destination_service",
        "catalogue.sock-shop.svc.cluster.local",
    ),
    ("destination_service_name", "catalogue"),
    ("destination_service_namespace", "sock-shop"),
    ("request_protocol", "tcp"),
    ("response_flags", "-"),
];

fn with(
    labels: Labels,
    more: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    labels.iter().chain(more).copied().collect()
}

/// What the four counters of one node say under these labels.
fn counters(mesh: &Mesh, node: &str, labels: &[(&str, &str)]) -> Result<[u64; 4]> {
    let metrics = Metrics::of_agent(mesh.lab, node)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are small whole numbers"
    )]
    let counters = [OPENED, CLOSED, SENT, RECEIVED].map(|name| metrics.sum(name, labels) as u64);
    Ok(counters)
}

/// A58, F97's TCP part, F99-F102.
#[test]
fn both_reporters_count_connections_and_bytes_under_istios_names_and_labels() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let places = [
        (
            "n1",
            with(
                OF_CLIENT,
                &[
                    ("reporter", "source"),
                    ("connection_security_policy", "unknown"),
                ],
            ),
        ),
        (
            "n2",
            with(
                OF_CLIENT,
                &[
                    ("reporter", "destination"),
                    ("connection_security_policy", "mutual_tls"),
                ],
            ),
        ),
    ];
    let read = || -> Result<Vec<[u64; 4]>> {
        let counted = places.iter();
        counted
            .map(|(node, labels)| counters(&mesh, node, labels))
            .collect()
    };
    settle(&mesh)?;
    let before = read()?;
    let message = vec![b'x'; 1000];
    for _ in 0..7 {
        let ended = mesh
            .client
            .run(|| call_here(CATALOGUE.parse().unwrap(), &message))?;
        assert_eq!(ended, Ended::Answered);
    }
    testkit::eventually("both sides have counted", APPLIES, || {
        let mut grown = read()?;
        for (now, before) in grown.iter_mut().zip(&before) {
            for (now, before) in now.iter_mut().zip(before) {
                *now -= before;
            }
        }
        ensure!(
            grown == [[7, 7, 7000, 7000]; 2],
            "opened, closed, sent, received: {grown:?}"
        );
        Ok(())
    })
}

/// Waits until no connection of an earlier test is still being closed.
fn settle(mesh: &Mesh) -> Result<()> {
    let what = "no connection is open";
    lab::wait_until(what, APPLIES, || {
        let open = ["n1", "n2"].map(|node| mesh.lab.agent_json(node, "/connections"));
        let [first, second] = open;
        Ok([first?, second?]
            .iter()
            .all(|page| page.as_array().is_some_and(Vec::is_empty)))
    })
}

/// F100: the label set is the same on every series, and empty is nowhere.
#[test]
fn every_series_has_all_labels_and_none_is_empty() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    call(&mesh.stranger, mesh.server_at()?)?;
    call(&mesh.thief, mesh.server_at()?)?;
    let expected = [
        "reporter",
        "source_workload",
        "source_canonical_service",
        "source_canonical_revision",
        "source_workload_namespace",
        "source_namespace",
        "source_principal",
        "source_app",
        "source_version",
        "source_cluster",
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
        "destination_workload",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_workload_namespace",
        "destination_namespace",
        "destination_principal",
        "destination_app",
        "destination_version",
        "destination_cluster",
        "request_protocol",
        "response_flags",
        "connection_security_policy",
        "connection_mtls",
    ];
    for node in ["n1", "n2"] {
        let metrics = Metrics::of_agent(mesh.lab, node)?;
        for name in [OPENED, CLOSED, SENT, RECEIVED, FAILED] {
            let samples = metrics.samples(name, &[]);
            assert!(!samples.is_empty(), "{node} has no {name}");
            for sample in samples {
                for label in expected {
                    let value = sample.label(label);
                    assert!(
                        value.is_some_and(|value| !value.is_empty()),
                        "{label}: {sample:?}"
                    );
                }
                let names = sample.label_names();
                assert!(
                    names.iter().all(|name| !name.contains("pod")),
                    "unbounded: {names:?}"
                );
            }
        }
    }
    Ok(())
}

/// A58, F101: plain text is `none`, and its source is known by its address only.
#[test]
fn plain_text_is_counted_as_security_none_by_the_destination() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "none"),
        ("source_workload", "stranger"),
        ("source_workload_namespace", "out"),
        ("source_principal", "unknown"),
        ("destination_workload", "catalogue"),
    ];
    let before = counters(&mesh, "n2", &labels)?;
    assert_eq!(call(&mesh.stranger, mesh.server_at()?)?, Ended::Answered);
    testkit::eventually("the plain call is counted", APPLIES, || {
        let now = counters(&mesh, "n2", &labels)?;
        ensure!(
            now[0] == before[0] + 1 && now[1] == before[1] + 1,
            "{before:?}, {now:?}"
        );
        Ok(())
    })?;
    // Nobody captures the stranger, so nobody reports for it as the source.
    let as_source = [("reporter", "source"), ("source_workload", "stranger")];
    assert_eq!(counters(&mesh, "n1", &as_source)?, [0; 4]);
    Ok(())
}

/// A59: an operator sees a long flow while it lasts.
#[test]
fn the_bytes_of_a_long_flow_are_counted_before_it_ends() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    settle(&mesh)?;
    let sides = [("n1", "source"), ("n2", "destination")];
    let read = || -> Result<Vec<[u64; 4]>> {
        let sides = sides.iter();
        sides
            .map(|(node, side)| counters(&mesh, node, &with(OF_CLIENT, &[("reporter", side)])))
            .collect()
    };
    let before = read()?;
    let open = connect(&mesh.client, CATALOGUE.parse()?)?;
    let message = vec![b'y'; 50_000];
    assert_eq!(exchange(&open, &message), Ended::Answered);
    let what = "the open flow's bytes are counted";
    testkit::eventually(what, Duration::from_secs(10), || {
        for (now, before) in read()?.iter().zip(&before) {
            let [opened, closed, sent, received] =
                [0, 1, 2, 3].map(|index| now[index] - before[index]);
            ensure!(
                (opened, closed) == (1, 0),
                "opened {opened}, closed {closed}"
            );
            ensure!(
                (sent, received) == (50_000, 50_000),
                "sent {sent}, received {received}"
            );
        }
        Ok(())
    })?;
    drop(open);
    testkit::eventually("and the end, with nothing counted twice", APPLIES, || {
        for (now, before) in read()?.iter().zip(&before) {
            let grown = [0, 1, 2, 3].map(|index| now[index] - before[index]);
            ensure!(grown == [1, 1, 50_000, 50_000], "{grown:?}");
        }
        Ok(())
    })
}

/// F102: a refusal is a failed connection on both sides, with its flag, and not an opened one.
#[test]
fn a_refused_connection_is_counted_as_failed_with_its_flag_on_both_sides() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let labels = |side| {
        [
            ("reporter", side),
            ("source_workload", "thief"),
            ("response_flags", "DENY"),
        ]
    };
    let read = || -> Result<[[f64; 2]; 2]> {
        let mut read = [[0.0; 2]; 2];
        for (row, (node, side)) in read
            .iter_mut()
            .zip([("n1", "source"), ("n2", "destination")])
        {
            let metrics = Metrics::of_agent(mesh.lab, node)?;
            *row = [
                metrics.sum(FAILED, &labels(side)),
                metrics.sum(OPENED, &[("reporter", side), ("source_workload", "thief")]),
            ];
        }
        Ok(read)
    };
    let before = read()?;
    assert_eq!(call(&mesh.thief, CATALOGUE.parse()?)?, Ended::Refused);
    testkit::eventually("the refusal is counted", APPLIES, || {
        let now = read()?;
        for (now, before) in now.iter().zip(before) {
            let grown = [now[0] - before[0], now[1] - before[1]];
            ensure!(grown == [1.0, 0.0], "failed and opened: {grown:?}");
        }
        Ok(())
    })
}

/// A57, F98: what the kubelet asks is nobody's traffic.
#[test]
fn probes_are_served_and_not_counted_and_not_logged() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    settle(&mesh)?;
    let to = mesh.server_at()?;
    let node = mesh.lab.node("n2")?;
    let all = |name| -> Result<f64> { Ok(Metrics::of_agent(mesh.lab, "n2")?.sum(name, &[])) };
    let before = [all(OPENED)?, all(FAILED)?, all(RECEIVED)?];
    let lines = mesh.lab.agent_log("n2").lines().count();
    for _ in 0..5 {
        let ended = node.run_as_kubelet(|| call_here(to, b"GET /healthz HTTP/1.1\r\n\r\n"))?;
        assert_eq!(ended, Ended::Answered);
    }
    assert_eq!(call(&mesh.client, to)?, Ended::Answered);
    settle(&mesh)?;
    let grown = [all(OPENED)? - before[0], all(FAILED)? - before[1]];
    assert_eq!(grown, [1.0, 0.0], "only the client's own call is counted");
    let new: Vec<String> = mesh
        .lab
        .agent_log("n2")
        .lines()
        .skip(lines)
        .map(str::to_owned)
        .collect();
    let ip = node.v4().to_string();
    let of_probes: Vec<&String> = new.iter().filter(|line| line.contains(&ip)).collect();
    assert!(of_probes.is_empty(), "{of_probes:?}");
    Ok(())
}
