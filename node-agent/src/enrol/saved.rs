//! The sandboxes of this node, kept for the next agent.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pod::Sandbox;

/// A sandbox, and whether its pod was captured. An agent with another ABI cannot ask the kernel's
/// maps of the earlier one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    #[serde(flatten)]
    pub(super) sandbox: Sandbox,
    #[serde(default)]
    pub(super) captured: bool,
}

fn file(dir: &Path) -> PathBuf {
    dir.join("pods.json")
}

/// What an earlier agent kept; nothing if there was none. An unreadable file is reported: its pods
/// stay captured by the kernel and refused until the CNI names them again.
pub(super) fn load(dir: &Path) -> Vec<Saved> {
    let path = file(dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read the sandboxes of the earlier agent");
            return Vec::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the sandboxes of the earlier agent are not readable");
        Vec::new()
    })
}

/// Keeps the sandboxes.
pub(super) fn store(dir: &Path, sandboxes: &[Saved]) {
    let result = serde_json::to_vec_pretty(sandboxes)
        .map_err(|e| e.to_string())
        .and_then(|bytes| {
            runtime::file::atomic_write(&file(dir), &bytes).map_err(|e| e.to_string())
        });
    if let Err(error) = result {
        tracing::error!(dir = %dir.display(), error, "cannot keep the sandboxes for the next agent");
    }
}
