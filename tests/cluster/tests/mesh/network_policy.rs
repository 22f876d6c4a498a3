//! NetworkPolicy objects with a network that enforces them, and with the mesh in between.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::command_line::asked;
use crate::installed::{AGENT, Installed, NAMESPACE};
use crate::kinds::{Kinds, until_said};

/// Who gets an answer: client and other, each from near and far, each at 8080 and 8081.
type Answers = Vec<(&'static str, &'static str, u16, bool)>;

fn answers(namespace: &Namespace) -> Result<Answers> {
    let mut all = Vec::new();
    for from in ["client", "other"] {
        for to in ["near", "far"] {
            let ask = who_at(namespace.pod_ip(to)?);
            for port in [8080, 8081] {
                let ask = ask.replace(":8080/", &format!(":{port}/"));
                let answer = namespace.exec(from, &ask);
                if let Ok(answer) = &answer {
                    ensure!(answer.starts_with(to), "{answer}");
                }
                all.push((from, to, port, answer.is_ok()));
            }
        }
    }
    Ok(all)
}

/// Waits until exactly those get answers that are meant to, and sees that it stays so.
fn until(namespace: &Namespace, meant: impl Fn(&str, u16) -> bool) -> Result<()> {
    let attempt = || {
        let all = answers(namespace)?;
        let is_right = all
            .iter()
            .all(|(from, _, port, answered)| meant(from, *port) == *answered);
        ensure!(is_right, "{all:?}");
        Ok(())
    };
    eventually("those who may get answers", attempt)?;
    attempt()
}

/// What `keelson check` says of policies of the network.
pub(crate) fn blocking() -> Result<Vec<String>> {
    let (_, findings, _) = asked(&["check"], "")?;
    let findings = findings.as_array().context("a list of findings")?.iter();
    let of_network = findings.filter(|one| one["what"] == "network policies");
    let said = of_network.map(|one| one["said"].as_str().unwrap_or_default().to_owned());
    Ok(said.collect())
}

/// istio#52742, istio#56659, ztunnel#1229: "allow 8080 from client" is the same with and without the mesh, on the same node
/// and between nodes. That the network's own policies let tunnels pass opens nothing, and `keelson check` names those that do not
/// (issue 11, B12).
#[test]
#[ignore = "nightly: a network that enforces NetworkPolicy"]
fn allow_8080_means_the_same_with_and_without_the_mesh_on_both_placements() -> Result<()> {
    let _mesh = Installed::install_with(json!({"mesh": {"networkPolicies": "enforce"}}))?;
    let namespace = Namespace::create("netpol")?;
    let nodes = nodes()?;
    let [here, there] = nodes.as_slice() else {
        bail!("two nodes are needed, not {nodes:?}");
    };
    let server = SERVER.replace("exec httpd", "httpd -p 8081 -h /tmp/www && exec httpd");
    let pods = [
        pod("client", Some(here), CLIENT),
        pod("other", Some(here), CLIENT),
        pod("near", Some(here), &server),
        pod("far", Some(there), &server),
    ];
    namespace.apply(&pods)?;
    for name in ["client", "other", "near", "far"] {
        namespace.wait_ready(name)?;
    }
    until(&namespace, |_, _| true)?;

    let policy = |name: &str, pods: serde_json::Value, ingress: serde_json::Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [ingress]},
        })
    };
    let servers =
        json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["near", "far"]}]});
    let from = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    let allow = policy(
        "allow-8080",
        servers.clone(),
        json!({"from": from, "ports": [{"port": 8080}]}),
    );
    namespace.apply(&[allow])?;
    let allowed = |from: &str, port: u16| from == "client" && port == 8080;
    until(&namespace, allowed).context("without the mesh, by the network")?;

    kubectl(&[
        "label",
        "namespace",
        namespace.name(),
        "keelson.io/mesh=enabled",
    ])?;
    for name in ["client", "other", "near", "far"] {
        eventually("it is captured", || {
            let rules = namespace.exec(name, "ip rule list")?;
            ensure!(rules.contains("fwmark"), "{name}: {rules}");
            Ok(())
        })?;
    }
    // Tunnels are not let pass, and that is said.
    eventually("it is named", || {
        let said = blocking()?;
        let name = format!("NetworkPolicy {}/allow-8080 allows", namespace.name());
        ensure!(said.len() == 1 && said[0].starts_with(&name), "{said:?}");
        Ok(())
    })?;
    let far = who_at(namespace.pod_ip("far")?);
    namespace.exec("client", &far).unwrap_err();
    namespace.exec("client", &who_at(namespace.pod_ip("near")?))?;

    namespace.apply(&[policy(
        "tunnels",
        servers,
        json!({"ports": [{"port": 15008}]}),
    )])?;
    until(&namespace, allowed).context("with the mesh")?;
    let said = blocking()?;
    ensure!(said.is_empty(), "{said:?}");

    namespace.kubectl(&["delete", "networkpolicy", "--all"])?;
    until(&namespace, |_, _| true).context("without policies")
}

/// Issue 11, B12: with companions nobody has to open the port of tunnels, the policy means what it says on both placements, and what was
/// made for it goes with it or with the label.
#[test]
#[ignore = "nightly: a network that enforces NetworkPolicy"]
fn with_companions_nobody_has_to_open_the_port_of_tunnels() -> Result<()> {
    let _mesh = Installed::install_with(json!({"mesh": {"companionPolicies": true}}))?;
    let namespace = Namespace::create("companions")?;
    let nodes = nodes()?;
    let [here, there] = nodes.as_slice() else {
        bail!("two nodes are needed, not {nodes:?}");
    };
    let server = SERVER.replace("exec httpd", "httpd -p 8081 -h /tmp/www && exec httpd");
    namespace.apply(&[
        pod("client", Some(here), CLIENT),
        pod("other", Some(here), CLIENT),
        pod("near", Some(here), &server),
        pod("far", Some(there), &server),
    ])?;
    for name in ["client", "other", "near", "far"] {
        namespace.wait_ready(name)?;
    }
    namespace.apply(&[json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "allow-8080"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["near", "far"]}]},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]}],
        },
    })])?;
    let allowed = |from: &str, port: u16| from == "client" && port == 8080;
    until(&namespace, allowed).context("without the mesh, by the network")?;
    ensure!(
        companions(&namespace)? == 0,
        "outside of the mesh there is none"
    );
    let label = |value: &str| {
        kubectl(&["label", "namespace", namespace.name(), "--overwrite", value]).map(drop)
    };
    label("keelson.io/mesh=enabled")?;
    for name in ["client", "other", "near", "far"] {
        eventually("it is captured", || {
            let rules = namespace.exec(name, "ip rule list")?;
            ensure!(rules.contains("fwmark"), "{name}: {rules}");
            Ok(())
        })?;
    }
    let there_are = |count: usize| {
        eventually(&format!("there are {count} companions"), || {
            let found = companions(&namespace)?;
            ensure!(found == count, "{found}");
            Ok(())
        })
    };
    there_are(1)?;
    until(&namespace, allowed).context("with the mesh")?;
    let said = blocking()?;
    ensure!(said.is_empty(), "{said:?}");
    label("keelson.io/mesh=disabled")?;
    there_are(0)?;
    label("keelson.io/mesh=enabled")?;
    there_are(1)?;
    namespace.kubectl(&["delete", "networkpolicy", "allow-8080"])?;
    there_are(0)?;
    until(&namespace, |_, _| true).context("without policies")
}

/// How many companions of policies there are.
fn companions(namespace: &Namespace) -> Result<usize> {
    let all = namespace.get(&["networkpolicies"])?;
    let names = all["items"].as_array().context("a list")?.iter();
    let names = names.filter_map(|one| one["metadata"]["name"].as_str());
    Ok(names
        .filter(|name| name.starts_with("keelson-tunnels-"))
        .count())
}

/// A waypoint's pods that the network lets take tunnels alone, as people who know ambient mode write it: the kernel leads clients of
/// its node to other ports of it, where it may, and nobody hangs where it may not.
#[test]
#[ignore = "nightly: a network that enforces NetworkPolicy"]
fn a_waypoint_that_the_network_keeps_closed_but_for_tunnels_is_reached_from_its_own_node()
-> Result<()> {
    for mode in ["enforce", "ignore"] {
        led_until_closed(mode).with_context(|| format!("mesh.networkPolicies={mode}"))?;
    }
    Ok(())
}

fn led_until_closed(mode: &str) -> Result<()> {
    let _mesh = Installed::install_with(json!({"mesh": {"networkPolicies": mode}}))?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("doors")?;
    let nodes = nodes()?;
    let [here, there] = nodes.as_slice() else {
        bail!("two nodes are needed, not {nodes:?}");
    };
    for label in ["keelson.io/mesh=enabled", "istio.io/use-waypoint=waypoint"] {
        kubectl(&["label", "namespace", namespace.name(), label])?;
    }
    namespace.apply(&[
        pod("client", Some(here), CLIENT),
        pod("server", Some(there), SERVER),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"name": "http", "port": 8080}]},
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "waypoint"},
            "spec": {"gatewayClassName": "keelson-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        }),
    ])?;
    for name in ["client", "server"] {
        namespace.wait_ready(name)?;
    }
    let conditions =
        || Ok(namespace.get(&["gateway", "waypoint"])?["status"]["conditions"].clone());
    until_said(conditions, "Programmed", ("True", "Programmed"))?;
    let ask = "timeout 5 wget -q -O - http://server:8080/cgi-bin/who";
    let is_led = || -> Result<bool> {
        let before = doors_told(here, namespace.name())?;
        let answer = namespace.exec("client", ask)?;
        ensure!(answer.starts_with("server "), "{answer}");
        // It is told of when it has ended.
        std::thread::sleep(std::time::Duration::from_millis(300));
        Ok(doors_told(here, namespace.name())? > before)
    };
    let until_led = |wanted: bool| {
        eventually(
            &format!("the kernel leads to the waypoint: {wanted}"),
            || {
                ensure!(is_led()? == wanted, "not yet");
                Ok(())
            },
        )
    };
    until_led(true)?;

    let no_doors = |name: &str, pods: serde_json::Value, list: &str, policy_type: &str| {
        // And names are looked up.
        let open = json!([{"ports": [{"port": 15008}, {"port": 8080}]}, {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": pods, "policyTypes": [policy_type], list: open},
        })
    };
    let waypoint = json!({"matchLabels": {"gateway.networking.k8s.io/gateway-name": "waypoint"}});
    let client = json!({"matchLabels": {"app": "client"}});
    for policy in [
        no_doors("into-the-waypoint", waypoint, "ingress", "Ingress"),
        no_doors("out-of-the-client", client, "egress", "Egress"),
    ] {
        namespace.apply(std::slice::from_ref(&policy))?;
        until_led(false)?;
        for _ in 0..10 {
            ensure!(!is_led()?, "led to where the network lets nobody");
        }
        namespace.kubectl(&["delete", "networkpolicy", "--all"])?;
        until_led(true)?;
    }
    Ok(())
}

/// How many connections from a namespace to a waypoint's own ports the agent of a node has told of.
fn doors_told(node: &str, namespace: &str) -> Result<usize> {
    let label = format!("app.kubernetes.io/name={AGENT}");
    let on = format!("spec.nodeName={node}");
    let words = [
        "-n",
        NAMESPACE,
        "get",
        "pods",
        "-l",
        &label,
        "--field-selector",
        &on,
        "-o",
        "name",
    ];
    let agent = kubectl(&words)?;
    let log = kubectl(&["-n", NAMESPACE, "logs", agent.trim()])?;
    let is_to_a_door = |line: &&str| {
        let to = line.split_once("dst.addr=").map_or("", |(_, rest)| rest);
        let to = to
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .trim_matches('"');
        let port = to
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        line.contains("direct") && line.contains(namespace) && port >= Some(FIRST_DOOR)
    };
    Ok(log.lines().filter(is_to_a_door).count())
}

/// Ports of waypoints that are for nothing else.
const FIRST_DOOR: u16 = 61_440;
