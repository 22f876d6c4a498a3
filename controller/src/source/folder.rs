//! Reads configuration from a folder of manifests and keeps reading as the files change.
//!
//! `*.yaml`, `*.yml` and `*.json` directly in the folder count, many documents each; hidden files and sub-folders do
//! not. The kernel's notifications start a scan, and a slow periodic one covers what they miss (network file systems).

mod keeper;
mod last_good;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

pub use compile::memory::{Memory, Scan};
use keeper::Keeper;
pub use last_good::{LoadError, SaveError, load as load_last_good};

use super::{Batch, Source};

/// The folder source.
pub struct Folder {
    path: PathBuf,
    memory: Memory,
    last_good: PathBuf,
}

/// Why a folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be listed.
    #[error("cannot read the manifests folder {path}; --manifests must name a readable directory")]
    Unreadable {
        /// The folder as given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Folder {
    /// A folder that exists, and what was known of it before. `last_good` is the file that keeps what is known.
    ///
    /// # Errors
    /// When it cannot be listed and nothing was known of it before.
    pub fn open(path: &Path, memory: Memory, last_good: &Path) -> Result<Self, FolderError> {
        match std::fs::read_dir(path) {
            Err(source) if memory.is_empty() => Err(FolderError::Unreadable {
                path: path.to_owned(),
                source,
            }),
            _ => Ok(Self {
                path: path.to_owned(),
                memory,
                last_good: last_good.to_owned(),
            }),
        }
    }
}

impl Source for Folder {
    async fn run(self, batches: mpsc::Sender<Batch>) {
        let changed = Arc::new(Notify::new());
        // Dropping the watcher ends the notifications.
        let mut watcher = watch(&self.path, &changed);
        let memory = Arc::new(Mutex::new(self.memory));
        let keeper = Keeper::new(Arc::clone(&memory), self.last_good);
        let mut first = true;
        loop {
            let scan = scan(&memory, &self.path).await;
            let nothing = scan.batch.upserts.is_empty() && scan.batch.removals.is_empty();
            if !nothing {
                keeper.changed();
            }
            if first || !nothing || scan.batch.diagnostics.is_some() {
                first = false;
                if batches.send(scan.batch).await.is_err() {
                    return;
                }
            }
            if watcher.is_none() {
                watcher = watch(&self.path, &changed);
            }
            let pause = if scan.unconfirmed {
                CONFIRM_AFTER
            } else {
                RESCAN_EVERY
            };
            tokio::select! {
                () = changed.notified() => settle(&changed).await,
                () = sleep(pause) => {}
                () = batches.closed() => return,
            }
        }
    }
}

/// Waits until no notification has come for a moment, so that a file in the middle of being written is read whole.
async fn settle(changed: &Notify) {
    let latest = Instant::now() + SETTLE_AT_MOST;
    while Instant::now() < latest {
        let quiet = (Instant::now() + SETTLE).min(latest);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

async fn scan(memory: &Arc<Mutex<Memory>>, path: &Path) -> Scan {
    let memory = Arc::clone(memory);
    let path = path.to_owned();
    let work = move || {
        memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .scan(&path)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn watch(path: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let wake = move |event: notify::Result<notify::Event>| {
        // Our own reading of the files is an event too.
        let is_read = event.is_ok_and(|event| {
            use notify::event::{AccessKind, AccessMode, EventKind};
            match event.kind {
                EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
                _ => false,
            }
        });
        if !is_read {
            changed.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(wake).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| warn!(folder = %path.display(), %error, "cannot watch the folder; reading it periodically"))
        .ok()
}

/// Quiet time after a notification before files are read.
const SETTLE: Duration = Duration::from_millis(20);
/// A file that is written to all the time is read nevertheless.
const SETTLE_AT_MOST: Duration = Duration::from_millis(250);
/// How long an object must be missing before it counts as removed: editors remove and write anew.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// How late a change is noticed when the kernel does not tell.
const RESCAN_EVERY: Duration = Duration::from_secs(5);
