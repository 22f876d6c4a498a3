//! The sandboxes of this node, kept for the next agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Enroller, capture, entry::Phase};
use crate::pod::{PodName, Sandbox};

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
pub(super) fn write(dir: &Path, sandboxes: &[Saved]) {
    let result = serde_json::to_vec_pretty(sandboxes)
        .map_err(|e| e.to_string())
        .and_then(|bytes| {
            runtime::file::atomic_write(&file(dir), &bytes).map_err(|e| e.to_string())
        });
    if let Err(error) = result {
        tracing::error!(dir = %dir.display(), error, "cannot keep the sandboxes for the next agent");
    }
}

impl Enroller {
    /// Reads which sandboxes an earlier agent knew, and takes on those that are new. False if that
    /// cannot be known: then nothing may be taken for gone.
    pub(super) fn load_saved(&mut self) -> bool {
        let Some(saved) = load(&self.config.runtime_dir) else {
            return false;
        };
        let known: BTreeMap<&PodName, &Sandbox> = saved
            .iter()
            .map(|saved| (&saved.sandbox.pod, &saved.sandbox))
            .collect();
        self.entries
            .retain(|name, entry| known.get(name) == Some(&&entry.sandbox));
        for Saved { sandbox, captured } in saved {
            let name = sandbox.pod.clone();
            if !self.entries.contains_key(&name)
                && let Err(error) = self.insert(sandbox, false)
            {
                tracing::debug!(pod = %name, error, "a pod of the earlier agent is gone");
            }
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.held = captured;
            }
        }
        true
    }

    /// Removes kernel entries of namespaces that no sandbox is known for: their pods are gone.
    pub(super) fn drop_unknown_to_us(&self) {
        let ours: BTreeSet<u64> = self
            .entries
            .values()
            .map(|entry| entry.netns.cookie())
            .collect();
        for (cookie, (id, _)) in self.kernel.pods() {
            if !ours.contains(&cookie) {
                capture::detach(&self.kernel, id);
                self.kernel.forget_pod(id);
                self.kernel.remove_pod(cookie);
            }
        }
    }

    /// Keeps which pods there are for a successor.
    pub(super) fn store(&mut self) {
        let now: Vec<Saved> = self
            .entries
            .values()
            .map(|entry| Saved {
                sandbox: entry.sandbox.clone(),
                captured: entry.phase == Phase::Captured || entry.held,
            })
            .collect();
        if self.stored != now {
            write(&self.config.runtime_dir, &now);
            self.stored = now;
        }
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
        write(dir.path(), &[]);
        assert_eq!(load(dir.path()), Some(Vec::new()));
    }
}
