//! Two controllers of one installation.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use proto::agent::{CapturedPod, NodeReport};
use serde_json::{Value, json};
use tests_cluster::{Namespace, SERVER, eventually, get, kubectl, nodes, pod};

use crate::controller::Controller;

/// Istio's kinds of policies as long as a test needs them, where the cluster has none: others' are not written over.
pub(crate) struct PolicyKinds;

/// How many tests need them, and whether they were made for that.
static NEEDED: Mutex<(usize, bool)> = Mutex::new((0, false));

impl PolicyKinds {
    pub(crate) fn define() -> Result<Self> {
        let mut needed = NEEDED.lock().unwrap_or_else(PoisonError::into_inner);
        if needed.0 == 0 {
            needed.1 = kubectl(&["get", "crd", "peerauthentications.security.istio.io"]).is_err();
            if needed.1 {
                kubectl(&["apply", "-f", POLICY_KINDS])?;
            }
        }
        needed.0 += 1;
        Ok(Self)
    }
}

impl Drop for PolicyKinds {
    fn drop(&mut self) {
        let mut needed = NEEDED.lock().unwrap_or_else(PoisonError::into_inner);
        needed.0 -= 1;
        if *needed == (0, true) {
            // A test that fails has its own message.
            drop(kubectl(&["delete", "--timeout=60s", "-f", POLICY_KINDS]));
        }
    }
}

const POLICY_KINDS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../deploy/crds/istio-security.yaml"
);

/// An agent's account, its pod and its token, and a pod of the mesh on its node.
struct Node {
    name: String,
    token: String,
    uid: String,
    ips: Vec<IpAddr>,
}

impl Node {
    fn create(namespace: &Namespace) -> Result<Self> {
        let here = nodes()?.into_iter().next().context("a node")?;
        namespace.kubectl(&["create", "serviceaccount", "agent"])?;
        namespace.kubectl(&[
            "label",
            "namespace",
            namespace.name(),
            "keelson.io/mesh=enabled",
        ])?;
        let mut agent = pod("agent", Some(&here), "sleep 1000");
        agent["spec"]["serviceAccountName"] = json!("agent");
        namespace.apply(&[agent, pod("server", Some(&here), SERVER)])?;
        namespace.wait_ready("agent")?;
        namespace.wait_ready("server")?;
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "agent"];
        let words = [
            &["create", "token", "agent", "--audience", "keelson"],
            &bound[..],
        ]
        .concat();
        let token = namespace.kubectl(&words)?.trim().to_owned();
        let server = namespace.get(&["pod", "server"])?;
        Ok(Self {
            name: here,
            token,
            uid: server["metadata"]["uid"]
                .as_str()
                .context("a uid")?
                .to_owned(),
            ips: namespace.pod_ips("server")?,
        })
    }

    /// What its agent says while it holds the server captured, or nothing.
    fn report(&self, namespace: &str, holds: bool) -> NodeReport {
        let octets = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let server = CapturedPod {
            namespace: namespace.to_owned(),
            name: "server".to_owned(),
            pod_uid: self.uid.clone(),
            addresses: self.ips.iter().map(octets).collect(),
        };
        NodeReport {
            node: self.name.clone(),
            pods: if holds { vec![server] } else { Vec::new() },
            ..NodeReport::default()
        }
    }
}

fn is_tunnelled(controller: &Controller, namespace: &str) -> Result<bool> {
    let workload = controller.workload(namespace, "server")?;
    let workload = workload.context("the pod is served")?;
    Ok(workload["tunnel"] == "Hbone")
}

fn until_tunnelled(controller: &Controller, namespace: &str, wanted: bool) -> Result<()> {
    eventually(&format!("announced as captured: {wanted}"), || {
        let is = is_tunnelled(controller, namespace)?;
        ensure!(is == wanted, "{is}");
        Ok(())
    })
}

/// F136, P54: what is captured is a fact of the cluster and not of the replica that an agent has told.
#[test]
fn a_pod_that_is_reported_to_one_replica_is_announced_by_the_other_also_when_the_first_is_gone()
-> Result<()> {
    let namespace = Namespace::create("replicas")?;
    let name = namespace.name();
    let node = Node::create(&namespace)?;
    let agents = format!("{name}/agent");
    let start = |replica: &str| {
        Controller::start_with(&agents, &["--namespace", name, "--replica", replica])
    };
    let installation = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keelson-installation"},
    });
    namespace.apply(&[installation])?;
    let (first, second) = (start("one")?, start("two")?);
    ensure!(!is_tunnelled(&second, name)?, "nobody has reported yet");

    first.report(&node.token, node.report(name, true))?;
    ensure!(is_tunnelled(&first, name)?, "in effect when it is answered");
    until_tunnelled(&second, name, true)?;
    let kept = namespace.get(&["configmaps", "-l", "keelson.io/kept=captured-pods"])?;
    let owner = &kept["items"][0]["metadata"]["ownerReferences"][0];
    ensure!(owner["name"] == "keelson-installation", "{kept}");
    let lease = eventually("there is a Lease", || {
        namespace.get(&["lease", "keelson-controller"])
    })?;
    let owner = &lease["metadata"]["ownerReferences"][0];
    ensure!(owner["name"] == "keelson-installation", "{lease}");

    // Who starts later knows it from the start.
    drop(first);
    let third = start("three")?;
    ensure!(is_tunnelled(&third, name)?);
    ensure!(is_tunnelled(&second, name)?);

    // And a later word goes to another replica.
    second.report(&node.token, node.report(name, false))?;
    until_tunnelled(&third, name, false)?;
    third.report(&node.token, node.report(name, true))?;
    until_tunnelled(&second, name, true)?;

    // What they have written goes with the installation.
    drop((second, third));
    namespace.kubectl(&["delete", "configmap", "keelson-installation"])?;
    eventually("nothing is left", || {
        let kept = "keelson.io/kept=captured-pods";
        let maps = namespace.kubectl(&["get", "configmaps", "-l", kept, "-o", "name"])?;
        let leases = namespace.kubectl(&["get", "leases", "-o", "name"])?;
        ensure!(
            maps.trim().is_empty() && leases.trim().is_empty(),
            "{maps} {leases}"
        );
        Ok(())
    })
}

/// F127, F136: one of the replicas writes what becomes of a policy, and another goes on when it is gone.
#[test]
#[ignore = "nightly"]
fn policies_say_in_their_status_whether_they_are_accepted_and_who_is_broken_says_why() -> Result<()>
{
    let _kinds = PolicyKinds::define()?;
    let namespace = Namespace::create("status")?;
    let name = namespace.name();
    let start = |replica: &str| {
        Controller::start_with(
            "keelson-system/none",
            &["--namespace", name, "--replica", replica],
        )
    };
    let (first, second) = (start("one")?, start("two")?);
    let policy = |rules: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "guard"}, "spec": {"rules": rules},
        })
    };
    let good = json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]);
    let accepted = |wanted: &str, generation: u64| {
        eventually(&format!("accepted: {wanted}"), || {
            let guard =
                namespace.get(&["authorizationpolicy", "guard", "--show-managed-fields"])?;
            let conditions = guard["status"]["conditions"].as_array();
            let accepted = conditions
                .into_iter()
                .flatten()
                .find(|condition| condition["type"] == "keelson.io/Accepted");
            let accepted = accepted.context("no condition yet")?.clone();
            ensure!(
                accepted["status"] == wanted && accepted["observedGeneration"] == generation,
                "{accepted}"
            );
            Ok((accepted, guard))
        })
    };
    namespace.apply(&[policy(good.clone())])?;
    let (_, guard) = accepted("True", 1)?;
    let managers = guard["metadata"]["managedFields"].as_array().cloned();
    let ours = managers.unwrap_or_default().into_iter().find(|fields| {
        fields["manager"] == "keelson-controller" && fields["subresource"] == "status"
    });
    ensure!(
        ours.is_some_and(|fields| fields["operation"] == "Apply"),
        "by server-side apply: {guard}"
    );

    namespace.apply(&[policy(json!([{"form": []}]))])?;
    let (broken, _) = accepted("False", 2)?;
    let message = broken["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("spec.rules[0]") && message.contains("did you mean spec.rules[0].from"),
        "{message}"
    );
    eventually("an event says it", || {
        let events = namespace.get(&["events", "--field-selector", "involvedObject.name=guard"])?;
        ensure!(
            events
                .to_string()
                .contains("did you mean spec.rules[0].from"),
            "{events}"
        );
        Ok(())
    })?;

    // Whoever holds the Lease goes; the other takes it and writes on.
    let lease = get(&["lease", "-n", name, "keelson-controller"])?;
    let left = match lease["spec"]["holderIdentity"].as_str() {
        Some("one") => {
            drop(first);
            second
        }
        Some("two") => {
            drop(second);
            first
        }
        other => bail!("{other:?} holds the Lease"),
    };
    namespace.apply(&[policy(good)])?;
    accepted("True", 3)?;
    drop(left);
    Ok(())
}
