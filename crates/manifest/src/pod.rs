//! What is kept of a `Pod`: they are many.

mod probe;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_api::{OwnerReference, Pod};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde::{Deserialize, Serialize};

use crate::object::{Authorship, Labels, NamespacedName};

/// What the mesh needs to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// The Kubernetes UID, empty when the manifest has none.
    pub uid: String,
    /// Of a static pod the UID that its kubelet has given it, and not the API server: its node, its runtime and its cgroups
    /// know it by that one (<https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>).
    #[serde(default)]
    pub static_uid: Option<Box<str>>,
    /// All labels.
    pub labels: Labels,
    /// The annotations that decide enrolment, the weight, and the mark of another
    /// mesh's node agent.
    pub annotations: Labels,
    /// The node it runs on, empty before it is scheduled.
    pub node: Arc<str>,
    /// Its service account, `default` when it names none.
    pub service_account: Arc<str>,
    /// Its addresses, empty before it has any.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Whether it ended, well or not.
    pub finished: bool,
    /// Whether it is being deleted: its containers may go on for as long as they are given.
    #[serde(default)]
    pub terminating: bool,
    /// Its `Ready` condition, when somebody reports one.
    pub ready: Option<bool>,
    /// What made it.
    pub owner: (OwnerType, String),
    /// The named TCP ports of its containers, and of init containers that go on running.
    pub ports: Vec<ContainerPort>,
    /// The ports that its node's kubelet calls, as its own probes and lifecycle hooks say.
    #[serde(default)]
    pub probe_ports: Vec<u16>,
}

/// A named TCP port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// The name that a Service's `targetPort` may use.
    pub name: String,
    /// The port.
    pub port: u16,
}

/// What made a pod, as far as the workload API tells kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerType {
    /// A Deployment, through a ReplicaSet.
    Deployment,
    /// A CronJob, through a Job.
    CronJob,
    /// A Job.
    Job,
    /// Anything else, or nothing.
    Pod,
}

impl PodFacts {
    /// Reads a pod as `authorship` allows.
    pub fn read(pod: &Pod, authorship: Authorship) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().filter(|_| authorship.has_status());
        let status = status.unwrap_or_default();
        let key = NamespacedName::of(&pod.metadata);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let written = annotations
            .get(POD_IPS)
            .filter(|_| authorship.may_say_addresses())
            .into_iter()
            .flat_map(|list| list.split(','));
        let reported = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .map(|ip| ip.ip);
        let listed = reported
            .chain(status.pod_ip)
            .chain(written.map(|ip| ip.trim().to_owned()));
        let mut addresses: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
        let mut seen = Vec::new();
        addresses.retain(|ip| {
            let new = !seen.contains(ip);
            seen.push(*ip);
            new
        });
        let ready = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.type_ == "Ready");
        let probe_ports = probe::ports(&spec, &addresses);
        let ports = spec
            .containers
            .iter()
            .chain(native_sidecars(&spec))
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(container_port)
            .collect();
        let account = spec
            .service_account_name
            .or(spec.service_account)
            .filter(|name| !name.is_empty());
        Self {
            owner: owner(
                pod.metadata.owner_references.as_deref().unwrap_or_default(),
                &labels,
                &key.name,
            ),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            static_uid: annotations.get(MIRROR).map(|uid| uid.as_str().into()),
            labels,
            annotations: annotations
                .into_iter()
                .filter(|(name, _)| DECIDING.contains(&name.as_str()))
                .collect(),
            node: spec.node_name.unwrap_or_default().into(),
            service_account: account.as_deref().unwrap_or("default").into(),
            host_network: spec.host_network.unwrap_or_default(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            ready: ready.map(|condition| condition.status == "True"),
            probe_ports,
            addresses,
            ports,
            key,
        }
    }
}

impl PodFacts {
    /// The UID by which the pod's node knows it.
    pub fn uid_on_node(&self) -> &str {
        self.static_uid.as_deref().unwrap_or(&self.uid)
    }

    /// Whether Istio's node agent says that it captured the pod.
    pub fn is_redirected(&self) -> bool {
        let says = self.annotations.get(REDIRECTION);
        says.is_some_and(|value| value == "enabled")
    }
}

/// Init containers that go on running, whose ports count like those of containers.
fn native_sidecars(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let containers = spec.init_containers.iter().flatten();
    containers.filter(|container| container.restart_policy.as_deref() == Some("Always"))
}

fn container_port(port: &k8s_openapi::api::core::v1::ContainerPort) -> Option<ContainerPort> {
    let tcp = port
        .protocol
        .as_deref()
        .is_none_or(|protocol| protocol == "TCP");
    let number = u16::try_from(port.container_port).ok()?;
    let name = port.name.clone().filter(|_| tcp)?;
    Some(ContainerPort { name, port: number })
}

/// The owner that people know: the Deployment behind a ReplicaSet, the CronJob behind a Job.
fn owner(references: &[OwnerReference], labels: &Labels, pod: &str) -> (OwnerType, String) {
    let controller = references
        .iter()
        .find(|owner| owner.controller == Some(true))
        .or(references.first());
    let Some(owner) = controller else {
        return (OwnerType::Pod, pod.to_owned());
    };
    match owner.kind.as_str() {
        "ReplicaSet" => match deployment(&owner.name, labels) {
            Some(name) => (OwnerType::Deployment, name.to_owned()),
            None => (OwnerType::Pod, owner.name.clone()),
        },
        "Job" => match cron_job(&owner.name) {
            Some(name) => (OwnerType::CronJob, name.to_owned()),
            None => (OwnerType::Job, owner.name.clone()),
        },
        _ => (OwnerType::Pod, owner.name.clone()),
    }
}

/// Strips the hash that a Deployment appends to the names of its ReplicaSets.
fn deployment<'a>(replica_set: &'a str, labels: &Labels) -> Option<&'a str> {
    let (name, suffix) = replica_set.rsplit_once('-')?;
    match labels.get("pod-template-hash") {
        Some(hash) => (hash == suffix).then_some(name),
        None => (!name.is_empty() && suffix.len() >= 5).then_some(name),
    }
}

/// Strips the scheduled minute that a CronJob appends to the names of its Jobs.
fn cron_job(job: &str) -> Option<&str> {
    let (name, suffix) = job.rsplit_once('-')?;
    let time = (8..=10).contains(&suffix.len()) && suffix.bytes().all(|b| b.is_ascii_digit());
    (time && !name.is_empty()).then_some(name)
}

/// Comma-separated addresses of a pod that no kubelet reports on; see [`Authorship::may_say_addresses`].
pub const POD_IPS: &str = "keelson.io/pod-ips";
/// The pod's share of its Services' connections, beside those of the other endpoints; 1 if it is not said.
pub const WEIGHT: &str = "keelson.io/weight";
/// By which Istio's node agent says that it captured a pod: `enabled`.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// By which the API server's copy of a static pod names the UID that the kubelet has given it.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotations that are kept.
const DECIDING: &[&str] = &[
    WEIGHT,
    "keelson.io/mesh",
    "istio.io/dataplane-mode",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/status",
    REDIRECTION,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server's copy of a static pod has a UID of its own; nodes speak of the pod by the kubelet's.
    #[test]
    fn a_static_pod_goes_by_the_uid_that_its_kubelet_has_given_it() {
        let facts = |annotations: serde_json::Value| {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "of-the-api-server", "annotations": annotations},
                "spec": {"containers": []},
            }))
            .expect("reads");
            PodFacts::read(&pod, Authorship::Tenant)
        };
        let mirror = facts(serde_json::json!({MIRROR: "of-the-kubelet"}));
        assert_eq!(mirror.uid_on_node(), "of-the-kubelet");
        assert_eq!(mirror.uid, "of-the-api-server");
        assert_eq!(
            facts(serde_json::json!({})).uid_on_node(),
            "of-the-api-server"
        );
    }

    /// What a tenant writes on its pod gives it no address but those that its kubelet reports.
    #[test]
    fn a_tenant_cannot_say_which_addresses_its_pod_has() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "annotations": {POD_IPS: "10.0.0.1, fd00::1"}},
            "spec": {"containers": []},
            "status": {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}, {"ip": "fd99::9"}], "phase": "Running"},
        }))
        .expect("reads");
        let addresses = |authorship| PodFacts::read(&pod, authorship).addresses;
        let parse = |list: [&str; 2]| list.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        assert_eq!(
            addresses(Authorship::Tenant),
            parse(["10.9.9.9", "fd99::9"])
        );
        assert_eq!(
            addresses(Authorship::Administrator),
            parse(["10.0.0.1", "fd00::1"])
        );
    }
}
