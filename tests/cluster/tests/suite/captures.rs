//! A controller beside Istio's control plane: it says what is to be captured, and writes down what is.

use anyhow::{Context as _, Result, ensure};
use proto::agent::{CapturedPod, NodeReport};
use serde_json::json;
use tests_cluster::{Namespace, eventually, nodes, pod};
use tonic::Code;

use crate::controller::Controller;

/// istiod counts a pod as captured by its annotation, which says what the pod's node says, whoever else writes there; and
/// nothing of istiod's is served.
#[test]
fn a_controller_of_captures_annotates_what_nodes_hold_and_signs_nothing() -> Result<()> {
    let namespace = Namespace::create("captures")?;
    let name = namespace.name();
    let node = nodes()?.into_iter().next().context("a node")?;
    namespace.kubectl(&["create", "serviceaccount", "agent"])?;
    let mut agent = pod("agent", Some(&node), "sleep 1000");
    agent["spec"]["serviceAccountName"] = json!("agent");
    let cart = pod("cart", Some(&node), "sleep 1000");
    namespace.apply(&[agent, cart])?;
    eventually("both are on their node", || {
        for pod in ["agent", "cart"] {
            let pod = namespace.get(&["pod", pod])?;
            ensure!(pod["spec"]["nodeName"] == *node, "{pod}");
        }
        Ok(())
    })?;
    let more = ["--captures-only", "--namespace", name, "--replica", "one"];
    let controller = Controller::start_with(&format!("{name}/agent"), &more)?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "agent"];
    let words = ["create", "token", "agent", "--audience", "keelson"];
    let token = namespace.kubectl(&[&words[..], &bound].concat())?;
    let token = token.trim();

    let identity = format!("spiffe://cluster.local/ns/{name}/sa/default");
    let refused = controller.certify(token, &identity)?.err();
    ensure!(
        refused.as_ref().map(|status| status.code()) == Some(Code::Unimplemented),
        "{refused:?}"
    );

    let uid = |pod: &str| -> Result<String> {
        let pod = namespace.get(&["pod", pod])?;
        Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    };
    let holds = |uids: &[String]| {
        let held = |uid: &String| CapturedPod {
            namespace: name.to_owned(),
            name: "cart".to_owned(),
            pod_uid: uid.clone(),
            addresses: Vec::new(),
        };
        let report = NodeReport {
            node: node.clone(),
            pods: uids.iter().map(held).collect(),
            ..NodeReport::default()
        };
        controller.report(token, report)
    };
    let says = |captured: bool| {
        eventually(&format!("the pod's object says {captured}"), || {
            let pod = namespace.get(&["pod", "cart"])?;
            let said = &pod["metadata"]["annotations"]["ambient.istio.io/redirection"];
            ensure!((said == "enabled") == captured, "{said}");
            Ok(())
        })
    };
    let first = uid("cart")?;
    holds(std::slice::from_ref(&first))?;
    says(true)?;
    // Somebody takes it away: it is what the node says.
    let annotation = "ambient.istio.io/redirection";
    namespace.kubectl(&["annotate", "pod", "cart", &format!("{annotation}-")])?;
    says(true)?;
    holds(&[])?;
    says(false)?;
    let pretended = format!("{annotation}=enabled");
    namespace.kubectl(&["annotate", "pod", "cart", &pretended])?;
    says(false)?;
    // Another pod of the name is not the one that the node holds.
    holds(std::slice::from_ref(&first))?;
    says(true)?;
    namespace.kubectl(&[
        "delete",
        "pod",
        "cart",
        "--wait=true",
        "--grace-period=0",
        "--force",
    ])?;
    namespace.apply(&[pod("cart", Some(&node), "sleep 1000")])?;
    eventually("it is another", || {
        ensure!(uid("cart")? != first);
        Ok(())
    })?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    says(false)
}
