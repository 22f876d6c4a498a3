//! `VirtualService` (`networking.istio.io/v1`, `v1beta1`, `v1alpha3`): what happens to requests and connections.
//!
//! Fields and their meaning are those of the upstream page "Virtual Service" (`istio.io/api`, `networking/v1`).
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;

/// Declares structs whose fields are absent when they have their defaults.
macro_rules! fields {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $type:ty),+ $(,)? })+) => {
        $($(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name { $($(#[$fmeta])* #[serde(deserialize_with = "null_is_default", skip_serializing_if = "crate::tolerant::is_default")] pub $field: $type),+ })+
    };
}
pub(crate) use fields;

/// A `VirtualService` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VirtualService {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: VirtualServiceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of a [`VirtualService`].
    pub struct VirtualServiceSpec {
        pub hosts: Vec<String>,
        pub gateways: Vec<String>,
        pub http: Vec<HttpRoute>,
        pub tls: Vec<TlsRoute>,
        pub tcp: Vec<TcpRoute>,
        pub export_to: Vec<String>,
    }
    /// One rule for HTTP.
    pub struct HttpRoute {
        pub name: String,
        pub r#match: Vec<HttpMatch>,
        pub route: Vec<HttpDestination>,
        pub redirect: Option<Redirect>,
        pub direct_response: Option<DirectResponse>,
        pub delegate: Option<Delegate>,
        pub rewrite: Option<Rewrite>,
        pub timeout: Option<String>,
        pub retries: Option<Retries>,
        pub fault: Option<Fault>,
        pub mirror: Option<Destination>,
        pub mirrors: Vec<Mirror>,
        /// Istio's schema has both spellings of this one.
        #[serde(alias = "mirror_percent")]
        pub mirror_percent: Option<u32>,
        pub mirror_percentage: Option<Percentage>,
        pub cors_policy: Option<CorsPolicy>,
        pub headers: Option<Headers>,
    }
    /// Conditions that must all hold.
    pub struct HttpMatch {
        pub name: String,
        pub uri: Option<StringMatch>,
        pub scheme: Option<StringMatch>,
        pub method: Option<StringMatch>,
        pub authority: Option<StringMatch>,
        pub headers: BTreeMap<String, HeaderMatch>,
        pub without_headers: BTreeMap<String, HeaderMatch>,
        pub query_params: BTreeMap<String, StringMatch>,
        pub ignore_uri_case: bool,
        pub port: Option<u16>,
        pub source_labels: BTreeMap<String, String>,
        pub source_namespace: String,
        pub gateways: Vec<String>,
        pub stat_prefix: String,
    }
    /// At most one of its fields is set; none at all is for presence.
    pub struct StringMatch {
        pub exact: Option<String>,
        pub prefix: Option<String>,
        pub regex: Option<String>,
    }
    /// A destination and its share.
    pub struct HttpDestination {
        pub destination: Option<Destination>,
        pub weight: i32,
        pub headers: Option<Headers>,
    }
    /// A service, and a subset and port of it.
    pub struct Destination {
        pub host: String,
        pub subset: String,
        pub port: Option<PortSelector>,
    }
    /// A port by its number.
    pub struct PortSelector {
        pub number: u16,
    }
    /// Another object whose rules go on.
    pub struct Delegate {
        pub name: String,
        pub namespace: String,
    }
    /// Where a client is told to go.
    pub struct Redirect {
        pub uri: String,
        pub authority: String,
        pub port: Option<u16>,
        pub derive_port: Option<String>,
        pub scheme: String,
        pub redirect_code: Option<u16>,
    }
    /// An answer at once.
    pub struct DirectResponse {
        pub status: u16,
        pub body: Option<Body>,
    }
    /// Its content.
    pub struct Body {
        pub string: Option<String>,
        pub bytes: Option<String>,
    }
    /// Changes of path and authority.
    pub struct Rewrite {
        pub uri: String,
        pub authority: String,
        pub uri_regex_rewrite: Option<RegexRewrite>,
    }
    /// A pattern and what its match becomes.
    pub struct RegexRewrite {
        pub r#match: String,
        pub rewrite: String,
    }
    /// When a request is tried again.
    pub struct Retries {
        pub attempts: i32,
        pub per_try_timeout: Option<String>,
        pub retry_on: String,
        pub retry_remote_localities: Option<bool>,
        pub retry_ignore_previous_hosts: Option<bool>,
        pub backoff: Option<String>,
    }
    /// What goes wrong on purpose.
    pub struct Fault {
        pub delay: Option<Delay>,
        pub abort: Option<Abort>,
    }
    /// Requests that wait.
    pub struct Delay {
        pub fixed_delay: Option<String>,
        pub exponential_delay: Option<String>,
        pub percent: Option<i32>,
        pub percentage: Option<Percentage>,
    }
    /// Requests that fail.
    pub struct Abort {
        pub http_status: Option<u16>,
        pub grpc_status: Option<String>,
        pub http2_error: Option<String>,
        pub percent: Option<i32>,
        pub percentage: Option<Percentage>,
    }
    /// A copy of some requests.
    pub struct Mirror {
        pub destination: Option<Destination>,
        pub percentage: Option<Percentage>,
    }
    /// Which origins' scripts may read answers.
    pub struct CorsPolicy {
        pub allow_origin: Vec<String>,
        pub allow_origins: Vec<StringMatch>,
        pub allow_methods: Vec<String>,
        pub allow_headers: Vec<String>,
        pub expose_headers: Vec<String>,
        pub max_age: Option<String>,
        pub allow_credentials: Option<bool>,
        pub unmatched_preflights: Option<String>,
    }
    /// Changes of headers of request and answer.
    pub struct Headers {
        pub request: Option<HeaderOperations>,
        pub response: Option<HeaderOperations>,
    }
    /// Changes of headers.
    pub struct HeaderOperations {
        pub set: BTreeMap<String, String>,
        pub add: BTreeMap<String, String>,
        pub remove: Vec<String>,
    }
    /// One rule for TLS that is passed through.
    pub struct TlsRoute {
        pub r#match: Vec<TlsMatch>,
        pub route: Vec<RouteDestination>,
    }
    /// Conditions that must all hold.
    pub struct TlsMatch {
        pub sni_hosts: Vec<String>,
        pub destination_subnets: Vec<String>,
        pub port: Option<u16>,
        pub source_labels: BTreeMap<String, String>,
        pub source_namespace: String,
        pub gateways: Vec<String>,
    }
    /// One rule for TCP.
    pub struct TcpRoute {
        pub r#match: Vec<L4Match>,
        pub route: Vec<RouteDestination>,
    }
    /// Conditions that must all hold.
    pub struct L4Match {
        pub destination_subnets: Vec<String>,
        pub port: Option<u16>,
        pub source_subnet: String,
        pub source_labels: BTreeMap<String, String>,
        pub source_namespace: String,
        pub gateways: Vec<String>,
    }
    /// A destination of connections and its share.
    pub struct RouteDestination {
        pub destination: Option<Destination>,
        pub weight: i32,
    }
}

/// A [`StringMatch`] of a header. For the header `cookie` it may also be a map of cookies with their values, as some
/// books write it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct HeaderMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Whatever else is written.
    #[serde(flatten)]
    pub other: BTreeMap<String, String>,
}

/// A percentage in all spellings: `{value: 10}` and `10`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Percentage {
    Number(f64),
    Percent {
        #[serde(default)]
        value: f64,
    },
}

impl Percentage {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Self::Number(value) | Self::Percent { value } => value,
        }
    }
}

impl Default for Percentage {
    fn default() -> Self {
        Self::Number(0.0)
    }
}
