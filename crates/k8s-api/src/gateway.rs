//! `Gateway` (`gateway.networking.k8s.io/v1`, `v1beta1`), as far as it is a waypoint.
//!
//! Fields and their meaning are those of the Gateway API's reference. What is for gateways at the edge is kept unread.
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;
use crate::virtual_service::fields;

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
        pub tls: Option<serde_json::Value>,
        pub allowed_routes: Option<AllowedRoutes>,
    }
    /// Who may be attached.
    pub struct AllowedRoutes {
        pub namespaces: Option<RouteNamespaces>,
        pub kinds: Option<serde_json::Value>,
    }
    /// From which namespaces.
    pub struct RouteNamespaces {
        pub from: Option<String>,
        pub selector: Option<serde_json::Value>,
    }
}
