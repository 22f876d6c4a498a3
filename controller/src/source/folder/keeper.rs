//! Keeps the last good objects on disk, beside everything else: a scan never waits for it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::error;

use super::{Memory, last_good};

/// Saves after changes until it is dropped.
pub(super) struct Keeper {
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn new(memory: Arc<Mutex<Memory>>, path: PathBuf) -> Self {
        let changed = Arc::new(Notify::new());
        let task = tokio::spawn(keep(memory, path, Arc::clone(&changed)));
        Self { changed, task }
    }

    /// There is something to save.
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(memory: Arc<Mutex<Memory>>, path: PathBuf, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        let start = Instant::now();
        save(&memory, &path).await;
        // A large cluster that changes all the time costs a tenth of a processor at most.
        sleep(SAVE_EVERY.max(start.elapsed() * SHARE)).await;
    }
}

/// A failure costs only the next start.
async fn save(memory: &Arc<Mutex<Memory>>, path: &std::path::Path) {
    let (memory, path) = (Arc::clone(memory), path.to_owned());
    let work = move || {
        // The lock is held for a list of references, not for their text.
        let objects = memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last_good();
        last_good::save(&path, &objects)
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
        error!(%error, "cannot save the last good configuration; a restart now would depend on the files alone");
    }
}

/// The last good objects are written at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Nor sooner than this many times as long as writing took.
const SHARE: u32 = 9;
