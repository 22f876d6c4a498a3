//! `ServiceEntry` (`networking.istio.io/v1`, `v1beta1`, `v1alpha3`): a service that Kubernetes does not know of.
//!
//! Fields and their meaning are those of the upstream page "Service Entry" (`istio.io/api`, `networking/v1`).
#![expect(
    missing_docs,
    reason = "each field has upstream's name and meaning; what is done with it is said in the compiler"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ObjectMeta;
use crate::tolerant::null_is_default;
use crate::virtual_service::fields;

/// A `ServiceEntry` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntry {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "null_is_default")]
    pub spec: ServiceEntrySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// The wish of a [`ServiceEntry`].
    pub struct ServiceEntrySpec {
        pub hosts: Vec<String>,
        pub addresses: Vec<String>,
        pub ports: Vec<EntryPort>,
        pub location: Option<String>,
        pub resolution: Option<String>,
        pub endpoints: Vec<WorkloadEntry>,
        pub workload_selector: Option<EntrySelector>,
        pub export_to: Vec<String>,
        pub subject_alt_names: Vec<String>,
    }
    /// A port.
    pub struct EntryPort {
        pub number: u16,
        pub protocol: String,
        pub name: String,
        pub target_port: Option<u16>,
    }
    /// One that serves.
    pub struct WorkloadEntry {
        pub address: String,
        pub ports: BTreeMap<String, u16>,
        pub labels: BTreeMap<String, String>,
        pub network: String,
        pub locality: String,
        pub weight: Option<u32>,
        pub service_account: String,
    }
    /// Pods of the namespace that serve.
    pub struct EntrySelector {
        pub labels: BTreeMap<String, String>,
    }
}
