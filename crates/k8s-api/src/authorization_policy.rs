//! `AuthorizationPolicy` (`security.istio.io/v1`, `v1beta1`) with every upstream field, L4 and L7, so that parts that
//! need a waypoint are recognised instead of dropped.

use serde::{Deserialize, Serialize};

use crate::tolerant::{null_is_default, proto_enum};
use crate::{ObjectMeta, PolicyTargetReference, WorkloadSelector};

/// An `AuthorizationPolicy` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// `security.istio.io/v1` or `security.istio.io/v1beta1`; the schema is the same.
    pub api_version: String,
    /// Always `AuthorizationPolicy`.
    pub kind: String,
    /// Name, namespace, annotations.
    pub metadata: ObjectMeta,
    /// What is asked for; an empty one allows nothing.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: AuthorizationPolicySpec,
}

/// The wish of an [`AuthorizationPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads of the namespace that it is for; absent means the namespace, in the root namespace the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Deprecated single form of `target_refs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTargetReference>,
    /// Waypoints, gateways or services that it is attached to instead of workloads.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Any one that matches makes the action apply; none at all never matches.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rules: Vec<Rule>,
    /// What happens on a match.
    #[serde(deserialize_with = "null_is_default")]
    pub action: Action,
    /// The external authorizer of a `CUSTOM` policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<ExtensionProvider>,
}

proto_enum! {
    /// What happens when a rule matches.
    pub enum Action {
        /// Allow; workloads with an `ALLOW` policy refuse everything that none allows.
        #[default]
        Allow = 0 "ALLOW",
        /// Refuse, whatever else allows it.
        Deny = 1 "DENY",
        /// Note for an audit plug-in; never changes the verdict.
        Audit = 2 "AUDIT",
        /// Ask an external authorizer.
        Custom = 3 "CUSTOM",
    }
}

/// Names an external authorizer of the mesh configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// Name of the provider.
    pub name: String,
}

/// Matches when one of `from`, one of `to` and all of `when` match; an empty rule matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Where the request comes from; absent is anywhere.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub from: Vec<From>,
    /// What it asks for; absent is anything.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub to: Vec<To>,
    /// Further conditions, all of which must hold.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub when: Vec<Condition>,
}

/// Wraps a [`Source`], as upstream does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct From {
    /// The source; upstream requires it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Wraps an [`Operation`], as upstream does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct To {
    /// The operation; upstream requires it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// A struct whose fields are all lists of strings, absent when empty.
macro_rules! string_lists {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* $field:ident $json:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$fmeta])* #[serde(rename = $json, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")] pub $field: Vec<String>),+
        }

        impl $name {
            /// Every field as (name in manifests, values).
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &[String])> {
                [$(($json, self.$field.as_slice())),+].into_iter()
            }
        }
    };
}

string_lists! {
    /// Where a request comes from: all fields that are set must match, one value of each suffices.
    pub struct Source {
        /// Peer identities without the scheme: `td/ns/<namespace>/sa/<account>`, exact, `prefix*`, `*suffix` or `*`.
        principals "principals",
        /// Peer identities that must not match.
        not_principals "notPrincipals",
        /// Identities from a JSON web token (L7).
        request_principals "requestPrincipals",
        /// Token identities that must not match (L7).
        not_request_principals "notRequestPrincipals",
        /// Namespaces of the peer identity.
        namespaces "namespaces",
        /// Namespaces that must not match.
        not_namespaces "notNamespaces",
        /// Service accounts as `namespace/name` or `name` in the policy's own namespace.
        service_accounts "serviceAccounts",
        /// Service accounts that must not match.
        not_service_accounts "notServiceAccounts",
        /// Addresses or CIDRs of the connection's source.
        ip_blocks "ipBlocks",
        /// Source addresses that must not match.
        not_ip_blocks "notIpBlocks",
        /// Addresses from `X-Forwarded-For` or the PROXY protocol (L7).
        remote_ip_blocks "remoteIpBlocks",
        /// Forwarded addresses that must not match (L7).
        not_remote_ip_blocks "notRemoteIpBlocks",
        /// Trust domains of the peer identity.
        trust_domains "trustDomains",
        /// Trust domains that must not match.
        not_trust_domains "notTrustDomains",
    }
}

string_lists! {
    /// What a request asks for: all fields that are set must match, one value of each suffices.
    pub struct Operation {
        /// Host header (L7).
        hosts "hosts",
        /// Hosts that must not match (L7).
        not_hosts "notHosts",
        /// Workload ports, as decimal strings.
        ports "ports",
        /// Ports that must not match.
        not_ports "notPorts",
        /// HTTP methods (L7).
        methods "methods",
        /// Methods that must not match (L7).
        not_methods "notMethods",
        /// HTTP paths (L7).
        paths "paths",
        /// Paths that must not match (L7).
        not_paths "notPaths",
    }
}

/// A condition on one attribute: one of `values` and none of `not_values`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// The attribute, such as `source.ip` or `request.headers[x]`.
    pub key: String,
    /// Values of which one must match.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub values: Vec<String>,
    /// Values of which none may match.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub not_values: Vec<String>,
}
