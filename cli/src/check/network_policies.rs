//! Policies of the cluster's network that keep the mesh's tunnels away from captured pods.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use admin_api::PodState;
use anyhow::Result;
use compile::blocked::{Blocked, blocked};
use compile::store::NetworkPolicyFacts;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api as Of, ListParams};
use manifest::{Authorship, Labels, PodFacts};

use super::Finding;
use crate::api::{Api, Deed};
use crate::reach::{Mesh, Where};

/// Names each of them; in a lab there are none.
pub(super) fn look(mesh: &Mesh, at: &Where) -> Vec<Finding> {
    if at.is_lab() {
        return Vec::new();
    }
    let named = at.api().and_then(|api| named(&api, mesh));
    named.unwrap_or_else(|error| vec![Finding::bad(WHAT, format!("not known: {error:#}"))])
}

fn named(api: &Api, mesh: &Mesh) -> Result<Vec<Finding>> {
    let all: Of<NetworkPolicy> = Of::all(api.client.clone());
    let deed = Deed::new("list", "networkpolicies.networking.k8s.io");
    let policies = api.call(&deed, all.list(&ListParams::default()))?;
    if policies.items.is_empty() {
        return Ok(Vec::new());
    }
    let policies: Vec<_> = policies.iter().map(NetworkPolicyFacts::read).collect();
    let captured = captured(mesh);
    let all: Of<Namespace> = Of::all(api.client.clone());
    let namespaces = api.call(
        &Deed::new("list", "namespaces"),
        all.list(&ListParams::default()),
    )?;
    let of_namespace = |namespace: Namespace| -> (Arc<str>, Labels) {
        (namespace.name_any().into(), namespace.labels().clone())
    };
    let namespaces: HashMap<_, _> = namespaces.into_iter().map(of_namespace).collect();
    let all: Of<Pod> = Of::all(api.client.clone());
    let pods = api.call(&Deed::new("list", "pods"), all.list(&ListParams::default()))?;
    let is_captured = |pod: &PodFacts| captured.contains(pod.uid_on_node());
    let pods: Vec<_> = pods
        .iter()
        .map(|pod| PodFacts::read(pod, Authorship::Tenant))
        .filter(is_captured)
        .collect();
    let found = blocked(&policies, &namespaces, &pods);
    Ok(found.iter().map(finding).collect())
}

/// The pods that agents hold captured, by their UIDs. Who does not answer is complained of already.
fn captured(mesh: &Mesh) -> BTreeSet<String> {
    let dumps = mesh
        .nodes()
        .into_iter()
        .filter_map(|node| mesh.dump(&node).ok());
    let pods = dumps.flat_map(|dump| dump.pods);
    let captured = pods.filter(|pod| pod.state == PodState::Captured);
    captured.map(|pod| pod.uid).collect()
}

fn finding(one: &Blocked) -> Finding {
    let Blocked {
        policy,
        ingress,
        from,
        to,
        port,
    } = one;
    let way = if *ingress { "ingress" } else { "egress" };
    let said = format!(
        "NetworkPolicy {policy} allows {from} to connect to {to} at port {port}, and {way} to port 15008 not, by which it \
         goes in the mesh: allow TCP port 15008 between these pods, and set mesh.networkPolicies=enforce to have the other \
         rules held by the mesh"
    );
    Finding::bad(WHAT, said)
}

const WHAT: &str = "network policies";
