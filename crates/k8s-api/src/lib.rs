//! The Kubernetes and Istio object types that the controller reads.
//!
//! Kubernetes' own kinds come from `k8s-openapi`; Istio's are written here field by field from the upstream API
//! (`istio.io/api`, packages `security/v1` and `type/v1beta1`). The types are as tolerant as upstream's JSON decoding:
//! absent and `null` mean the default, enums may be names or numbers. Nothing here validates or decides.

pub mod authorization_policy;
pub mod destination_rule;
pub mod gateway;
pub mod gateway_route;
pub mod ingress;
pub mod istio_gateway;
pub mod peer_authentication;
mod secret;
pub mod service_entry;
mod tolerant;
pub mod virtual_service;

use std::collections::BTreeMap;

pub use authorization_policy::AuthorizationPolicy;
pub use destination_rule::DestinationRule;
pub use gateway::{Gateway, ReferenceGrant};
pub use gateway_route::{ConnectionRoute, GrpcRoute, HttpRoute};
pub use ingress::{Ingress, IngressClass};
pub use istio_gateway::IstioGateway;
pub use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, ObjectMeta, OwnerReference,
};
pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
pub use peer_authentication::PeerAuthentication;
pub use secret::Secret;
use serde::{Deserialize, Serialize};
pub use service_entry::ServiceEntry;
pub use virtual_service::VirtualService;

/// Which workloads a policy selects: those that carry every label (`istio.type.v1beta1.WorkloadSelector`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that must all be present with these values. Empty selects every workload in scope.
    #[serde(deserialize_with = "tolerant::null_is_default")]
    pub match_labels: BTreeMap<String, String>,
}

/// A reference from a policy to the object it is attached to (`istio.type.v1beta1.PolicyTargetReference`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyTargetReference {
    /// API group of the target; empty is the core group.
    pub group: String,
    /// Kind of the target: `Gateway`, `GatewayClass`, `Service` or `ServiceEntry`.
    pub kind: String,
    /// Name of the target.
    pub name: String,
    /// Namespace of the target; upstream accepts only the policy's own.
    pub namespace: String,
}
