//! What a controller in this process makes of the cluster.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests_cluster::{Namespace, SERVER, eventually, kubectl, pod};
use tonic::Code;

use crate::controller::Controller;

/// Pods, their addresses, services and their endings come from the API server as they are.
#[test]
fn the_controller_serves_what_the_cluster_has_and_takes_back_what_is_gone() -> Result<()> {
    let controller = Controller::start("keelson-system/keelson-node-agent")?;
    let namespace = Namespace::create("follow")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    namespace.apply(&[pod("server", None, SERVER), service])?;
    namespace.wait_ready("server")?;
    let ips: Vec<String> = namespace
        .pod_ips("server")?
        .iter()
        .map(ToString::to_string)
        .collect();
    let name = namespace.name().to_owned();
    eventually("the pod is served as it is", || {
        let workload = controller
            .workload(&name, "server")?
            .context("it is not served")?;
        ensure!(workload["addresses"] == json!(ips), "{workload}");
        ensure!(workload["status"] == "Healthy", "{workload}");
        let service = format!("{name}/server.{name}.svc.cluster.local");
        let port = &workload["services"][&service][0];
        ensure!(
            port["service_port"] == 80 && port["target_port"] == 8080,
            "{workload}"
        );
        Ok(())
    })?;
    namespace.kubectl(&["delete", "pod", "server", "--wait=true"])?;
    eventually("the pod is taken back", || {
        match controller.workload(&name, "server")? {
            Some(workload) => bail!("{workload}"),
            None => Ok(()),
        }
    })
}

/// istio#41379: any pod that could get a token spoke for a node. Here an account that the settings name does, for the node
/// that the API server says its pod runs on, and everybody else for themselves.
#[test]
fn only_the_agents_account_speaks_for_a_node_and_no_token_of_others_is_taken() -> Result<()> {
    let namespace = Namespace::create("tokens")?;
    let name = namespace.name();
    for account in ["agent", "cart", "web"] {
        namespace.kubectl(&["create", "serviceaccount", account])?;
    }
    let with_account = |pod_name: &str, account: &str, node: Option<&str>| {
        let mut pod = pod(pod_name, node, "sleep 1000");
        pod["spec"]["serviceAccountName"] = json!(account);
        pod
    };
    let nodes = tests_cluster::nodes()?;
    let [here, there] = [nodes.first(), nodes.last()].map(|node| node.map(String::as_str));
    namespace.apply(&[
        with_account("agent", "agent", here),
        with_account("cart", "cart", here),
        with_account("web", "web", there),
    ])?;
    for pod in ["agent", "cart", "web"] {
        namespace.wait_ready(pod)?;
    }
    let controller = Controller::start(&format!("{name}/agent"))?;
    let token = |account: &str, audience: &str, bound: &[&str]| {
        let words = [&["create", "token", account, "--audience", audience], bound].concat();
        Ok::<_, anyhow::Error>(namespace.kubectl(&words)?.trim().to_owned())
    };
    let bound = |pod| ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{name}/sa/{account}");
    let agent = token("agent", "keelson", &bound("agent"))?;
    let cart = token("cart", "keelson", &bound("cart"))?;

    let mine = controller.certify(&agent, &identity("cart"))?;
    ensure!(mine.is_ok(), "a pod of the agent's node: {mine:?}");
    let own = controller.certify(&cart, &identity("cart"))?;
    ensure!(own.is_ok(), "a pod for itself: {own:?}");

    let code = |token: &str, account: &str| {
        let asked = controller.certify(token, &identity(account))?;
        anyhow::Ok(asked.err().map(|status| status.code()))
    };
    if here != there {
        ensure!(
            code(&agent, "web")? == Some(Code::PermissionDenied),
            "a pod of another node"
        );
    }
    ensure!(
        code(&cart, "agent")? == Some(Code::PermissionDenied),
        "a neighbour's identity"
    );
    for (what, token) in [
        (
            "another audience",
            token("agent", "istio-ca", &bound("agent"))?,
        ),
        ("bound to no pod", token("agent", "keelson", &[])?),
        ("no token", "nonsense".to_owned()),
    ] {
        ensure!(
            code(&token, "cart")? == Some(Code::Unauthenticated),
            "{what}"
        );
    }

    // The pod goes, and its token with it.
    namespace.kubectl(&["delete", "pod", "agent", "--wait=true"])?;
    eventually("the token of a pod that is gone is nobody's", || {
        let code = code(&agent, "cart")?;
        ensure!(code == Some(Code::Unauthenticated), "{code:?}");
        Ok(())
    })?;
    kubectl(&["get", "namespace", name]).map(drop)
}
