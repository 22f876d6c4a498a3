//! A waypoint that a user asks for with a Gateway and a label, and nothing else.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod};

use crate::installed::Installed;
use crate::kinds::{Kinds, until_said};

fn gateway() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "waypoint"},
        "spec": {"gatewayClassName": "keelson-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    })
}

fn service(name: &str, selector: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"name": "http", "port": 8080}]},
    })
}

fn only_get() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "only-get"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}],
            "action": "ALLOW", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}],
        },
    })
}

fn route(name: &str, backends: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "shop", "port": 8080}],
            "rules": [{"backendRefs": backends}],
        },
    })
}

const GET: &str = "timeout 5 wget -q -O - http://shop:8080/cgi-bin/who";
const POST: &str = "timeout 5 wget -q -O - --post-data=x http://shop:8080/cgi-bin/who";

/// Issue 12 B3, B4, B7, B9: a Gateway and a label make a waypoint on both nodes; policy and weights obey; a pod that is
/// replaced loses no request; one that is taken away is made again, and meanwhile nothing gets past it; with the
/// Gateway all goes, and then everything is refused.
#[test]
fn a_waypoint_that_is_asked_for_is_made_decides_and_goes_with_its_gateway() -> Result<()> {
    // Whoever has the installation has the cluster to itself, with the kinds that another test would take away.
    let _mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("waypoint")?;
    let all = nodes()?;
    let [here, there] = all.as_slice() else {
        bail!("two nodes are needed, not {all:?}");
    };
    kubectl(&[
        "label",
        "namespace",
        namespace.name(),
        "keelson.io/mesh=enabled",
    ])?;
    let server = |name: &str, node: &str| {
        let mut server = pod(name, Some(node), SERVER);
        server["metadata"]["labels"]["tier"] = "shop".into();
        server
    };
    namespace.apply(&[
        pod("client", Some(here), CLIENT),
        server("v1", here),
        server("v2", there),
        service("shop", &json!({"tier": "shop"})),
        service("v1", &json!({"app": "v1"})),
        service("v2", &json!({"app": "v2"})),
        gateway(),
    ])?;
    for name in ["client", "v1", "v2"] {
        namespace.wait_ready(name)?;
    }

    // The pods, on both nodes.
    let conditions = || -> Result<Value> {
        Ok(namespace.get(&["gateway", "waypoint"])?["status"]["conditions"].clone())
    };
    until_said(conditions, "Programmed", ("True", "Programmed"))?;
    let pods = || namespace.get(&["pods", "-l", OF_WAYPOINT]);
    let ready_on = || -> Result<Vec<String>> {
        let pods = pods()?;
        let items = pods["items"].as_array().context("a list")?;
        let ready = items.iter().filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
                && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let mut on: Vec<String> = ready
            .filter_map(|pod| Some(pod["spec"]["nodeName"].as_str()?.to_owned()))
            .collect();
        on.sort();
        Ok(on)
    };
    let both = || {
        eventually("a waypoint's pod is ready on each node", || {
            let on = ready_on()?;
            ensure!(on == [here.clone(), there.clone()], "ready on {on:?}");
            Ok(())
        })
    };
    both()?;
    // Made soon after the kinds are there, whoever is faster.
    eventually("the class is accepted", || {
        let class = tests_cluster::get(&["gatewayclass", "keelson-waypoint"])?;
        let accepted = crate::kinds::condition(&class["status"]["conditions"], "Accepted")?;
        ensure!(accepted.0 == "True", "{class}");
        Ok(())
    })?;

    // Policy.
    let label = [
        "label",
        "namespace",
        namespace.name(),
        "istio.io/use-waypoint=waypoint",
    ];
    kubectl(&label)?;
    namespace.apply(&[only_get()])?;
    eventually("POST is refused by the waypoint and GET is not", || {
        namespace.exec("client", GET)?;
        let refused = namespace.exec("client", POST);
        let said = refused.err().context("POST was let through")?.to_string();
        ensure!(said.contains("403"), "{said}");
        Ok(())
    })?;

    // Weights.
    let one = json!([{"name": "v1", "port": 8080, "weight": 3}, {"name": "v2", "port": 8080, "weight": 1}]);
    namespace.apply(&[route("split", &one)])?;
    let of_route = |name: &'static str| {
        let namespace = &namespace;
        move || -> Result<Value> {
            let route = namespace.get(&["httproute", name])?;
            Ok(route["status"]["parents"][0]["conditions"].clone())
        }
    };
    until_said(of_route("split"), "Accepted", ("True", "Accepted"))?;
    until_said(of_route("split"), "ResolvedRefs", ("True", "ResolvedRefs"))?;
    // The status is written beside what waypoints are told.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ask = format!("for i in $(seq 200); do {GET} || echo failed; done");
    let answers = namespace.exec("client", &ask)?;
    let count = |word: &str| {
        answers
            .lines()
            .filter(|line| line.starts_with(word))
            .count()
    };
    let (v1, v2) = (count("v1"), count("v2"));
    println!(
        "200 requests at weights of 3 and 1: v1 {v1}, v2 {v2}, failed {}",
        count("failed")
    );
    // Five standard deviations of a binomial distribution.
    ensure!(v1 + v2 == 200 && (119..=181).contains(&v1), "{v1} and {v2}");
    let nowhere = json!([{"name": "nowhere", "port": 8080}]);
    let mut lost = route("lost", &nowhere);
    lost["spec"]["rules"][0]["matches"] =
        json!([{"path": {"type": "PathPrefix", "value": "/lost"}}]);
    namespace.apply(&[lost])?;
    let why = until_said(
        of_route("lost"),
        "ResolvedRefs",
        ("False", "BackendNotFound"),
    )?;
    ensure!(why.contains("nowhere"), "{why}");

    // A pod is replaced.
    let asking = format!(
        "while [ ! -e /tmp/stop ]; do if {GET} > /dev/null; then echo good; else echo bad; fi; done > /tmp/asked 2>&1 & true"
    );
    namespace.exec("client", &asking)?;
    let first = pods()?["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    namespace.kubectl(&["delete", "pod", &first, "--timeout=60s"])?;
    both()?;
    namespace.exec("client", "touch /tmp/stop")?;
    let asked = namespace.exec("client", "cat /tmp/asked")?;
    let (good, bad) = (asked.matches("good").count(), asked.matches("bad").count());
    println!("{good} requests while a waypoint's pod was replaced, {bad} failed");
    ensure!(good > 20 && bad == 0, "{good} good, {bad} bad: {asked}");

    // What was made is taken away by somebody: it comes again, and nothing gets past it meanwhile.
    let asking = format!(
        "rm /tmp/stop; while [ ! -e /tmp/stop ]; do if {POST} > /dev/null; then echo through; else echo refused; fi; sleep 0.1; done > /tmp/posted 2>&1 & true"
    );
    namespace.exec("client", &asking)?;
    namespace.kubectl(&[
        "delete",
        "deployment",
        "waypoint",
        "--cascade=foreground",
        "--timeout=90s",
    ])?;
    both()?;
    namespace.exec("client", "touch /tmp/stop")?;
    let posted = namespace.exec("client", "cat /tmp/posted")?;
    let count = |word: &str| posted.lines().filter(|line| *line == word).count();
    println!(
        "while the waypoint was gone: {} refused, {} through",
        count("refused"),
        count("through")
    );
    ensure!(count("refused") > 5 && count("through") == 0, "{posted}");
    eventually("it decides again", || namespace.exec("client", GET))?;
    // A changed field too.
    namespace.kubectl(&["scale", "deployment", "waypoint", "--replicas=1"])?;
    eventually("the number of pods is put right", || {
        let deployment = namespace.get(&["deployment", "waypoint"])?;
        ensure!(
            deployment["spec"]["replicas"] == 2,
            "{}",
            deployment["spec"]["replicas"]
        );
        Ok(())
    })?;
    // And nothing is written for nothing.
    both()?;
    let revision = || -> Result<Vec<String>> {
        let objects = namespace.get(&["serviceaccounts,services,configmaps", "-l", OF_WAYPOINT])?;
        let items = objects["items"].as_array().context("a list")?;
        let of = items
            .iter()
            .map(|one| one["metadata"]["resourceVersion"].to_string());
        Ok(of.collect())
    };
    let before = revision()?;
    ensure!(before.len() == 3, "{before:?}");
    std::thread::sleep(std::time::Duration::from_secs(5));
    let after = revision()?;
    ensure!(before == after, "{before:?} became {after:?}");

    // With the Gateway all goes.
    namespace.kubectl(&["delete", "gateway", "waypoint"])?;
    eventually("everything that was made is gone", || {
        let left = namespace.kubectl(&["get", MADE, "-l", OF_WAYPOINT, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    let refused = namespace.exec("client", GET);
    ensure!(
        refused.is_err(),
        "the label asks for a waypoint that is gone: {refused:?}"
    );
    Ok(())
}

const OF_WAYPOINT: &str = "gateway.networking.k8s.io/gateway-name=waypoint";
const MADE: &str = "pods,deployments,services,serviceaccounts,configmaps,poddisruptionbudgets";
