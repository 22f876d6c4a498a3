//! Everything that takes part in a run on one processor, until the run is over.
//!
//! Where client, server and proxies happen to run decides over the latency of a single connection:
//! waking another processor takes longer than the request. On one processor that is out of the way,
//! and what is left is the work.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Threads that go back to where they were allowed to run when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    before: Vec<(Pid, CpuSet)>,
}

impl Pinned {
    /// Moves all threads of these processes, and of this one, to the last processor.
    pub(super) fn new(pids: impl IntoIterator<Item = i32>) -> Result<Self> {
        let mut pinned = Self::default();
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let last = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu) == Ok(true));
        let mut only = CpuSet::new();
        only.set(last.context("no processor at all")?)?;
        for pid in pids.into_iter().chain([std::process::id().cast_signed()]) {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let thread = thread.file_name().to_string_lossy().parse()?;
                let thread = Pid::from_raw(thread);
                // A thread may end meanwhile.
                if let Ok(before) = sched_getaffinity(thread)
                    && sched_setaffinity(thread, &only).is_ok()
                {
                    pinned.before.push((thread, before));
                }
            }
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (thread, before) in &self.before {
            // A thread that has ended needs nothing.
            let _ended = sched_setaffinity(*thread, before);
        }
    }
}
