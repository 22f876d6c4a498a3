//! Ways into a pod that do not begin in a pod: ports of nodes, and programs on a node's own network.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, get, nodes, pod, who_at};

use crate::installed::Installed;
use crate::pair::Pair;

/// Issue 11, B10: who comes by these ways gets from a pod of the mesh what it gets from the same pod outside, and the pod sees the
/// same address.
#[test]
#[ignore = "nightly"]
fn node_ports_host_ports_and_clients_on_a_hosts_network_get_what_they_get_without_the_mesh()
-> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "doors")?;
    let namespace = &pair.namespace;
    let all = nodes()?;
    let (here, there) = (&all[0], &all[1]);
    let mut port = pod("port", Some(there), SERVER);
    port["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": 8080, "hostPort": HOST_PORT}]);
    let mut host = pod("host", Some(here), CLIENT);
    host["spec"]["hostNetwork"] = json!(true);
    namespace.apply(&[
        port,
        host,
        pod("near", Some(here), SERVER),
        door("anywhere", "Cluster"),
        door("here", "Local"),
    ])?;
    for name in ["port", "host", "near"] {
        namespace.wait_ready(name)?;
    }
    let ways = Ways::of(&mesh, namespace, &all)?;
    let without = eventually("every way is open", || ways.go())?;
    let of_host = wget(&address(there)?, HOST_PORT);
    namespace.exec("client", &of_host)?;
    println!("without the mesh: {without:#?}");
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    for _ in 0..5 {
        let with = ways.go()?;
        ensure!(with == without, "{without:#?}\n{with:#?}");
    }
    // The node would lead the client's own packets to a pod of the mesh, so what both say would be read: it is not let through.
    pair.watch_from_now();
    let answered = namespace.exec("client", &of_host);
    ensure!(answered.is_err(), "{answered:?}");
    ensure!(pair.seen_in_the_clear()? == 0, "it was readable");
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// Each way in, with the node and the shell command, or the pod.
struct Ways<'t> {
    mesh: &'t Installed,
    namespace: &'t Namespace,
    from_nodes: Vec<(String, String, String)>,
    from_pods: Vec<(String, String, String)>,
}

impl<'t> Ways<'t> {
    fn of(mesh: &'t Installed, namespace: &'t Namespace, nodes: &[String]) -> Result<Self> {
        let (here, there) = (&nodes[0], &nodes[1]);
        let (near, far) = (address(here)?, address(there)?);
        let curl =
            |to: &str, port: u64| format!("curl -s -S -f -m 5 http://{to}:{port}/cgi-bin/who");
        let wget =
            |to: &str, port: u64| format!("timeout 5 wget -q -O - http://{to}:{port}/cgi-bin/who");
        let (anywhere, local) = (
            node_port(namespace, "anywhere")?,
            node_port(namespace, "here")?,
        );
        let way =
            |name: &str, from: &str, command: String| (name.to_owned(), from.to_owned(), command);
        let from_nodes = vec![
            way("NodePort, the pod's node", here, curl(&far, anywhere)),
            way("NodePort, another node", there, curl(&near, anywhere)),
            way("NodePort, the own node", here, curl(&near, anywhere)),
            way("NodePort, local", here, curl(&far, local)),
            way("hostPort", here, curl(&far, HOST_PORT)),
        ];
        let server = namespace.pod_ip("server")?;
        let beside = namespace.pod_ip("near")?;
        let from_pods = vec![
            way("host's network, another node", "host", who_at(server)),
            way("host's network, the same node", "host", who_at(beside)),
            way("host's network, NodePort", "host", wget(&near, anywhere)),
            way(
                "a pod, NodePort of another node",
                "client",
                wget(&far, anywhere),
            ),
            way(
                "a pod, NodePort of its own node",
                "client",
                wget(&near, anywhere),
            ),
        ];
        Ok(Self {
            mesh,
            namespace,
            from_nodes,
            from_pods,
        })
    }

    /// What each gets.
    fn go(&self) -> Result<BTreeMap<&str, String>> {
        let mut answers = BTreeMap::new();
        for (name, node, command) in &self.from_nodes {
            let answer = self.mesh.on(node, command);
            let answer = answer.with_context(|| name.clone())?;
            answers.insert(name.as_str(), answer.trim().to_owned());
        }
        for (name, pod, command) in &self.from_pods {
            let answer = self.namespace.exec(pod, command);
            let answer = answer.with_context(|| name.clone())?;
            answers.insert(name.as_str(), answer.trim().to_owned());
        }
        Ok(answers)
    }
}

/// A Service of the server that each node has a port for.
fn door(name: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": policy, "selector": {"app": "server"},
            "ports": [{"port": 8080}],
        },
    })
}

fn node_port(namespace: &Namespace, service: &str) -> Result<u64> {
    let service = namespace.get(&["service", service])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64();
    port.context("a port of the nodes")
}

/// A pod's question. `wget -T` of Debian's busybox crashes.
fn wget(to: &str, port: u64) -> String {
    format!("timeout 5 wget -q -O - http://{to}:{port}/cgi-bin/who")
}

/// Where a node is reached.
pub(crate) fn address(node: &str) -> Result<String> {
    let node = get(&["node", node])?;
    let all = node["status"]["addresses"].as_array();
    let all = all.context("addresses")?;
    let internal = all.iter().find(|one| one["type"] == "InternalIP");
    let text = internal.and_then(|one| one["address"].as_str());
    text.map(str::to_owned).context("an address")
}

const HOST_PORT: u64 = 18080;
