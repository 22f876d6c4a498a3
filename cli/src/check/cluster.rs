//! A cluster before anything is installed: what the API server says of its nodes, of the caller's rights, and of others
//! that work in the same places.

use anyhow::Result;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::ResourceExt as _;
use kube::api::{Api as Of, ListParams};
use serde_json::Value;

use super::{Finding, NEEDED, rights, version};
use crate::api::{Api, Deed};
use crate::install::kinds::Kind;

/// Looks at everything, and goes on where something may not be looked at.
pub(super) fn before(api: &Api, namespace: &str, given: &[Value]) -> Result<Vec<Finding>> {
    let mut findings = vec![server(api)?];
    findings.push(rights::finding(api, namespace, given)?);
    let mut add = |what: &str, found: Result<Vec<Finding>>| match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::bad(what, format!("not known: {error:#}"))),
    };
    add("nodes", nodes(api));
    add("others", others(api));
    add("namespace", level(api, namespace));
    add("kinds", kinds(api));
    Ok(findings)
}

fn server(api: &Api) -> Result<Finding> {
    let deed = Deed::new("get", "the API server's version");
    let info = api.call(&deed, api.client.apiserver_version())?;
    let said = format!("Kubernetes {} at {}", info.git_version, api.server());
    let release = version(info.git_version.trim_start_matches('v'));
    Ok(if release.is_some_and(|release| release >= KUBERNETES) {
        Finding::good("API server", said)
    } else {
        let (major, minor) = KUBERNETES;
        Finding::bad(
            "API server",
            format!("{said}; {major}.{minor} or newer is needed"),
        )
    })
}

/// What each node says of itself. That a kernel takes the programs shows when an agent starts.
fn nodes(api: &Api) -> Result<Vec<Finding>> {
    let all: Of<Node> = Of::all(api.client.clone());
    let deed = Deed::new("list", "nodes");
    let nodes = api.call(&deed, all.list(&ListParams::default()))?;
    Ok(nodes.iter().map(node).collect())
}

fn node(node: &Node) -> Finding {
    let what = format!("node {}", node.name_any());
    let status = node.status.as_ref();
    let Some(info) = status.and_then(|status| status.node_info.as_ref()) else {
        return Finding::bad(&what, "says nothing of itself".to_owned());
    };
    let said = format!(
        "{} {}, {}, {}",
        info.operating_system, info.kernel_version, info.os_image, info.container_runtime_version
    );
    let is_virtual = node
        .labels()
        .get("type")
        .is_some_and(|kind| kind == "virtual-kubelet");
    if is_virtual {
        return Finding::bad(
            &what,
            format!("{said}: is none of its own (virtual-kubelet), so no agent can run there"),
        );
    }
    if info.operating_system != "linux" {
        // The chart's own selector leaves them out.
        return Finding::good(&what, format!("{said}: is left out"));
    }
    match version(&info.kernel_version) {
        Some(release) if release >= NEEDED => Finding::good(&what, said),
        _ => Finding::bad(
            &what,
            format!(
                "{said}: too old; an agent needs Linux {}.{} or newer",
                NEEDED.0, NEEDED.1
            ),
        ),
    }
}

/// Programs that are known to work in the same places.
fn others(api: &Api) -> Result<Vec<Finding>> {
    let all: Of<DaemonSet> = Of::all(api.client.clone());
    let deed = Deed::new("list", "daemonsets.apps");
    let sets = api.call(&deed, all.list(&ListParams::default()))?;
    let mut findings = Vec::new();
    for set in &sets {
        let name = set.name_any();
        let namespace = set.namespace().unwrap_or_default();
        if let Some((_, is_good, said)) = KNOWN.iter().find(|(known, ..)| *known == name) {
            findings.push(Finding {
                what: format!("others: {namespace}/{name}"),
                good: *is_good,
                said: (*said).to_owned(),
            });
        }
    }
    Ok(findings)
}

/// Whether the namespace lets agents in.
fn level(api: &Api, namespace: &str) -> Result<Vec<Finding>> {
    let all: Of<Namespace> = Of::all(api.client.clone());
    let found = api.find(&Deed::new("get", "namespaces"), all.get(namespace))?;
    let what = format!("namespace {namespace}");
    let Some(found) = found else {
        let said = "is not there; keelson install makes it".to_owned();
        return Ok(vec![Finding::good(&what, said)]);
    };
    let level = found.labels().get("pod-security.kubernetes.io/enforce");
    Ok(vec![match level {
        Some(level) if level != "privileged" => Finding::bad(
            &what,
            format!(
                "pod-security.kubernetes.io/enforce={level} keeps agents away; it must be privileged"
            ),
        ),
        _ => Finding::good(&what, "is there, and lets agents in".to_owned()),
    }])
}

/// Whether policies can be said.
fn kinds(api: &Api) -> Result<Vec<Finding>> {
    let Some(kind) = Kind::named("CustomResourceDefinition") else {
        return Ok(Vec::new());
    };
    let mut missing = Vec::new();
    for object in chart::istio_crds()? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let all = kind.api(&api.client, "");
        if api
            .find(&Deed::new("get", kind.resource()), all.get(name))?
            .is_none()
        {
            missing.push(name.to_owned());
        }
    }
    let said = if missing.is_empty() {
        "those of policies and of Istio's traffic objects are there".to_owned()
    } else {
        format!(
            "{}: not there; keelson install --crds makes them, and without them nothing of these kinds can be written",
            missing.join(", ")
        )
    };
    Ok(vec![Finding::good("kinds", said)])
}

/// DaemonSets by name: whether both can be on a node, and what is worth knowing.
const KNOWN: [(&str, bool, &str); 9] = [
    (
        "istio-cni-node",
        false,
        "Istio's CNI plugin puts pods into Istio's mesh: set mesh.ambientLabel=istio, and its label leaves pods to it",
    ),
    (
        "ztunnel",
        false,
        "Istio's ambient mesh carries the pods that its label names: set mesh.ambientLabel=istio, and they are its alone",
    ),
    (
        "cilium",
        true,
        "the CNI; where it replaces kube-proxy, services are translated in its connect hook, which has not been tried with this mesh",
    ),
    ("calico-node", true, "the CNI"),
    ("aws-node", true, "the CNI"),
    ("kube-flannel-ds", true, "the CNI"),
    ("kindnet", true, "the CNI"),
    (
        "kube-router",
        true,
        "the CNI, or the enforcer of NetworkPolicies",
    ),
    (
        "multus",
        true,
        "the CNI's list may begin with Multus: set cni.confDir to where the runtime looks",
    ),
];

/// The oldest that the chart names too.
const KUBERNETES: (u32, u32) = (1, 30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_cannot_be_served_is_named_before_anything_is_installed() {
        let said = |os: &str, kernel: &str, labels: Value| {
            let object = json!({
                "metadata": {"name": "n1", "labels": labels},
                "status": {"nodeInfo": {
                    "operatingSystem": os, "kernelVersion": kernel, "osImage": "Debian",
                    "containerRuntimeVersion": "containerd://2.1", "architecture": "amd64", "bootID": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "systemUUID": "",
                }},
            });
            let finding = node(&serde_json::from_value(object).expect("a node"));
            (finding.good, finding.said)
        };
        assert!(said("linux", "6.12.3-cloud", json!({})).0);
        assert!(said("windows", "10.0.20348", json!({})).0);
        let (good, old) = said("linux", "5.15.0-100", json!({}));
        assert!(!good && old.contains("6.1"), "{old}");
        let (good, none) = said("linux", "6.12.0", json!({"type": "virtual-kubelet"}));
        assert!(!good && none.contains("virtual-kubelet"), "{none}");
    }
}
