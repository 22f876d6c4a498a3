//! `Gateway` and `ReferenceGrant` (`gateway.networking.k8s.io/v1`, `v1beta1`).
//!
//! Fields and their meaning are those of the Gateway API's reference. What nothing is made of is kept unread.
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use serde::{Deserialize, Serialize};

use crate::tolerant::null_is_default;
use crate::virtual_service::fields;
use crate::{LabelSelector, ObjectMeta};

/// A `Gateway` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Gateway {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: GatewaySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of a [`Gateway`].
    pub struct GatewaySpec {
        pub gateway_class_name: String,
        pub listeners: Vec<Listener>,
        pub addresses: Option<serde_json::Value>,
        pub infrastructure: Option<serde_json::Value>,
        pub backend_tls: Option<serde_json::Value>,
        pub tls: Option<serde_json::Value>,
        pub allowed_listeners: Option<serde_json::Value>,
        pub default_scope: Option<serde_json::Value>,
    }
    /// Where it listens, and for whose sake.
    pub struct Listener {
        pub name: String,
        pub hostname: Option<String>,
        pub port: Option<u16>,
        pub protocol: String,
        pub tls: Option<ListenerTls>,
        pub allowed_routes: Option<AllowedRoutes>,
    }
    /// How TLS ends at a listener.
    pub struct ListenerTls {
        pub mode: Option<String>,
        pub certificate_refs: Vec<ObjectRef>,
        pub options: Option<serde_json::Value>,
        pub frontend_validation: Option<serde_json::Value>,
    }
    /// Names an object.
    pub struct ObjectRef {
        pub group: Option<String>,
        pub kind: Option<String>,
        pub namespace: Option<String>,
        pub name: String,
    }
    /// Who may be attached.
    pub struct AllowedRoutes {
        pub namespaces: Option<RouteNamespaces>,
        pub kinds: Vec<RouteKind>,
    }
    /// A kind of routes.
    pub struct RouteKind {
        pub group: Option<String>,
        pub kind: String,
    }
    /// From which namespaces.
    pub struct RouteNamespaces {
        pub from: Option<String>,
        pub selector: Option<LabelSelector>,
    }
    /// The wish of a [`ReferenceGrant`].
    pub struct ReferenceGrantSpec {
        pub from: Vec<GrantFrom>,
        pub to: Vec<GrantTo>,
    }
    /// Whose references are allowed.
    pub struct GrantFrom {
        pub group: String,
        pub kind: String,
        pub namespace: String,
    }
    /// To what. Without a name to all of the kind.
    pub struct GrantTo {
        pub group: String,
        pub kind: String,
        pub name: Option<String>,
    }
}

/// A `ReferenceGrant` object: references from other namespaces into its own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReferenceGrant {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: ReferenceGrantSpec,
}
