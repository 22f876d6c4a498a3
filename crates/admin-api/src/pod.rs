//! The pods of a node: what is wanted of them, and what is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a pod stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// In the mesh.
    Captured,
    /// Not in the mesh.
    Exempt,
    /// Nothing is decided, or something is missing: refused if it has not started yet.
    Pending,
    /// Capture failed; the agent tries again.
    Failed,
    /// Leaving the mesh.
    Releasing,
}

impl PodState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Exempt => "exempt",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Releasing => "releasing",
        }
    }
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pod that runs on the agent's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Number in the kernel's maps.
    pub pod_id: u32,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Where it stands.
    pub state: PodState,
    /// Why.
    pub reason: String,
    /// Connections that the agent carries for it now.
    pub connections: usize,
}

/// A pod that the controller names for the agent's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Who it is.
    pub identity: String,
    /// Whether it is to be captured.
    pub capture: bool,
    /// Why, naming object and label.
    pub reason: String,
}
