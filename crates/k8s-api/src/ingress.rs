//! `Ingress` and `IngressClass` (`networking.k8s.io/v1`).
//!
//! Fields and their meaning are those of `k8s.io/api/networking/v1`.
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;
use crate::virtual_service::fields;

/// An `Ingress` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: IngressSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// An `IngressClass` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IngressClass {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: IngressClassSpec,
}

fields! {
    /// The wish of an [`IngressClass`].
    pub struct IngressClassSpec {
        pub controller: String,
        pub parameters: Option<IngressClassParameters>,
    }
    /// What a class refers to.
    pub struct IngressClassParameters {
        pub api_group: String,
        pub kind: String,
        pub name: String,
        pub namespace: String,
        pub scope: String,
    }
    /// The wish of an [`Ingress`].
    pub struct IngressSpec {
        pub ingress_class_name: String,
        pub default_backend: Option<IngressBackend>,
        pub tls: Vec<IngressTls>,
        pub rules: Vec<IngressRule>,
    }
    /// Hosts, and the Secret with their certificate.
    pub struct IngressTls {
        pub hosts: Vec<String>,
        pub secret_name: String,
    }
    /// A host, and where its paths lead.
    pub struct IngressRule {
        pub host: String,
        pub http: Option<HttpIngress>,
    }
    /// The paths of a host.
    pub struct HttpIngress {
        pub paths: Vec<HttpIngressPath>,
    }
    /// A path, and where it leads.
    pub struct HttpIngressPath {
        pub path: String,
        pub path_type: String,
        pub backend: IngressBackend,
    }
    /// Where requests go.
    pub struct IngressBackend {
        pub service: Option<IngressService>,
        pub resource: Option<serde_json::Value>,
    }
    /// A port of a Service.
    pub struct IngressService {
        pub name: String,
        pub port: IngressServicePort,
    }
    /// A port, by name or number.
    pub struct IngressServicePort {
        pub name: String,
        pub number: u16,
    }
}
