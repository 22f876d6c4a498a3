//! That the cluster is one: its nodes, pods, services and names work before anything of the mesh is there.

use anyhow::{Result, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, get, nodes, pod, who, who_at};

#[test]
fn every_node_is_ready() -> Result<()> {
    let nodes = get(&["nodes"])?;
    let items = nodes["items"].as_array().unwrap();
    ensure!(!items.is_empty(), "there is no node");
    for node in items {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready");
        assert_eq!(ready.unwrap()["status"], "True", "{node:#}");
    }
    Ok(())
}

#[test]
fn pods_of_all_nodes_reach_each_other_and_see_each_others_addresses() -> Result<()> {
    let namespace = Namespace::create("pods")?;
    let nodes = nodes()?;
    let name = |number: usize| format!("pod-{number}");
    let pods: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(number, node)| pod(&name(number), Some(node), SERVER))
        .collect();
    namespace.apply(&pods)?;
    for number in 0..nodes.len() {
        namespace.wait_ready(&name(number))?;
    }
    for client in 0..nodes.len() {
        let client_ips = namespace.pod_ips(&name(client))?;
        for server in 0..nodes.len() {
            let server_ips = namespace.pod_ips(&name(server))?;
            for (client_ip, server_ip) in client_ips.iter().zip(server_ips) {
                let answer = eventually("the server answers", || {
                    namespace.exec(&name(client), &who_at(server_ip))
                })?;
                assert_eq!(answer.trim(), format!("{} {client_ip}", name(server)));
            }
        }
    }
    Ok(())
}

#[test]
fn a_service_is_found_by_its_names_and_leads_to_all_of_its_pods() -> Result<()> {
    let namespace = Namespace::create("service")?;
    let container = tests_cluster::container(SERVER);
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "server"}},
            "template": {
                "metadata": {"labels": {"app": "server"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]},
    });
    namespace.apply(&[deployment, service, pod("client", None, CLIENT)])?;
    namespace.kubectl(&["rollout", "status", "deployment/server", "--timeout=120s"])?;
    namespace.wait_ready("client")?;
    let long = format!("server.{}.svc.cluster.local", namespace.name());
    for name in ["server", &long] {
        let mut seen = std::collections::BTreeSet::new();
        eventually("both pods have answered", || {
            let answer = namespace.exec("client", &who(name))?;
            let server = answer.split_whitespace().next().unwrap_or_default();
            seen.insert(server.to_owned());
            ensure!(seen.len() == 2, "{name}: only {seen:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "nightly"]
fn a_pod_finds_the_api_server_by_name() -> Result<()> {
    let namespace = Namespace::create("api")?;
    namespace.apply(&[pod("client", None, CLIENT)])?;
    namespace.wait_ready("client")?;
    eventually("the port is open", || {
        namespace.exec("client", "nc -w 3 kubernetes.default.svc 443 < /dev/null")
    })?;
    Ok(())
}

#[test]
#[ignore = "nightly"]
fn exec_hands_on_output_input_and_exit_code_and_logs_are_read() -> Result<()> {
    let namespace = Namespace::create("exec")?;
    let talkative = "echo a line of the log; sleep 86400";
    namespace.apply(&[pod("client", None, talkative)])?;
    namespace.wait_ready("client")?;
    assert_eq!(namespace.exec("client", "echo $((6 * 7))")?, "42\n");
    let words = ["-n", namespace.name(), "exec", "-i", "client", "--", "cat"];
    let echoed = tests_cluster::kubectl_with(&words, "through the pod")?;
    assert_eq!(echoed, "through the pod");
    let error = namespace.exec("client", "exit 7").unwrap_err().to_string();
    assert!(error.contains("exit code 7"), "{error}");
    assert_eq!(
        namespace.kubectl(&["logs", "client"])?,
        "a line of the log\n"
    );
    Ok(())
}

#[test]
#[ignore = "nightly"]
fn a_pod_that_is_not_ready_gets_no_traffic_of_its_service() -> Result<()> {
    let namespace = Namespace::create("probes")?;
    let mut unready = pod("server", None, SERVER);
    unready["spec"]["containers"][0]["readinessProbe"] = json!({
        "httpGet": {"path": "/ready", "port": 8080},
        "periodSeconds": 1,
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]},
    });
    namespace.apply(&[unready, service, pod("client", None, CLIENT)])?;
    namespace.wait_ready("client")?;
    eventually("the server runs", || {
        let ip = namespace.pod_ip("server")?;
        namespace.exec("client", &who_at(ip))
    })?;
    namespace.exec("client", &who("server")).unwrap_err();
    namespace.exec("server", "touch /tmp/www/ready")?;
    namespace.wait_ready("server")?;
    eventually("the service answers", || {
        namespace.exec("client", &who("server"))
    })?;
    Ok(())
}
