//! `DestinationRule` (`networking.istio.io/v1`, `v1beta1`, `v1alpha3`): how the endpoints of a service are used.
//!
//! Fields and their meaning are those of the upstream page "Destination Rule" (`istio.io/api`, `networking/v1`).
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tolerant::null_is_default;
use crate::virtual_service::{PortSelector, fields};
use crate::{ObjectMeta, WorkloadSelector};

/// A `DestinationRule` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DestinationRule {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: DestinationRuleSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of a [`DestinationRule`].
    pub struct DestinationRuleSpec {
        pub host: String,
        pub traffic_policy: Option<TrafficPolicy>,
        pub subsets: Vec<Subset>,
        pub export_to: Vec<String>,
        pub workload_selector: Option<WorkloadSelector>,
    }
    /// Some endpoints.
    pub struct Subset {
        pub name: String,
        pub labels: BTreeMap<String, String>,
        pub traffic_policy: Option<TrafficPolicy>,
    }
    /// How endpoints are used.
    pub struct TrafficPolicy {
        pub load_balancer: Option<LoadBalancer>,
        pub connection_pool: Option<ConnectionPool>,
        pub outlier_detection: Option<OutlierDetection>,
        pub tls: Option<ClientTls>,
        pub port_level_settings: Vec<PortTrafficPolicy>,
        pub tunnel: Option<serde_json::Value>,
        pub proxy_protocol: Option<serde_json::Value>,
        pub retry_budget: Option<serde_json::Value>,
    }
    /// How a port of the endpoints is used.
    pub struct PortTrafficPolicy {
        pub port: Option<PortSelector>,
        pub load_balancer: Option<LoadBalancer>,
        pub connection_pool: Option<ConnectionPool>,
        pub outlier_detection: Option<OutlierDetection>,
        pub tls: Option<ClientTls>,
    }
    /// How an endpoint is chosen.
    pub struct LoadBalancer {
        pub simple: Option<String>,
        pub consistent_hash: Option<ConsistentHash>,
        pub locality_lb_setting: Option<LocalitySetting>,
        pub warmup_duration_secs: Option<String>,
        pub warmup: Option<Warmup>,
    }
    /// The same for the same key.
    pub struct ConsistentHash {
        pub http_header_name: Option<String>,
        pub http_cookie: Option<HttpCookie>,
        pub use_source_ip: Option<bool>,
        pub http_query_parameter_name: Option<String>,
        pub minimum_ring_size: Option<u64>,
        pub ring_hash: Option<serde_json::Value>,
        pub maglev: Option<serde_json::Value>,
    }
    /// A cookie as the key.
    pub struct HttpCookie {
        pub name: String,
        pub path: String,
        pub ttl: Option<String>,
    }
    /// What localities mean.
    pub struct LocalitySetting {
        pub distribute: Vec<Distribute>,
        pub failover: Vec<Failover>,
        pub failover_priority: Vec<String>,
        pub enabled: Option<bool>,
    }
    /// From one locality to others by weight.
    pub struct Distribute {
        pub from: String,
        pub to: BTreeMap<String, u32>,
    }
    /// From one region to another.
    pub struct Failover {
        pub from: String,
        pub to: String,
    }
    /// A new endpoint gets less at first.
    pub struct Warmup {
        pub duration: Option<String>,
        pub minimum_percent: Option<f64>,
        pub aggression: Option<f64>,
    }
    /// Limits.
    pub struct ConnectionPool {
        pub tcp: Option<TcpPool>,
        pub http: Option<HttpPool>,
    }
    /// Limits of connections.
    pub struct TcpPool {
        pub max_connections: Option<i32>,
        pub connect_timeout: Option<String>,
        pub tcp_keepalive: Option<TcpKeepalive>,
        pub max_connection_duration: Option<String>,
        pub idle_timeout: Option<String>,
    }
    /// TCP keepalive.
    pub struct TcpKeepalive {
        pub probes: Option<u32>,
        pub time: Option<String>,
        pub interval: Option<String>,
    }
    /// Limits of requests.
    pub struct HttpPool {
        pub http1_max_pending_requests: Option<i32>,
        pub http2_max_requests: Option<i32>,
        pub max_requests_per_connection: Option<i32>,
        pub max_retries: Option<i32>,
        pub idle_timeout: Option<String>,
        pub h2_upgrade_policy: Option<String>,
        pub use_client_protocol: bool,
        pub max_concurrent_streams: Option<i32>,
    }
    /// Endpoints that are left alone for a while.
    pub struct OutlierDetection {
        pub consecutive_errors: Option<i32>,
        #[serde(rename = "consecutive5xxErrors")]
        pub consecutive_5xx_errors: Option<u32>,
        pub consecutive_gateway_errors: Option<u32>,
        pub split_external_local_origin_errors: bool,
        pub consecutive_local_origin_failures: Option<u32>,
        pub interval: Option<String>,
        pub base_ejection_time: Option<String>,
        pub max_ejection_percent: Option<i32>,
        pub min_health_percent: Option<i32>,
    }
    /// TLS to the endpoints.
    pub struct ClientTls {
        pub mode: Option<String>,
        pub client_certificate: String,
        pub private_key: String,
        pub ca_certificates: String,
        pub credential_name: String,
        pub subject_alt_names: Vec<String>,
        pub sni: String,
        pub insecure_skip_verify: Option<bool>,
        pub ca_crl: String,
    }
}
