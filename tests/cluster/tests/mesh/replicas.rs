//! Two controllers, and what they answer to the API server.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, eventually, get, kubectl, nodes, pod};

use crate::installed::{CONTROLLER, Installed, NAMESPACE};
use crate::pair::{Kept, Pair};

/// The pods of the controller that are ready, by name, with their nodes.
fn controllers() -> Result<Vec<(String, String)>> {
    let label = format!("app.kubernetes.io/name={CONTROLLER}");
    let pods = get(&["pods", "-n", NAMESPACE, "-l", &label])?;
    let items = pods["items"].as_array().context("a list of pods")?;
    let ready = items.iter().filter(|pod| {
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(ready
        .map(|pod| {
            (
                text(&pod["metadata"]["name"]),
                text(&pod["spec"]["nodeName"]),
            )
        })
        .collect())
}

/// Who writes statuses.
fn holder() -> Result<String> {
    let lease = get(&["lease", "-n", NAMESPACE, CONTROLLER])?;
    let holder = lease["spec"]["holderIdentity"].as_str();
    Ok(holder.context("somebody")?.to_owned())
}

/// Whether a policy says that it is accepted and in effect; with its words about the nodes.
fn is_in_effect(namespace: &Namespace, policy: &str) -> Result<String> {
    let policy = namespace.get(&["authorizationpolicy", policy])?;
    let conditions = policy["status"]["conditions"].as_array().cloned();
    let conditions = conditions.unwrap_or_default();
    ensure!(
        conditions.len() == 2 && conditions.iter().all(|one| one["status"] == "True"),
        "{policy}"
    );
    let message = conditions[1]["message"].as_str().unwrap_or_default();
    Ok(message.to_owned())
}

/// F136, P54: each serves, and the mesh goes on changing while one of them is gone.
#[test]
#[ignore = "nightly"]
fn a_controller_that_is_killed_fails_no_request_and_the_other_goes_on() -> Result<()> {
    let mesh = Installed::install()?;
    let both = controllers()?;
    let on: BTreeSet<&String> = both.iter().map(|(_, node)| node).collect();
    ensure!(
        both.len() == 2 && on.len() == nodes()?.len().min(2),
        "{both:?}"
    );
    let budget = get(&["pdb", "-n", NAMESPACE, CONTROLLER])?;
    ensure!(budget["status"]["disruptionsAllowed"] == 1, "{budget}");
    let pair = Pair::create(&mesh, "replicas")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let namespace = &pair.namespace;
    pair.keep_asking()?;
    for (name, _) in &both {
        let words = [
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            name,
            "--grace-period=0",
            "--force",
        ];
        kubectl(&words)?;
        pair.until_readable(false)?;
        // What is told by one is told by the other: a pod that is captured now is captured for all nodes.
        namespace.kubectl(&[
            "label",
            "pod",
            "server",
            "--overwrite",
            "keelson.io/mesh=disabled",
        ])?;
        // Tunnels that are being closed are seen beside that for a while.
        eventually("it is let go for all nodes", || {
            ensure!(pair.is_readable()?);
            Ok(())
        })?;
        namespace.kubectl(&[
            "label",
            "pod",
            "server",
            "--overwrite",
            "keelson.io/mesh=enabled",
        ])?;
        pair.until_readable(false)?;
        // Whoever wrote statuses: somebody does.
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("after-{name}")}, "spec": {"rules": [{}]},
        });
        eventually("a replica answers to the API server", || {
            namespace.apply(std::slice::from_ref(&policy))
        })?;
        eventually("its status is written", || {
            is_in_effect(namespace, &format!("after-{name}"))
        })?;
        let holder = holder()?;
        ensure!(holder != *name, "who was killed holds the Lease");
        eventually("there are two again", || {
            let now = controllers()?;
            ensure!(now.len() == 2, "{now:?}");
            Ok(())
        })?;
    }
    pair.stop_asking("controllers were killed", Kept::GoesOn)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    // What nodes hold is kept for both of them.
    let kept = get(&[
        "configmaps",
        "-n",
        NAMESPACE,
        "-l",
        "keelson.io/kept=captured-pods",
    ])?;
    ensure!(
        kept["items"].as_array().map(Vec::len) == Some(nodes()?.len()),
        "{kept}"
    );
    Ok(())
}

/// F126, P15: by real kubectl.
#[test]
#[ignore = "nightly"]
fn a_misspelt_field_is_refused_and_an_outage_of_ours_blocks_policies_alone() -> Result<()> {
    let mesh = Installed::install()?;
    let namespace = Namespace::create("admission")?;
    let policy = |name: &str, rules: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name}, "spec": {"rules": rules},
        })
    };
    let good = json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]);
    eventually("a good policy is taken", || {
        namespace.apply(&[policy("good", good.clone())])
    })?;
    let refused = |object: Value| match namespace.apply(&[object]) {
        Ok(()) => bail!("it was taken"),
        Err(error) => Ok(format!("{error:#}")),
    };
    let said = refused(policy("bad", json!([{"form": []}])))?;
    ensure!(
        said.contains("policies.keelson.io")
            && said.contains("spec.rules[0]")
            && said.contains("did you mean spec.rules[0].from"),
        "{said}"
    );
    eventually("in effect on all nodes", || {
        is_in_effect(&namespace, "good")
    })?;

    // An upgrade contends for nothing that the controllers have written.
    mesh.apply()?;
    namespace.apply(&[policy("good", json!([{}]))])?;

    let deployment = format!("deployment/{CONTROLLER}");
    kubectl(&["-n", NAMESPACE, "scale", &deployment, "--replicas=0"])?;
    eventually("nobody answers", || {
        let left = controllers()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let said = refused(policy("other", good))?;
    ensure!(said.contains("policies.keelson.io"), "{said}");
    namespace.kubectl(&["delete", "authorizationpolicy", "good"])?;
    let mut plain = pod("plain", None, "sleep 1000");
    plain["metadata"]["annotations"] = json!({"keelson.io/weight": "2"});
    let template = json!({"metadata": plain["metadata"], "spec": plain["spec"]});
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "plain"},
        "spec": {"selector": {"matchLabels": {"app": "plain"}}, "template": template},
    });
    deployment["spec"]["template"]["metadata"]
        .as_object_mut()
        .context("metadata")?
        .remove("name");
    namespace.apply(&[deployment])?;
    namespace
        .kubectl(&["rollout", "status", "deployment/plain", "--timeout=120s"])
        .map(drop)
}
