//! Synthetic clusters as folders of manifests.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Pods, in namespaces of 500, on nodes of 100, each behind one service.
    pub pods: usize,
    /// Services.
    pub services: usize,
    /// Authorization policies.
    pub policies: usize,
}

impl Cluster {
    /// How many addresses agents learn: workloads and services.
    #[must_use]
    pub fn addresses(&self) -> usize {
        // One more pod is the one that changes.
        self.pods + 1 + self.services
    }

    fn namespaces(&self) -> usize {
        self.pods.div_ceil(NAMESPACE_PODS).max(1)
    }

    /// The namespace that holds a service and its pods.
    fn namespace_of_service(&self, service: usize) -> usize {
        service % self.namespaces()
    }
}

/// The name of a node; node 0 has no pods.
#[must_use]
pub fn node(number: usize) -> String {
    format!("node-{number}")
}

/// The token of a node's agent.
#[must_use]
pub fn token(node: &str) -> String {
    format!("token-of-{node}")
}

/// Writes the cluster into an empty folder.
///
/// # Errors
/// The folder cannot be written.
pub fn write(cluster: &Cluster, folder: &Path) -> Result<()> {
    let put = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))
    };
    let mut text = String::new();
    for number in 0..cluster.namespaces() {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{number}, labels: {{keelson.io/mesh: enabled}}}}\n"
        );
    }
    put("namespaces.yaml", &text)?;
    put("services.yaml", &services(cluster))?;
    put("policies.yaml", &policies(cluster))?;
    for (file, first) in (0..cluster.pods).step_by(FILE_PODS).enumerate() {
        let last = (first + FILE_PODS).min(cluster.pods);
        let text: String = (first..last).map(|pod| manifest(cluster, pod)).collect();
        put(&format!("pods-{file:04}.yaml"), &text)?;
    }
    put(CHANGING, &changing(0))
}

/// The pod that changes, in one of its versions.
#[must_use]
pub fn changing(version: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {CHANGING_POD}\n  namespace: ns-0\n  uid: uid-{CHANGING_POD}\n  \
         labels: {{app: changing, service.istio.io/canonical-revision: r{version}}}\n  \
         annotations: {{keelson.io/pod-ips: \"10.255.255.1\"}}\n\
         spec: {{nodeName: node-1, serviceAccountName: changing, containers: [{{name: app, image: app}}]}}\n\
         status: {{phase: Running}}\n"
    )
}

fn manifest(cluster: &Cluster, pod: usize) -> String {
    let service = pod % cluster.services.max(1);
    let namespace = cluster.namespace_of_service(service);
    let node = node(1 + pod / NODE_PODS);
    let ip = format!("10.{}.{}.{}", 1 + (pod >> 16), (pod >> 8) & 255, pod & 255);
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: svc-{service}-{pod:05}\n  namespace: ns-{namespace}\n  \
         uid: uid-{pod:05}\n  labels: {{app: svc-{service}, version: v1, pod-template-hash: \"5d4f8c7b9\"}}\n  \
         annotations: {{keelson.io/pod-ips: \"{ip}\"}}\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: svc-{service}\n  \
         containers: [{{name: app, image: app, ports: [{{name: http, containerPort: 8080}}]}}]\n\
         status: {{phase: Running, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

fn services(cluster: &Cluster) -> String {
    let mut text = String::new();
    for service in 0..cluster.services {
        let namespace = cluster.namespace_of_service(service);
        let ip = format!("172.20.{}.{}", service >> 8, service & 255);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: svc-{service}, namespace: ns-{namespace}}}\n\
             spec:\n  clusterIP: {ip}\n  clusterIPs: [{ip}]\n  selector: {{app: svc-{service}}}\n  \
             ports: [{{name: http, port: 80, targetPort: http}}]\n"
        );
    }
    text
}

/// As people write them: who may call a service, by service account.
fn policies(cluster: &Cluster) -> String {
    let mut text = String::new();
    for policy in 0..cluster.policies {
        let service = policy % cluster.services.max(1);
        let namespace = cluster.namespace_of_service(service);
        let caller = (service + 1) % cluster.services.max(1);
        let callers = cluster.namespace_of_service(caller);
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: allow-{policy}, namespace: ns-{namespace}}}\nspec:\n  \
             selector: {{matchLabels: {{app: svc-{service}}}}}\n  action: ALLOW\n  rules:\n  \
             - from: [{{source: {{principals: [cluster.local/ns/ns-{callers}/sa/svc-{caller}]}}}}]\n    \
             to: [{{operation: {{ports: [\"8080\"]}}}}]\n"
        );
    }
    text
}

/// The file of the pod that changes.
pub const CHANGING: &str = "changing.yaml";
/// The name of the pod that changes.
pub const CHANGING_POD: &str = "the-one-that-changes";
const NAMESPACE_PODS: usize = 500;
const NODE_PODS: usize = 100;
const FILE_PODS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_service_and_policy_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster {
            pods: 1234,
            services: 7,
            policies: 9,
        };
        write(&cluster, folder.path()).unwrap();
        let mut all = String::new();
        for entry in fs::read_dir(folder.path()).unwrap() {
            all += &fs::read_to_string(entry.unwrap().path()).unwrap();
        }
        let count = |kind: &str| all.matches(&format!("kind: {kind}\n")).count();
        assert_eq!(count("Pod"), 1235);
        assert_eq!(count("Pod") + count("Service"), cluster.addresses());
        assert_eq!(count("AuthorizationPolicy"), 9);
        assert_eq!(count("Namespace"), 3);
        let mut ips: Vec<&str> = all
            .split("pod-ips: \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        ips.sort_unstable();
        ips.dedup();
        assert_eq!(ips.len(), 1235, "addresses are not shared");
    }
}
