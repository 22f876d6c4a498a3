//! Istio's `Gateway` (`networking.istio.io/v1`, `v1beta1`, `v1alpha3`).
//!
//! Fields and their meaning are those of upstream's `networking/v1alpha3/gateway.proto`.
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;
use crate::virtual_service::fields;

/// A `Gateway` object of Istio.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IstioGateway {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: IstioGatewaySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of an [`IstioGateway`].
    pub struct IstioGatewaySpec {
        pub servers: Vec<Server>,
        pub selector: BTreeMap<String, String>,
    }
    /// A port, and the hosts that are served there.
    pub struct Server {
        pub port: ServerPort,
        pub bind: String,
        pub hosts: Vec<String>,
        pub tls: Option<ServerTls>,
        pub default_endpoint: String,
        pub name: String,
    }
    /// Where to listen.
    pub struct ServerPort {
        pub number: u16,
        pub protocol: String,
        pub name: String,
        pub target_port: Option<u16>,
    }
    /// TLS of a server.
    pub struct ServerTls {
        pub https_redirect: bool,
        pub mode: String,
        pub server_certificate: String,
        pub private_key: String,
        pub ca_certificates: String,
        pub ca_crl: String,
        pub tls_certificates: Option<serde_json::Value>,
        pub credential_name: String,
        pub credential_names: Vec<String>,
        pub ca_cert_credential_name: String,
        pub subject_alt_names: Vec<String>,
        pub verify_certificate_spki: Vec<String>,
        pub verify_certificate_hash: Vec<String>,
        pub min_protocol_version: String,
        pub max_protocol_version: String,
        pub cipher_suites: Vec<String>,
    }
}
