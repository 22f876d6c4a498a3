//! A pod, or an endpoint without one, as the workload API describes it.

use std::net::IpAddr;

use manifest::{Labels, NamespacedName, OwnerType, PodFacts, WEIGHT};
use model::PolicyKey;
use model::workload::Isolated;
use proto::agent;
use proto::convert::extension;
use proto::istio::workload::{self as pb, ApplicationTunnel, application_tunnel};

use super::authorization::octets;
use super::endpoints::Published;
use super::enrolment::Enrolment;
use super::{MeshConfig, waypoint};
use crate::store::{GATEWAY_CLASS_NAME, GATEWAY_NAME, SliceFacts};

/// What a pod's resource says beyond the pod itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) addresses: Vec<IpAddr>,
    /// Its traffic enters through a tunnel: its node says that it is captured.
    pub(super) captured: bool,
    pub(super) waypoint: Option<pb::GatewayAddress>,
    pub(super) locality: Option<pb::Locality>,
    /// The endpoints that it is.
    pub(super) endpoints: Published,
    /// Names of policies, as `namespace/name`.
    pub(super) policies: Vec<String>,
    /// The `PeerAuthentication` that makes it strict on every port.
    pub(super) strict_by: Option<PolicyKey>,
    /// It may connect to nobody that the mesh does not know.
    pub(super) egress_closed: bool,
    /// What the cluster's own network may keep from it.
    pub(super) isolated: Isolated,
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

/// Whether a pod that is no endpoint of its namespace's Services counts as ready. Whoever dials its address reaches it to its
/// end; a Service leads to it no more, unless to those that are ending.
pub(super) fn takes_connections(pod: &PodFacts) -> bool {
    !pod.terminating && !pod.finished && pod.ready.unwrap_or(true)
}

/// The resource of a pod; `None` for one that has no address yet.
pub(super) fn from_pod(
    uid: &str,
    pod: &PodFacts,
    mesh: &MeshConfig,
    around: Surroundings,
) -> Option<pb::Workload> {
    if around.addresses.is_empty() {
        return None;
    }
    let Published {
        services,
        ready,
        extensions,
    } = around.endpoints;
    let ready = ready.unwrap_or_else(|| takes_connections(pod));
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
        addresses: around.addresses.iter().map(|ip| octets(*ip)).collect(),
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
        services,
        authorization_policies: around.policies,
        status: if ready {
            pb::WorkloadStatus::Healthy
        } else {
            pb::WorkloadStatus::Unhealthy
        }
        .into(),
        cluster_id: unless_default(&mesh.cluster_id, "Kubernetes"),
        locality: around.locality,
        waypoint: around.waypoint,
        application_tunnel: is_waypoint(&pod.labels).then(|| ApplicationTunnel {
            protocol: application_tunnel::Protocol::Proxy.into(),
            port: PROXY_PORT,
        }),
        network_mode: if pod.host_network {
            pb::NetworkMode::HostNetwork
        } else {
            pb::NetworkMode::Standard
        }
        .into(),
        extensions: extensions
            .into_iter()
            .chain(around.strict_by.as_ref().map(extension::strict_by))
            .chain(around.egress_closed.then(extension::egress_closed))
            .chain(extension::isolated(around.isolated))
            .collect(),
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
    mesh: &MeshConfig,
    endpoints: Published,
) -> pb::Workload {
    pb::Workload {
        uid: uid.to_owned(),
        name: slice.key.name.to_string(),
        namespace: slice.key.namespace.to_string(),
        addresses: vec![octets(address)],
        trust_domain: unless_default(&mesh.trust_domain, "cluster.local"),
        services: endpoints.services,
        status: if endpoints.ready == Some(true) {
            pb::WorkloadStatus::Healthy
        } else {
            pb::WorkloadStatus::Unhealthy
        }
        .into(),
        cluster_id: unless_default(&mesh.cluster_id, "Kubernetes"),
        network_mode: pb::NetworkMode::HostNetwork.into(),
        extensions: endpoints.extensions,
        ..pb::Workload::default()
    }
}

/// A pod of a waypoint of ours. Its agent hands it what it is a waypoint for, behind a header that says who calls.
pub(super) fn is_waypoint(labels: &Labels) -> bool {
    let class = labels.get(GATEWAY_CLASS_NAME);
    labels.contains_key(GATEWAY_NAME)
        && class.is_some_and(|class| waypoint::is_waypoint_class(class))
        && !labels.contains_key(MANAGED_BY_ISTIO)
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
        pod_uid: pod.uid_on_node().to_owned(),
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
        same_node: mesh.same_node_on(&pod.node).into(),
        probe_ports: pod.probe_ports.iter().map(|port| (*port).into()).collect(),
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
pub(super) fn unless_default(value: &str, default: &str) -> String {
    if value == default {
        String::new()
    } else {
        value.to_owned()
    }
}

/// Istio's control plane puts it on the pods that it makes for Gateways.
const MANAGED_BY_ISTIO: &str = "gateway.istio.io/managed";
/// The port on the waypoint's loopback that takes connections with a PROXY header.
const PROXY_PORT: u32 = 15088;

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
