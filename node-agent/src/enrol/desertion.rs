//! Pods whose sandbox has gone without a word of the CNI: a runtime that was killed, or a node that was cleaned
//! up by hand. Our own hold on the namespace would keep it alive for ever.

use std::{collections::HashSet, os::unix::fs::MetadataExt, path::PathBuf, time::Instant};

use super::{Enroller, entry::Entry, saved::Saved};
use crate::{
    host::{cgroup, sock_diag},
    pod::PodName,
};

impl Enroller {
    /// Gives up the hold on namespaces that nobody is in and that are not where they were. The kernel half
    /// keeps the pods as they are, captured ones refused, until the kernel says that they are gone: see
    /// [`super::earlier`].
    pub(super) fn let_deserted_go(&mut self) {
        let moved: Vec<PodName> = self
            .entries
            .iter_mut()
            .filter_map(|(name, entry)| has_moved(entry).then(|| name.clone()))
            .collect();
        let inode = |name: &PodName| self.entries.get(name).map(|entry| entry.netns.inode());
        let sought: HashSet<u32> = moved.iter().filter_map(inode).collect();
        if sought.is_empty() {
            return;
        }
        let inhabited = cgroup::inhabited(&sought);
        for name in moved {
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            if let Some(path) = inhabited.get(&entry.netns.inode()) {
                follow(entry, path.clone());
            } else if entry.deserted.is_none() {
                // A runtime may be about to start the pod's first process.
                entry.deserted = Some(Instant::now());
            } else {
                self.let_go(&name);
            }
        }
    }

    fn let_go(&mut self, name: &PodName) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        tracing::warn!(pod = %name, netns = %entry.sandbox.netns.display(), "the pod's network namespace is gone from its place and nobody is in it, and the CNI has said nothing; letting it go");
        self.metrics.deserted.inc();
        self.end_carrying(&entry);
        if let Err(error) = entry.netns.run(sock_diag::end_all).and_then(|ended| ended) {
            tracing::warn!(pod = %name, %error, "connections of the pod that nobody will acknowledge may keep its namespace for minutes");
        }
        self.earlier.keep_deserted(Saved::of(&entry));
    }
}

/// Whether the pod's namespace is not at its path any more. An error that may pass says nothing.
fn has_moved(entry: &mut Entry) -> bool {
    let moved = match std::fs::metadata(&entry.sandbox.netns) {
        Ok(at) => at.ino() != u64::from(entry.netns.inode()),
        Err(error) => matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)
        ),
    };
    if !moved {
        entry.deserted = None;
    }
    moved
}

/// The namespace lives and is found by another path, as that of a pod which is known by a process.
fn follow(entry: &mut Entry, path: PathBuf) {
    entry.sandbox.netns = path;
    entry.deserted = None;
}
