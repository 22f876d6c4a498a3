//! The sandboxes of this node, kept for the next agent.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Enroller,
    entry::{Entry, Phase},
};
use crate::pod::Sandbox;

/// A sandbox, and whether its pod was captured. An agent with another ABI cannot ask the kernel's
/// maps of the earlier one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    #[serde(flatten)]
    pub(super) sandbox: Sandbox,
    #[serde(default)]
    pub(super) captured: bool,
    /// Cookie of its namespace; 0 if an earlier agent did not note it.
    #[serde(default)]
    pub(super) netns_cookie: u64,
    /// Inode number of its namespace; 0 as above.
    #[serde(default)]
    pub(super) netns_inode: u32,
}

impl Saved {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            sandbox: entry.sandbox.clone(),
            captured: entry.phase == Phase::Captured || entry.held,
            netns_cookie: entry.netns.cookie(),
            netns_inode: entry.netns.inode(),
        }
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("pods.json")
}

/// What an earlier agent kept.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum List {
    /// Its pods.
    Read(Vec<Saved>),
    /// There was none.
    Never,
    /// Something else; that is reported.
    Broken,
    /// It cannot be read now.
    Unreadable(String),
}

/// Reads what an earlier agent kept.
pub(super) fn load(dir: &Path) -> List {
    let path = file(dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return List::Never,
        Err(error) => return List::Unreadable(format!("{}: {error}", path.display())),
    };
    match serde_json::from_slice(&text) {
        Ok(saved) => List::Read(saved),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read which pods the earlier agent knew; what the kernel holds captured stays refused until the CNI names it again");
            List::Broken
        }
    }
}

/// Keeps the sandboxes.
///
/// # Errors
/// What is wrong and what would be right, for whoever reads the log or the CNI's answer.
pub(super) fn write(dir: &Path, sandboxes: &[Saved]) -> Result<(), String> {
    let bytes = serde_json::to_vec_pretty(sandboxes).map_err(|e| e.to_string())?;
    runtime::file::atomic_write(&file(dir), &bytes).map_err(|error| {
        format!(
            "cannot keep the list of pods, by which the next agent knows them: {}; --runtime-dir must be writable and have room",
            super::describe(&error)
        )
    })
}

impl Enroller {
    /// Keeps which pods there are for a successor. What cannot be kept is tried again at every pass.
    pub(super) fn store(&mut self) {
        let entries = self.entries.values().map(Saved::of);
        let now: Vec<Saved> = entries.chain(self.earlier.absent().cloned()).collect();
        if self.stored == now && self.unkept.is_none() {
            return;
        }
        let kept = match self.earlier.unread() {
            Some(error) => Err(format!(
                "cannot read the list of pods, which must not be lost: {error}"
            )),
            None => write(&self.config.runtime_dir, &now),
        };
        let before = std::mem::replace(&mut self.unkept, kept.err());
        match &self.unkept {
            None => self.stored = now,
            Some(error) => {
                self.metrics.unkept.inc();
                if before.as_ref() != Some(error) {
                    tracing::error!(error, "new pods cannot start; trying again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_kept_is_no_pod_and_what_cannot_be_read_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), List::Never);
        for text in ["", "[{", "{}", "null", "[1]"] {
            std::fs::write(file(dir.path()), text).unwrap();
            assert_eq!(load(dir.path()), List::Broken, "{text:?}");
        }
        write(dir.path(), &[]).unwrap();
        assert_eq!(load(dir.path()), List::Read(Vec::new()));
    }

    #[test]
    fn a_list_that_cannot_be_read_now_is_not_a_broken_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(file(dir.path()).join("inside")).unwrap();
        assert!(matches!(load(dir.path()), List::Unreadable(_)));
        let error = write(dir.path(), &[]).unwrap_err();
        assert!(error.contains("pods.json"), "{error}");
        assert!(error.contains("--runtime-dir"), "{error}");
    }

    #[test]
    fn a_list_of_an_agent_that_noted_no_namespaces_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"[{"namespace":"shop","name":"cart","uid":"u","netns":"/x","captured":true}]"#;
        std::fs::write(file(dir.path()), text).unwrap();
        let List::Read(saved) = load(dir.path()) else {
            panic!("not read");
        };
        assert!(saved[0].captured);
        assert_eq!((saved[0].netns_cookie, saved[0].netns_inode), (0, 0));
    }
}
