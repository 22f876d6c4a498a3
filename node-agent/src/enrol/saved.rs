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

/// What an earlier agent kept: nothing if there was none, `None` if it cannot be read. That is
/// reported; its pods stay captured by the kernel and refused until the CNI names them again.
pub(super) fn load(dir: &Path) -> Option<Vec<Saved>> {
    let path = file(dir);
    let read = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(error) => Err(error.to_string()),
    };
    read.inspect_err(|error| {
        tracing::error!(path = %path.display(), error, "cannot read which pods the earlier agent knew; what the kernel holds captured stays refused until the CNI names it again");
    })
    .ok()
}

/// Whether an earlier agent kept anything.
pub(super) fn exists(dir: &Path) -> bool {
    file(dir).exists()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_kept_is_no_pod_and_what_cannot_be_read_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), Some(Vec::new()));
        for text in ["", "[{", "{}", "null", "[1]"] {
            std::fs::write(file(dir.path()), text).unwrap();
            assert_eq!(load(dir.path()), None, "{text:?}");
        }
        store(dir.path(), &[]);
        assert_eq!(load(dir.path()), Some(Vec::new()));
    }
}
