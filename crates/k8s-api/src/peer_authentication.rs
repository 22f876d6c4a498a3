//! `PeerAuthentication` (`security.istio.io/v1`, `v1beta1`): whether a workload accepts plaintext beside mTLS.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tolerant::{null_is_default, proto_enum};
use crate::{ObjectMeta, WorkloadSelector};

/// A `PeerAuthentication` object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// `security.istio.io/v1` or `security.istio.io/v1beta1`; the schema is the same.
    pub api_version: String,
    /// Always `PeerAuthentication`.
    pub kind: String,
    /// Name, namespace, creation time.
    pub metadata: ObjectMeta,
    /// What is asked for.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: PeerAuthenticationSpec,
}

/// The wish of a [`PeerAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The workloads of the namespace that it is for; absent or empty means the whole namespace, and in the root
    /// namespace the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The mode for every port without an entry of its own; absent inherits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// The mode per workload port (the port that the application listens on, never the Service's).
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

impl PeerAuthenticationSpec {
    /// The mode of ports without an entry of their own.
    pub fn mode(&self) -> Mode {
        self.mtls.as_ref().map_or(Mode::Unset, |mtls| mtls.mode)
    }

    /// Whether it names particular workloads; upstream treats an empty selector as none.
    pub fn selects_workloads(&self) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| !selector.match_labels.is_empty())
    }
}

/// Wraps the mode, as upstream does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MutualTls {
    /// What connections are accepted.
    #[serde(deserialize_with = "null_is_default")]
    pub mode: Mode,
}

proto_enum! {
    /// What connections a workload accepts.
    pub enum Mode {
        /// Inherit from the wider level; at the top, `PERMISSIVE`.
        #[default]
        Unset = 0 "UNSET",
        /// Do not ask for mTLS. In ambient meshes the same as `PERMISSIVE` for acceptance.
        Disable = 1 "DISABLE",
        /// Plaintext or mTLS.
        Permissive = 2 "PERMISSIVE",
        /// mTLS only.
        Strict = 3 "STRICT",
    }
}
