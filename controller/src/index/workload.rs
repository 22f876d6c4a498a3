//! A pod, or an endpoint without one, as the workload API describes it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proto::agent;
use proto::istio::workload as pb;

use super::MeshConfig;
use super::authorization::octets;
use super::enrolment::Enrolment;
use super::service::app_protocol;
use crate::store::{
    Labels, NamespacedName, OwnerType, PodFacts, ServiceFacts, SliceFacts, TargetPort, WEIGHT,
};

/// What a pod's resource says beyond the pod itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Its traffic enters through a tunnel: it is to be captured, and its node says that it is.
    pub(super) captured: bool,
    pub(super) locality: Option<pb::Locality>,
    /// Ports by resource name of the service.
    pub(super) services: BTreeMap<String, pb::PortList>,
    /// Names of policies, as `namespace/name`.
    pub(super) policies: Vec<String>,
    /// What slices say; `None` when none lists the pod.
    pub(super) ready_in_slices: Option<bool>,
}

/// The name of a pod's resource, as Istio's control plane writes it.
pub fn pod_uid(mesh: &MeshConfig, pod: &NamespacedName) -> String {
    format!("{}//Pod/{}/{}", mesh.cluster_id, pod.namespace, pod.name)
}

/// The name of the resource of an endpoint without a pod.
pub fn endpoint_uid(mesh: &MeshConfig, slice: &NamespacedName, address: IpAddr) -> String {
    format!(
        "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
        mesh.cluster_id, slice.namespace, slice.name
    )
}

/// The resource of a pod; `None` for one that ended or has no address yet.
pub(super) fn from_pod(
    uid: &str,
    pod: &PodFacts,
    mesh: &MeshConfig,
    around: Surroundings,
) -> Option<pb::Workload> {
    if pod.finished || pod.addresses.is_empty() {
        return None;
    }
    let ready = around.ready_in_slices.or(pod.ready).unwrap_or(true);
    let label = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| pod.labels.get(*name))
            .filter(|value| !value.is_empty())
    };
    let (kind, owner) = &pod.owner;
    Some(pb::Workload {
        uid: uid.to_owned(),
        name: pod.key.name.to_string(),
        namespace: pod.key.namespace.to_string(),
        addresses: pod.addresses.iter().map(|ip| octets(*ip)).collect(),
        tunnel_protocol: if around.captured {
            pb::TunnelProtocol::Hbone
        } else {
            pb::TunnelProtocol::None
        }
        .into(),
        trust_domain: unless_default(&mesh.trust_domain, "cluster.local"),
        service_account: unless_default(&pod.service_account, "default"),
        node: pod.node.to_string(),
        canonical_name: label(CANONICAL_NAME)
            .cloned()
            .unwrap_or_else(|| owner.clone()),
        canonical_revision: label(CANONICAL_REVISION)
            .cloned()
            .unwrap_or_else(|| "latest".to_owned()),
        workload_type: workload_type(*kind).into(),
        workload_name: owner.clone(),
        services: around.services,
        authorization_policies: around.policies,
        status: if ready {
            pb::WorkloadStatus::Healthy
        } else {
            pb::WorkloadStatus::Unhealthy
        }
        .into(),
        cluster_id: unless_default(&mesh.cluster_id, "Kubernetes"),
        locality: around.locality,
        network_mode: if pod.host_network {
            pb::NetworkMode::HostNetwork
        } else {
            pb::NetworkMode::Standard
        }
        .into(),
        // What is no number was refused where the manifest was read.
        capacity: pod
            .annotations
            .get(WEIGHT)
            .and_then(|weight| weight.parse().ok())
            .filter(|weight| *weight != 1),
        ..pb::Workload::default()
    })
}

/// The resource of an endpoint that somebody wrote into a slice by hand: an address that may be anyone's.
pub(super) fn from_endpoint(
    uid: &str,
    slice: &SliceFacts,
    address: IpAddr,
    ready: bool,
    mesh: &MeshConfig,
    services: BTreeMap<String, pb::PortList>,
) -> pb::Workload {
    pb::Workload {
        uid: uid.to_owned(),
        name: slice.key.name.to_string(),
        namespace: slice.key.namespace.to_string(),
        addresses: vec![octets(address)],
        trust_domain: unless_default(&mesh.trust_domain, "cluster.local"),
        services,
        status: if ready {
            pb::WorkloadStatus::Healthy
        } else {
            pb::WorkloadStatus::Unhealthy
        }
        .into(),
        cluster_id: unless_default(&mesh.cluster_id, "Kubernetes"),
        network_mode: pb::NetworkMode::HostNetwork.into(),
        ..pb::Workload::default()
    }
}

/// What a node is told of one of its pods.
pub(super) fn node_pod(
    uid: &str,
    pod: &PodFacts,
    mesh: &MeshConfig,
    enrolment: Enrolment,
) -> agent::NodePod {
    agent::NodePod {
        uid: uid.to_owned(),
        namespace: pod.key.namespace.to_string(),
        name: pod.key.name.to_string(),
        pod_uid: pod.uid.clone(),
        addresses: pod.addresses.iter().map(|ip| octets(*ip)).collect(),
        service_account: pod.service_account.to_string(),
        capture: if enrolment.capture {
            agent::Capture::Capture
        } else {
            agent::Capture::Exempt
        }
        .into(),
        reason: enrolment.reason,
        trust_domain: mesh.trust_domain.clone(),
        same_node: mesh.same_node.into(),
    }
}

/// The ports of `service` on a pod that it selects; a name that the pod does not have is left out.
pub(super) fn ports_of_pod(service: &ServiceFacts, pod: &PodFacts) -> pb::PortList {
    let target = |target: &TargetPort| match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod
            .ports
            .iter()
            .find(|port| port.name == *name)
            .map(|port| port.port),
    };
    port_list(service, |port| target(&port.target))
}

/// The ports of `service` on the endpoints of one of its slices.
pub(super) fn ports_of_slice(service: &ServiceFacts, slice: &SliceFacts) -> pb::PortList {
    port_list(service, |port| slice.ports.get(&port.name).copied())
}

fn port_list(
    service: &ServiceFacts,
    target: impl Fn(&crate::store::ServicePortFacts) -> Option<u16>,
) -> pb::PortList {
    let ports = service.ports.iter().filter_map(|port| {
        Some(pb::Port {
            service_port: port.port.into(),
            target_port: target(port)?.into(),
            app_protocol: app_protocol(&port.protocol).into(),
        })
    });
    pb::PortList {
        ports: ports.collect(),
    }
}

/// A node's place, from its labels.
pub(super) fn locality(labels: &Labels) -> Option<pb::Locality> {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let locality = pb::Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != pb::Locality::default()).then_some(locality)
}

fn workload_type(owner: OwnerType) -> pb::WorkloadType {
    match owner {
        OwnerType::Deployment => pb::WorkloadType::Deployment,
        OwnerType::CronJob => pb::WorkloadType::Cronjob,
        OwnerType::Job => pb::WorkloadType::Job,
        OwnerType::Pod => pb::WorkloadType::Pod,
    }
}

/// The workload API leaves its own defaults out.
fn unless_default(value: &str, default: &str) -> String {
    if value == default {
        String::new()
    } else {
        value.to_owned()
    }
}

const CANONICAL_NAME: &[&str] = &[
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];
const CANONICAL_REVISION: &[&str] = &[
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];
