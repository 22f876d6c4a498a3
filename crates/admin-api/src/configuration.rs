//! The page of everything that an agent knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{Policy, Service, Workload};
use serde::{Deserialize, Serialize};

use crate::{Pod, WantedPod};

/// What an agent is, knows and holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigDump {
    /// Version of the program.
    pub version: String,
    /// Version of what it has agreed on with its kernel half.
    pub abi: u32,
    /// Its process.
    pub pid: u32,
    /// The name of its node.
    #[serde(default)]
    pub node: String,
    /// The pods that are on the node.
    pub pods: Vec<Pod>,
    /// The pods that the controller names for the node.
    #[serde(default)]
    pub wanted: Vec<WantedPod>,
    /// How far its configuration has come.
    #[serde(default)]
    pub configuration: Configuration,
    /// The workloads of the mesh.
    pub workloads: Vec<Arc<Workload>>,
    /// Its services.
    pub services: Vec<Arc<Service>>,
    /// Its policies.
    pub policies: Vec<Arc<Policy>>,
}

/// How far an agent's configuration has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Whether it has a stream from the controller.
    pub connected: bool,
    /// Why the last one ended or could not be opened.
    pub last_error: Option<String>,
    /// By type URL.
    pub types: BTreeMap<String, TypeState>,
}

/// How far one type of resource has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeState {
    /// Whether the controller has answered since the agent's start.
    pub synced: bool,
    /// Resources that the agent has.
    pub resources: usize,
    /// What it refused the last time; nothing if it took all.
    pub last_nack: Option<String>,
}
