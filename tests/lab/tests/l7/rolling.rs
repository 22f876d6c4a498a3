//! Waypoints and backends that come, go and are killed under requests.

#[path = "rolling/load.rs"]
mod load;
#[path = "rolling/stock.rs"]
mod stock;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec};
use tests_lab::{Shared, namespace};

use self::load::{Load, Tally};
use self::stock::Backend;
use crate::fixture::{APPLIES, curl, gateway};

/// The service's address: HTTP/1.1 to the backends on port 80, gRPC on port 81.
const STOCK: &str = "10.96.0.60";
/// What the lab gives a waypoint, and more than the longest answer takes.
const DRAIN: Duration = Duration::from_secs(5);

static LAB: Shared = Shared::new(begin);

fn begin() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    let labels = [
        ("keelson.io/mesh", "enabled"),
        ("istio.io/use-waypoint", "waypoint"),
    ];
    lab.apply("namespaces.yaml", &namespace("depot", &labels))?;
    lab.apply("service.yaml", SERVICE)?;
    for (name, node) in [("front", "n1"), ("back", "n2")] {
        lab.create(&PodSpec::new("depot", name, node).service_account(name))?;
    }
    lab.apply("gateway.yaml", &gateway("depot", "all"))?;
    Ok(lab)
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: stock, namespace: depot}
spec:
  clusterIP: 10.96.0.60
  clusterIPs: [10.96.0.60]
  selector: {app: stock}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc, port: 81, targetPort: 8081}
";

/// Two backends, and a waypoint on each node that serves both clients.
fn served(lab: &Lab) -> Result<Vec<Backend>> {
    let backends = vec![
        Backend::start(lab, "stock-a", "n1")?,
        Backend::start(lab, "stock-b", "n2")?,
    ];
    for client in ["depot/front", "depot/back"] {
        let all = format!("{client} is served");
        let mut row = 0;
        testkit::eventually(&all, 2 * APPLIES, || {
            let answer = curl(lab, client, &format!("http://{STOCK}/"), &[])?;
            row = if answer.status == 200 { row + 1 } else { 0 };
            ensure!(row > 4, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(backends)
}

/// Names of the waypoint's pods on a node.
fn waypoints(lab: &Lab, node: &str) -> Vec<String> {
    let all = lab.pods();
    let on_node = all.iter().filter(|pod| pod.node().name() == node);
    let own = on_node.map(|pod| pod.name().to_owned());
    own.filter(|name| name.starts_with("waypoint-")).collect()
}

/// Does `change` under requests of all kinds from both nodes, with a second of them before and two after it.
fn under_load(lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<Tally> {
    let load = Load::begin(lab, &["depot/front", "depot/back"])?;
    thread::sleep(Duration::from_secs(1));
    let changed = change();
    thread::sleep(Duration::from_secs(2));
    let tally = load.end()?;
    changed?;
    for (kind, asked) in &tally.asked {
        ensure!(
            *asked >= 8,
            "{asked} requests of {kind} are too few to tell"
        );
    }
    Ok(tally)
}

/// Another replica on the node, and then the end of those that were there before.
fn replace(lab: &Lab, node: &str) -> Result<()> {
    let before = waypoints(lab, node);
    let first = before.first().context("a waypoint on the node")?;
    let new = match first.strip_suffix("-next") {
        Some(plain) => plain.to_owned(),
        None => format!("{first}-next"),
    };
    lab.replicate(&format!("depot/{first}"), &new)?;
    // A readiness probe says so in a cluster.
    thread::sleep(Duration::from_secs(5));
    for name in before {
        lab.end_pod(&format!("depot/{name}"), Duration::ZERO, 2 * DRAIN)?;
    }
    Ok(())
}

#[test]
fn waypoints_that_are_rolled_out_anew_fail_no_request() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = LAB.lab()?;
    let _backends = served(lab)?;
    let tally = under_load(lab, || {
        replace(lab, "n1")?;
        replace(lab, "n2")
    })?;
    tally.is_whole()
}

#[test]
fn a_waypoint_that_is_scaled_down_fails_no_request() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = LAB.lab()?;
    let _backends = served(lab)?;
    let name = waypoints(lab, "n2").pop().context("a waypoint on n2")?;
    let other = waypoints(lab, "n1").pop().context("a waypoint on n1")?;
    let tally = under_load(lab, || {
        lab.end_pod(&format!("depot/{name}"), Duration::ZERO, 2 * DRAIN)
    })?;
    // Node n2 has one again for the tests that follow.
    lab.delete("gateway.yaml")?;
    for name in [name, other] {
        let left = format!("replica-depot-{name}.yaml");
        if lab.manifests_dir().join(&left).exists() {
            lab.delete(&left)?;
        }
    }
    lab.apply("gateway.yaml", &gateway("depot", "all"))?;
    tally.is_whole()
}

#[test]
fn backends_that_are_replaced_fail_no_request() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = LAB.lab()?;
    let backends = served(lab)?;
    let mut new = Vec::new();
    let tally = under_load(lab, || {
        for (old, name) in backends.into_iter().zip(["stock-c", "stock-d"]) {
            new.push(Backend::start(lab, name, "n1")?);
            old.end(lab)?;
        }
        Ok(())
    })?;
    tally.is_whole()
}

#[test]
fn a_waypoint_that_is_killed_fails_only_what_was_in_flight() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = LAB.lab()?;
    let _backends = served(lab)?;
    let name = waypoints(lab, "n1").pop().context("a waypoint on n1")?;
    let key = format!("depot/{name}");
    let mut killed = None;
    let tally = under_load(lab, || {
        lab.containers(&key, |all| all.iter_mut().try_for_each(lab::Process::kill))?;
        killed = Some(Instant::now());
        thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    let killed = killed.context("the time of the kill")?;
    // The pod starts anew.
    lab.replicate(&key, &format!("{name}-again"))?;
    lab.delete_pod(&key)?;
    ensure!(!tally.failed.is_empty(), "nothing was in flight");
    tally.is_whole_after(killed)
}

#[test]
fn a_backend_that_is_killed_fails_only_what_was_in_flight() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = LAB.lab()?;
    let mut backends = served(lab)?;
    let mut killed = None;
    let tally = under_load(lab, || {
        backends.pop().context("a backend")?.kill();
        killed = Some(Instant::now());
        thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    tally.is_whole_after(killed.context("the time of the kill")?)
}
