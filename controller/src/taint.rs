//! Takes the startup taint off nodes whose agent is ready: until then nothing starts on a new node that could miss its capture.
//!
//! Whoever makes nodes puts the taint on them. It is never put back: an agent that goes later leaves its pods captured, and
//! the CNI plugin holds new ones back. Every replica does this: who comes second finds the taint gone.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use crate::source::kubernetes::patient;

/// Does so for ever, for the installation in `namespace`.
pub(crate) async fn take_off(client: Client, namespace: String) {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let of_agents = watcher::Config::default().labels(AGENTS);
    let mut of_nodes = pin!(patient(watcher(nodes.clone(), watcher::Config::default())));
    let mut of_agents = pin!(patient(watcher(pods, of_agents)));
    let mut known = Known::default();
    loop {
        let heard = tokio::select! {
            Some(event) = of_nodes.next() => event.map(|event| known.node(event)),
            Some(event) = of_agents.next() => event.map(|event| known.agent(event)),
            // What could not be done is tried again.
            () = tokio::time::sleep(AGAIN) => Ok(()),
        };
        if let Err(error) = heard {
            warn!(%error, "cannot follow nodes and agents; startup taints stay");
            continue;
        }
        for (node, rest) in known.to_be_freed() {
            match free(&nodes, &node, &rest).await {
                Ok(()) => {
                    info!(node, "its agent is ready: the startup taint is taken off");
                    known.tainted.remove(&node);
                }
                // It was written meanwhile, and is read again.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => warn!(
                    node,
                    %error,
                    "cannot take the startup taint off; trying again"
                ),
            }
        }
    }
}

/// Writes what taints stay, with the revision that was read: the list has no keys, and is replaced as a whole.
async fn free(nodes: &Api<Node>, node: &str, rest: &Rest) -> kube::Result<()> {
    let patch = json!({
        "metadata": {"resourceVersion": rest.revision},
        "spec": {"taints": rest.taints},
    });
    let params = PatchParams::default();
    match nodes.patch(node, &params, &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// What stays of a node's taints, and the revision of the node that this was read of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rest {
    revision: Option<String>,
    taints: Vec<Taint>,
}

/// Nodes with the taint, and agents.
#[derive(Debug, Default)]
struct Known {
    tainted: BTreeMap<String, Rest>,
    /// By the name of each agent's pod that is ready its node.
    ready: BTreeMap<String, String>,
}

impl Known {
    fn node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.tainted.clear(),
            Event::Apply(node) | Event::InitApply(node) => {
                let name = node.name_any();
                let revision = node.resource_version();
                let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
                let (ours, taints): (Vec<_>, Vec<_>) =
                    taints.into_iter().partition(|taint| taint.key == TAINT);
                if ours.is_empty() {
                    self.tainted.remove(&name);
                } else {
                    self.tainted.insert(name, Rest { revision, taints });
                }
            }
            Event::Delete(node) => drop(self.tainted.remove(&node.name_any())),
            Event::InitDone => {}
        }
    }

    fn agent(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.ready.clear(),
            Event::Apply(pod) | Event::InitApply(pod) => {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                match node.filter(|_| is_ready(&pod)) {
                    Some(node) => drop(self.ready.insert(pod.name_any(), node)),
                    None => drop(self.ready.remove(&pod.name_any())),
                }
            }
            Event::Delete(pod) => drop(self.ready.remove(&pod.name_any())),
            Event::InitDone => {}
        }
    }

    fn to_be_freed(&self) -> Vec<(String, Rest)> {
        let nodes: BTreeSet<&String> = self.ready.values().collect();
        let tainted = self.tainted.iter();
        let freed = tainted.filter(|(node, _)| nodes.contains(node));
        freed
            .map(|(node, rest)| (node.clone(), rest.clone()))
            .collect()
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|one| one.type_ == "Ready" && one.status == "True");
    ready.next().is_some() && pod.metadata.deletion_timestamp.is_none()
}

/// The taint's key; its effect is for whoever makes nodes to say.
const TAINT: &str = "keelson.io/agent-not-ready";
const AGAIN: Duration = Duration::from_secs(5);
const AGENTS: &str = "app.kubernetes.io/name=keelson-node-agent";

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, taint: Option<&str>) -> Node {
        let other = json!({"key": "stays", "effect": "NoExecute"});
        let taints = taint.map(|key| json!([{"key": key, "effect": "NoSchedule"}, other]));
        let node =
            json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"taints": taints}});
        serde_json::from_value(node).expect("a node")
    }

    fn agent(name: &str, node: &str, ready: &str) -> Pod {
        let pod = json!({
            "metadata": {"name": name}, "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_node_is_freed_of_our_taint_when_its_own_agent_is_ready() {
        let mut known = Known::default();
        known.node(Event::Apply(node("n1", Some(TAINT))));
        known.node(Event::Apply(node("n2", Some(TAINT))));
        known.node(Event::Apply(node("n3", Some("another"))));
        known.agent(Event::Apply(agent("a", "n1", "False")));
        known.agent(Event::Apply(agent("c", "n3", "True")));
        assert!(known.to_be_freed().is_empty());
        known.agent(Event::Apply(agent("a", "n1", "True")));
        let freed = known.to_be_freed();
        assert_eq!(freed.len(), 1);
        let (name, rest) = &freed[0];
        assert_eq!((&**name, rest.revision.as_deref()), ("n1", Some("7")));
        let keys: Vec<&str> = rest.taints.iter().map(|taint| &*taint.key).collect();
        assert_eq!(keys, ["stays"]);
        known.agent(Event::Apply(agent("a", "n1", "False")));
        assert!(known.to_be_freed().is_empty());
        known.agent(Event::Apply(agent("b", "n2", "True")));
        known.node(Event::Apply(node("n2", None)));
        assert!(known.to_be_freed().is_empty(), "it is free already");
    }

    #[test]
    fn a_list_that_is_made_anew_takes_back_what_it_does_not_hold() {
        let mut known = Known::default();
        known.node(Event::Apply(node("n1", Some(TAINT))));
        known.agent(Event::Apply(agent("a", "n1", "True")));
        known.agent(Event::Init);
        known.agent(Event::InitDone);
        assert!(known.to_be_freed().is_empty());
        known.agent(Event::InitApply(agent("a", "n1", "True")));
        known.node(Event::Init);
        assert!(known.to_be_freed().is_empty());
    }
}
