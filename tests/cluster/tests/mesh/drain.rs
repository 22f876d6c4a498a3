//! A node that is emptied by `kubectl drain`.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{SERVER, container, eventually, kubectl, nodes, who};

use crate::command_line::good;
use crate::installed::Installed;
use crate::pair::Pair;

/// Section C of issue 11: a node is emptied for its maintenance and taken back. Pods that go answer for as long as others may still
/// ask them, as everywhere.
#[test]
#[ignore = "nightly"]
fn a_node_that_is_drained_and_taken_back_fails_no_request() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "drain")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let namespace = &pair.namespace;
    let nodes = nodes()?;
    let (here, there) = (&nodes[0], &nodes[1]);
    namespace.apply(&[
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"},
               "spec": {"selector": {"app": "shop"}, "ports": [{"port": 8080}]}}),
        several("shop", 4),
    ])?;
    let rolled = ["rollout", "status", "deployment/shop", "--timeout=120s"];
    namespace.kubectl(&rolled)?;
    let on = |node: &str| -> Result<usize> {
        let here = format!("--field-selector=spec.nodeName={node}");
        let pods = namespace.kubectl(&["get", "pods", "-l", "app=shop", &here, "-o", "name"])?;
        Ok(pods.lines().count())
    };
    ensure!(on(here)? > 0 && on(there)? > 0, "it runs on both nodes");
    let ask = who("shop");
    eventually("its name is known", || namespace.exec("client", &ask))?;
    let ask_on = format!(
        "while [ ! -e /tmp/end ]; do if {ask} > /dev/null; then echo good; else echo bad; fi; done > /tmp/service 2>&1 & true"
    );
    namespace.exec("client", &ask_on)?;
    let taken_back = TakenBack(there);
    // The pair's server belongs to nobody, and would not come back.
    namespace.kubectl(&["delete", "pod", "server", "--wait=false"])?;
    let drain = [
        "drain",
        there,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
    ];
    kubectl(&[&drain[..], &["--timeout=180s"]].concat())?;
    namespace.kubectl(&rolled)?;
    ensure!(on(there)? == 0, "pods are left on {there}");
    drop(taken_back);
    namespace.kubectl(&["rollout", "restart", "deployment/shop"])?;
    namespace.kubectl(&rolled)?;
    ensure!(on(there)? > 0, "no pod came back to {there}");
    namespace.exec("client", "touch /tmp/end")?;
    let asked = namespace.exec("client", "sort /tmp/service | uniq -c")?;
    println!("while a node was drained and taken back: {}", asked.trim());
    ensure!(asked.contains("good") && !asked.contains("bad"), "{asked}");
    eventually("every node is in step", || good(&["status"], ""))?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// A node that takes pods again when this is dropped.
struct TakenBack<'n>(&'n str);

impl Drop for TakenBack<'_> {
    fn drop(&mut self) {
        drop(kubectl(&["uncordon", self.0]));
    }
}

/// Servers of which each goes some seconds after it was told to.
fn several(name: &str, replicas: u32) -> Value {
    let mut one = container(SERVER);
    one["lifecycle"] = json!({"preStop": {"exec": {"command": ["sleep", "5"]}}});
    one["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": name}},
    }]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 10, "containers": [one], "topologySpreadConstraints": spread},
            },
        },
    })
}
