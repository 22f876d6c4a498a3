//! Figures of the mesh on a cluster, section D of issue 11: `cargo xtask bench cluster` runs these and prints them as a table.
//! None of them fails for being slow: the machine may do much else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Capture, CaptureOptions, Netns};
use serde_json::Value;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::command_line::good;
use crate::installed::Installed;

/// Prints a figure so that `cargo xtask bench cluster` finds it.
#[expect(clippy::print_stdout, reason = "the figure of a test")]
pub(crate) fn print(measure: &str, (at_least, aim): (&str, &str), measured: &str) {
    println!("figure: {measure} | {at_least} | {aim} | {measured}");
}

/// The value below which this share of the sorted ones is.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some hundreds"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

fn spread(mut all: Vec<Duration>) -> String {
    all.sort();
    let millis = |share: f64| percentile(&all, share).as_secs_f64() * 1e3;
    format!(
        "p50 {:.1} ms, p99 {:.1} ms of {}",
        millis(0.5),
        millis(0.99),
        all.len()
    )
}

/// Pods that each ask a server of the other node all the time.
struct Crowd {
    namespace: Namespace,
    clients: Vec<String>,
    link: Capture,
}

impl Crowd {
    fn create(mesh: &Installed) -> Result<Self> {
        let namespace = Namespace::create("crowd")?;
        let all = nodes()?;
        let [here, there] = all.as_slice() else {
            bail!("two nodes are needed, not {all:?}");
        };
        let name = |kind: &str, number: usize| format!("{kind}{number}");
        let pods = (0..PODS).flat_map(|number| {
            [
                pod(&name("client", number), Some(here), CLIENT),
                pod(&name("server", number), Some(there), SERVER),
            ]
        });
        namespace.apply(&pods.collect::<Vec<_>>())?;
        let ready = [
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=300s",
        ];
        namespace.kubectl(&ready)?;
        let clients: Vec<String> = (0..PODS).map(|number| name("client", number)).collect();
        for (number, client) in clients.iter().enumerate() {
            let ask = who_at(namespace.pod_ip(&name("server", number))?);
            // With its own output: an exec waits for whoever still has the one that it was given.
            let on = format!("while true; do {ask}; sleep 0.1; done > /dev/null 2>&1 & true");
            namespace.exec(client, &on)?;
        }
        let netns = Netns::of_process(mesh.standing()?.pid(there)?)?;
        let link = Capture::start_with(&netns, "eth0", CaptureOptions::default())?;
        Ok(Self {
            namespace,
            clients,
            link,
        })
    }

    fn label(&self, value: &str) -> Result<()> {
        let words = [
            "label",
            "namespace",
            self.namespace.name(),
            "--overwrite",
            value,
        ];
        kubectl(&words).map(drop)
    }

    /// When each client last began a connection that is readable, since the link is watched.
    fn last_readable(&self) -> BTreeMap<IpAddr, SystemTime> {
        let mut last = BTreeMap::new();
        for frame in self.link.frames() {
            let Some(packet) = frame.packet() else {
                continue;
            };
            if packet.is_syn() && packet.destination_port == PORT {
                last.insert(packet.source, frame.at);
            }
        }
        last
    }

    /// Waits until nobody, or everybody, begins readable connections.
    fn until_readable(&self, wanted: bool) -> Result<()> {
        eventually(&format!("readable: {wanted}"), || {
            self.link.clear();
            sleep(Duration::from_secs(1));
            let seen = self.last_readable().len();
            let expected = if wanted { self.clients.len() } else { 0 };
            ensure!(seen == expected, "{seen} clients and not {expected}");
            Ok(())
        })
    }
}

/// From the label to the last connection of each pod that could be read.
#[test]
#[ignore = "figures"]
fn label_to_encrypted() -> Result<()> {
    let mesh = Installed::install()?;
    let crowd = Crowd::create(&mesh)?;
    let mut times = Vec::new();
    for _ in 0..LABEL_ROUNDS {
        crowd.until_readable(true)?;
        crowd.link.clear();
        let began = SystemTime::now();
        crowd.label("keelson.io/mesh=enabled")?;
        sleep(Duration::from_secs(4));
        let last = crowd.last_readable();
        for at in last.values() {
            times.push(at.duration_since(began).unwrap_or_default());
        }
        crowd.until_readable(false)?;
        crowd.label("keelson.io/mesh-")?;
    }
    print(
        "label by kubectl -> new connections between nodes encrypted, 30 pods a node",
        ("p99 1000 ms", "p99 300 ms"),
        &spread(times),
    );
    Ok(())
}

/// The CNI plugin's part of an ADD: from its start to its end, measured around it on the node.
#[test]
#[ignore = "figures"]
fn add_of_a_pod() -> Result<()> {
    let mesh = Installed::install()?;
    let node = nodes()?.into_iter().next().context("a node")?;
    let (inside, outside) = (Namespace::create("in")?, Namespace::create("out")?);
    let label = [
        "label",
        "namespace",
        inside.name(),
        "keelson.io/mesh=enabled",
    ];
    kubectl(&label)?;
    // Its certificate is the others' too.
    inside.apply(&[pod("first", Some(&node), CLIENT)])?;
    inside.wait_ready("first")?;
    mesh.on(&node, TIMED)?;
    for number in 0..ADDS {
        for namespace in [&inside, &outside] {
            let name = format!("p{number}");
            namespace.apply(&[pod(&name, Some(&node), CLIENT)])?;
            namespace.wait_ready(&name)?;
            namespace.kubectl(&["delete", "pod", &name, "--wait=false"])?;
        }
    }
    let text = mesh.on(
        &node,
        "cat /run/cni-times; rm /opt/cni/bin/keelson-cni.real",
    )?;
    let of = |namespace: &Namespace| -> Vec<Duration> {
        let is_its = |line: &&str| {
            line.starts_with("ADD ")
                && line.contains(&format!("K8S_POD_NAMESPACE={};", namespace.name()))
        };
        let micros = |line: &str| line.split(' ').nth(1)?.parse().ok();
        let lines = text.lines().filter(is_its);
        lines
            .filter_map(micros)
            .map(Duration::from_micros)
            .collect()
    };
    let (ours, others) = (of(&inside), of(&outside));
    ensure!(ours.len() == ADDS && others.len() == ADDS, "{text}");
    print(
        "ADD of a mesh pod, certificate already there",
        ("p50 20 ms, p99 100 ms", "p50 5 ms, p99 30 ms"),
        &spread(ours),
    );
    print("ADD of another pod", ("2 ms", "0.5 ms"), &spread(others));
    Ok(())
}

/// The command until everything is ready, images loaded.
#[test]
#[ignore = "figures"]
fn install_until_ready() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = mesh.values()?.to_string();
    let mut times = Vec::new();
    for _ in 0..INSTALLS {
        let began = Instant::now();
        good(&["install", "--crds", "--wait", "-f", "-"], &values)?;
        times.push(began.elapsed());
        let gone = good(&["uninstall"], "")?;
        ensure!(gone["left"] == Value::Array(vec![]), "{gone:#}");
    }
    times.sort();
    let seconds: Vec<String> = times
        .iter()
        .map(|time| format!("{:.1}", time.as_secs_f64()))
        .collect();
    print(
        "keelson install, images loaded, two nodes, until ready",
        ("60 s", "20 s"),
        &format!("{} s", seconds.join(", ")),
    );
    Ok(())
}

/// A program in the plugin's place that starts it and writes down how long it took, in microseconds.
const TIMED: &str = r#"cd /opt/cni/bin && mv keelson-cni keelson-cni.real && cat > keelson-cni <<'END'
#!/bin/bash
began=$EPOCHREALTIME
"$0.real"
code=$?
ended=$EPOCHREALTIME
echo "$CNI_COMMAND $((${ended/./} - ${began/./})) $CNI_ARGS;" >> /run/cni-times
exit $code
END
chmod +x keelson-cni"#;
const PODS: usize = 30;
const LABEL_ROUNDS: usize = 5;
const ADDS: usize = 40;
const INSTALLS: usize = 5;
const PORT: u16 = 8080;
