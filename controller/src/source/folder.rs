//! Reads configuration from a folder of manifests and keeps reading as the files change.
//!
//! `*.yaml`, `*.yml` and `*.json` directly in the folder count, many documents each; hidden files and sub-folders do
//! not. The kernel's notifications start a scan, and a slow periodic one covers what they miss (network file systems).

mod keeper;
mod last_good;
mod notices;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

pub use compile::memory::{Memory, Scan};
use keeper::Keeper;
pub use last_good::{LoadError, SaveError, load as load_last_good};
use notices::Notices;

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
                memory: memory.remove_after(CONFIRM_AFTER),
                last_good: last_good.to_owned(),
            }),
        }
    }
}

impl Source for Folder {
    async fn run(self, batches: mpsc::Sender<Batch>) {
        let notices = Arc::new(Notices::default());
        // Dropping the watcher ends the notifications.
        let mut watcher = notices::watch(&self.path, &notices);
        let memory = Arc::new(Mutex::new(self.memory));
        let keeper = Keeper::new(Arc::clone(&memory), self.last_good);
        let mut first = true;
        loop {
            let started = Instant::now();
            let scan = scan(&memory, &self.path).await;
            let took = started.elapsed();
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
                watcher = notices::watch(&self.path, &notices);
            }
            let pause = if scan.unconfirmed {
                CONFIRM_AFTER
            } else {
                RESCAN_EVERY
            };
            tokio::select! {
                () = notices.come() => {
                    // Many files that change one after another are read together, for a large folder takes long to look through.
                    sleep(took.min(LET_GATHER)).await;
                    notices.settle().await;
                }
                () = sleep(pause) => {}
                () = batches.closed() => return,
            }
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

/// How long an object must be missing before it counts as removed: editors remove and write anew.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// For how long changes gather at most, though the folder takes longer to look through.
const LET_GATHER: Duration = Duration::from_millis(100);
/// How late a change is noticed when the kernel does not tell.
const RESCAN_EVERY: Duration = Duration::from_secs(5);
