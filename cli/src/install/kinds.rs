//! The kinds of objects that an installation may have, in the order in which they are made.

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api as Of, Client};

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    version: &'static str,
    pub(crate) name: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group,
        version,
        name,
        plural,
        namespaced,
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// All kinds that this version's chart has, and those that earlier versions had.
pub(crate) const KINDS: [Kind; 16] = [
    kind("", "v1", "ResourceQuota", "resourcequotas", true),
    kind(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        true,
    ),
    kind("", "v1", "ServiceAccount", "serviceaccounts", true),
    kind("", "v1", "ConfigMap", "configmaps", true),
    kind("", "v1", "Secret", "secrets", true),
    kind(RBAC, "v1", "ClusterRole", "clusterroles", false),
    kind(
        RBAC,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        false,
    ),
    kind(RBAC, "v1", "Role", "roles", true),
    kind(RBAC, "v1", "RoleBinding", "rolebindings", true),
    kind("", "v1", "Service", "services", true),
    kind(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        true,
    ),
    kind("coordination.k8s.io", "v1", "Lease", "leases", true),
    kind(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
    ),
    kind(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        false,
    ),
    kind("apps", "v1", "Deployment", "deployments", true),
    kind("apps", "v1", "DaemonSet", "daemonsets", true),
];

/// What controllers make outside of their namespace: for Gateways, and of the Gateway API itself. What belongs to others
/// goes before it.
pub(crate) const MADE: [Kind; 9] = [
    kind("apps", "v1", "Deployment", "deployments", true),
    kind(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        true,
    ),
    kind(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        true,
    ),
    kind("", "v1", "Service", "services", true),
    kind("", "v1", "ConfigMap", "configmaps", true),
    kind("", "v1", "ServiceAccount", "serviceaccounts", true),
    kind(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        true,
    ),
    kind(GATEWAYS, "v1", "Gateway", "gateways", true),
    kind(GATEWAYS, "v1", "GatewayClass", "gatewayclasses", false),
];

const GATEWAYS: &str = "gateway.networking.k8s.io";

impl Kind {
    /// The kind of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name == name)
    }

    /// As errors and rights call it: `daemonsets.apps`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Objects of it, of all namespaces.
    pub(crate) fn everywhere(&self, client: &Client) -> Of<DynamicObject> {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.name);
        let resource = ApiResource::from_gvk_with_plural(&kind, self.plural);
        Of::all_with(client.clone(), &resource)
    }

    /// Objects of it, in the namespace if it has any.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Of<DynamicObject> {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.name);
        let resource = ApiResource::from_gvk_with_plural(&kind, self.plural);
        if self.namespaced {
            Of::namespaced_with(client.clone(), namespace, &resource)
        } else {
            Of::all_with(client.clone(), &resource)
        }
    }
}
