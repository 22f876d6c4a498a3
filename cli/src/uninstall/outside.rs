//! What controllers have made outside of their namespace: pods and all else of Gateways, classes of Gateways, and the taint
//! that they take off nodes.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt as _;
use kube::api::{Api as Of, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::api::{Api, Deed};
use crate::install::kinds::{Kind, MADE};

/// All objects, in the order in which they are to be removed.
pub(super) fn objects(api: &Api) -> Result<Vec<(Kind, DynamicObject)>> {
    let mut all = Vec::new();
    for kind in MADE {
        let made = ListParams::default().labels(BY_CONTROLLERS);
        let which = match kind.name {
            "GatewayClass" => ListParams::default(),
            "Gateway" => ListParams::default().labels(AUTO),
            _ => made,
        };
        let deed = Deed::new("list", kind.resource());
        // A cluster may not have the Gateway API.
        let found = api.find(&deed, kind.everywhere(&api.client).list(&which))?;
        let found = found.into_iter().flat_map(|list| list.items);
        let ours = found.filter(|object| is_ours(kind, object));
        all.extend(ours.map(|object| (kind, object)));
    }
    Ok(all)
}

/// Whether an object that was found by its labels was made by a controller.
fn is_ours(kind: Kind, object: &DynamicObject) -> bool {
    match kind.name {
        "GatewayClass" => object.data["spec"]["controllerName"] == CONTROLLER_NAME,
        // Of this name there is one, and nobody else gives it that label.
        "Gateway" => object.name_any() == AUTO_NAME,
        "NetworkPolicy" => object.name_any().starts_with(COMPANION),
        _ => {
            let owners = object.owner_references();
            owners.iter().any(|owner| owner.kind == "Gateway")
        }
    }
}

/// How an object is called.
pub(super) fn name(kind: Kind, object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{} {namespace}/{}", kind.name, object.name_any()),
        None => format!("{} {}", kind.name, object.name_any()),
    }
}

/// The nodes that wait for an agent which does not come any more.
pub(super) fn tainted(api: &Api) -> Result<Vec<Node>> {
    let all: Of<Node> = Of::all(api.client.clone());
    let found = api.call(
        &Deed::new("list", "nodes"),
        all.list(&ListParams::default()),
    )?;
    let nodes = found.items.into_iter();
    Ok(nodes.filter(|node| rest(node).is_some()).collect())
}

/// Takes the taint off a node, unless somebody has written it meanwhile: then it is left.
pub(super) fn free(api: &Api, node: &Node) -> Result<()> {
    let Some(rest) = rest(node) else {
        return Ok(());
    };
    let all: Of<Node> = Of::all(api.client.clone());
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": rest},
    }));
    let params = PatchParams::default();
    let name = node.name_any();
    let done = all.patch(&name, &params, &patch);
    api.find(&Deed::new("patch", "nodes"), done).map(drop)
}

/// The other taints of a node that has ours.
fn rest(node: &Node) -> Option<Vec<&Taint>> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let rest: Vec<&Taint> = taints.iter().filter(|one| one.key != TAINT).collect();
    (rest.len() < taints.len()).then_some(rest)
}

/// The label of what controllers make for Gateways.
const BY_CONTROLLERS: &str = "app.kubernetes.io/managed-by=keelson-controller";
/// The label of Gateways that controllers make themselves, and their name.
const AUTO: &str = "keelson.io/l7=auto";
const AUTO_NAME: &str = "keelson-l7";
/// How the companions of NetworkPolicy objects are called.
const COMPANION: &str = "keelson-tunnels-";
/// Whose our GatewayClasses are.
const CONTROLLER_NAME: &str = "keelson.io/gateway-controller";
/// What keeps pods from nodes whose agent is not ready.
pub(super) const TAINT: &str = "keelson.io/agent-not-ready";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(content: Value) -> DynamicObject {
        serde_json::from_value(content).expect("an object")
    }

    fn of(name: &str) -> Kind {
        MADE.into_iter()
            .find(|kind| kind.name == name)
            .expect("a kind")
    }

    #[test]
    fn what_was_made_for_a_gateway_is_ours_and_nothing_else() {
        let owned = |kind: &str| {
            object(
                json!({"metadata": {"name": "wp", "namespace": "shop", "ownerReferences": [
                    {"apiVersion": "v1", "kind": kind, "name": "wp", "uid": "u"},
                ]}}),
            )
        };
        assert!(is_ours(of("Deployment"), &owned("Gateway")));
        assert!(!is_ours(of("Deployment"), &owned("Application")));
        assert!(!is_ours(
            of("Service"),
            &object(json!({"metadata": {"name": "wp"}}))
        ));
        let class = |controller: &str| {
            object(json!({"metadata": {"name": "c"}, "spec": {"controllerName": controller}}))
        };
        assert!(is_ours(
            of("GatewayClass"),
            &class("keelson.io/gateway-controller")
        ));
        assert!(!is_ours(
            of("GatewayClass"),
            &class("istio.io/mesh-controller")
        ));
        let gateway = |name: &str| object(json!({"metadata": {"name": name, "namespace": "shop"}}));
        assert!(is_ours(of("Gateway"), &gateway("keelson-l7")));
        assert!(
            !is_ours(of("Gateway"), &gateway("mine")),
            "its author keeps it"
        );
        let policy = |name: &str| object(json!({"metadata": {"name": name, "namespace": "shop"}}));
        assert!(is_ours(of("NetworkPolicy"), &policy("keelson-tunnels-u")));
        assert!(!is_ours(of("NetworkPolicy"), &policy("tunnels")));
        assert_eq!(name(of("Gateway"), &gateway("mine")), "Gateway shop/mine");
        assert_eq!(name(of("GatewayClass"), &class("x")), "GatewayClass c");
    }

    #[test]
    fn a_node_keeps_the_taints_of_others() {
        let node = |keys: &[&str]| -> Node {
            let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
            let taints: Vec<Value> = keys.iter().map(taint).collect();
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}}))
                .expect("a node")
        };
        let keys = |node: &Node| {
            let rest = rest(node)?;
            Some(rest.iter().map(|one| one.key.clone()).collect::<Vec<_>>())
        };
        assert_eq!(keys(&node(&[TAINT, "gpu"])), Some(vec!["gpu".to_owned()]));
        assert_eq!(keys(&node(&[TAINT])), Some(Vec::new()));
        assert_eq!(keys(&node(&["gpu"])), None);
        assert_eq!(keys(&node(&[])), None);
    }
}
