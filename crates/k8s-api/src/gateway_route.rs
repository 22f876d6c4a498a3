//! `HTTPRoute` and `GRPCRoute` (`gateway.networking.k8s.io/v1`, `v1beta1`, `v1alpha2`).
//!
//! Fields and their meaning are those of the Gateway API's reference. One type is for both: what only one of them has is
//! absent in the other.
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;
use crate::virtual_service::fields;

/// An `HTTPRoute` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpRoute {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: HttpRouteSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// A `GRPCRoute` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcRoute {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: GrpcRouteSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// A `TLSRoute` object, or a `TCPRoute`, which has no host names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionRoute {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: ConnectionRouteSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of a [`ConnectionRoute`].
    pub struct ConnectionRouteSpec {
        pub parent_refs: Vec<ParentRef>,
        pub use_default_gateways: Option<String>,
        pub hostnames: Vec<String>,
        pub rules: Vec<ConnectionRule>,
    }
    /// One rule of a [`ConnectionRoute`].
    pub struct ConnectionRule {
        pub name: Option<String>,
        pub backend_refs: Vec<BackendRef>,
    }
    /// The wish of an [`HttpRoute`].
    pub struct HttpRouteSpec {
        pub parent_refs: Vec<ParentRef>,
        pub use_default_gateways: Option<String>,
        pub hostnames: Vec<String>,
        pub rules: Vec<HttpRule>,
    }
    /// The wish of a [`GrpcRoute`].
    pub struct GrpcRouteSpec {
        pub parent_refs: Vec<ParentRef>,
        pub use_default_gateways: Option<String>,
        pub hostnames: Vec<String>,
        pub rules: Vec<GrpcRule>,
    }
    /// What a route is attached to.
    pub struct ParentRef {
        pub group: Option<String>,
        pub kind: Option<String>,
        pub namespace: Option<String>,
        pub name: String,
        pub section_name: Option<String>,
        pub port: Option<u16>,
    }
    /// One rule of an [`HttpRoute`].
    pub struct HttpRule {
        pub name: Option<String>,
        pub matches: Vec<HttpMatch>,
        pub filters: Vec<Filter>,
        pub backend_refs: Vec<BackendRef>,
        pub timeouts: Option<Timeouts>,
        pub retry: Option<Retry>,
        pub session_persistence: Option<serde_json::Value>,
    }
    /// One rule of a [`GrpcRoute`].
    pub struct GrpcRule {
        pub name: Option<String>,
        pub matches: Vec<GrpcMatch>,
        pub filters: Vec<Filter>,
        pub backend_refs: Vec<BackendRef>,
        pub session_persistence: Option<serde_json::Value>,
    }
    /// Conditions that must all hold.
    pub struct HttpMatch {
        pub path: Option<Value>,
        pub headers: Vec<Value>,
        pub query_params: Vec<Value>,
        pub method: Option<String>,
    }
    /// Conditions that must all hold.
    pub struct GrpcMatch {
        pub method: Option<GrpcMethod>,
        pub headers: Vec<Value>,
    }
    /// A service and a method of it.
    pub struct GrpcMethod {
        pub r#type: Option<String>,
        pub service: Option<String>,
        pub method: Option<String>,
    }
    /// A condition on a path, a header or a query parameter.
    pub struct Value {
        pub r#type: Option<String>,
        pub name: String,
        pub value: Option<String>,
    }
    /// What happens to a request besides being forwarded.
    pub struct Filter {
        pub r#type: String,
        pub request_header_modifier: Option<HeaderFilter>,
        pub response_header_modifier: Option<HeaderFilter>,
        pub request_mirror: Option<MirrorFilter>,
        pub request_redirect: Option<RedirectFilter>,
        pub url_rewrite: Option<RewriteFilter>,
        pub cors: Option<CorsFilter>,
        pub extension_ref: Option<serde_json::Value>,
        pub external_auth: Option<serde_json::Value>,
    }
    /// Changes of headers.
    pub struct HeaderFilter {
        pub set: Vec<Header>,
        pub add: Vec<Header>,
        pub remove: Vec<String>,
    }
    /// A header.
    pub struct Header {
        pub name: String,
        pub value: String,
    }
    /// A copy of some requests.
    pub struct MirrorFilter {
        pub backend_ref: Option<BackendRef>,
        pub percent: Option<u32>,
        pub fraction: Option<Fraction>,
    }
    /// A fraction; without a denominator it is a percentage.
    pub struct Fraction {
        pub numerator: u32,
        pub denominator: Option<u32>,
    }
    /// Where a client is told to go.
    pub struct RedirectFilter {
        pub scheme: Option<String>,
        pub hostname: Option<String>,
        pub path: Option<PathModifier>,
        pub port: Option<u16>,
        pub status_code: Option<u16>,
    }
    /// Changes of path and host.
    pub struct RewriteFilter {
        pub hostname: Option<String>,
        pub path: Option<PathModifier>,
    }
    /// A new path.
    pub struct PathModifier {
        pub r#type: String,
        pub replace_full_path: Option<String>,
        pub replace_prefix_match: Option<String>,
    }
    /// Which origins' scripts may read answers.
    pub struct CorsFilter {
        pub allow_origins: Vec<String>,
        pub allow_credentials: Option<bool>,
        pub allow_methods: Vec<String>,
        pub allow_headers: Vec<String>,
        pub expose_headers: Vec<String>,
        pub max_age: Option<u32>,
    }
    /// A backend and its share.
    pub struct BackendRef {
        pub group: Option<String>,
        pub kind: Option<String>,
        pub name: String,
        pub namespace: Option<String>,
        pub port: Option<u16>,
        pub weight: Option<u32>,
        pub filters: Vec<Filter>,
    }
    /// Times.
    pub struct Timeouts {
        pub request: Option<String>,
        pub backend_request: Option<String>,
    }
    /// When a request is tried again.
    pub struct Retry {
        pub codes: Vec<u16>,
        pub attempts: Option<u32>,
        pub backoff: Option<String>,
    }
}
