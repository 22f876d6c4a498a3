//! What the controller says of who is connected to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One discovery stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The authenticated node.
    pub node: String,
    /// What the client calls itself.
    pub client: String,
    /// Everything up to this generation about workloads is known to the client.
    pub knows: u64,
    /// By type URL.
    pub types: BTreeMap<String, TypeStatus>,
}

/// One type on a stream. Generations count changes of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeStatus {
    /// Generation of the last response.
    pub sent: u64,
    /// Generation of the last response that was taken.
    pub acked: u64,
    /// What the client said when it last refused one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}
