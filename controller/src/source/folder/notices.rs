//! What the kernel tells of a folder: that something has changed, and which files are being written.
//!
//! A file whose writer has closed it, or that was moved into its place, is whole and can be read at once. One that has been written
//! to and not closed may be half of what it is going to be; it is read after some quiet, for a writer may never close it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

/// What has been told of a folder, and not been seen to.
#[derive(Default)]
pub(super) struct Notices {
    changed: Notify,
    /// Files that have been written to and not closed.
    written_to: Mutex<HashSet<PathBuf>>,
}

impl Notices {
    /// Waits until something has changed.
    pub(super) async fn come(&self) {
        self.changed.notified().await;
    }

    /// Waits until no file is half written, as far as that can be told.
    pub(super) async fn settle(&self) {
        let latest = Instant::now() + SETTLE_AT_MOST;
        while self.is_any_written_to() && Instant::now() < latest {
            let quiet = (Instant::now() + SETTLE).min(latest);
            if timeout_at(quiet, self.changed.notified()).await.is_err() {
                break;
            }
        }
        self.all_written_to().clear();
    }

    fn is_any_written_to(&self) -> bool {
        !self.all_written_to().is_empty()
    }

    fn all_written_to(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.written_to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: notify::Result<Event>) {
        let is_news = event.map_or(true, |event| self.note(event));
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Whether files may be different now.
    fn note(&self, event: Event) -> bool {
        let mut written_to = self.all_written_to();
        if event.need_rescan() {
            written_to.clear();
            return true;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::To)) => {
                for path in &event.paths {
                    written_to.remove(path);
                }
                true
            }
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                written_to.extend(event.paths);
                true
            }
            // Our own reading of the files is an event too.
            EventKind::Access(_) => false,
            _ => true,
        }
    }
}

/// Begins to listen; `None` where the kernel cannot tell.
pub(super) fn watch(path: &Path, notices: &Arc<Notices>) -> Option<RecommendedWatcher> {
    let notices = Arc::clone(notices);
    let watcher = notify::recommended_watcher(move |event| notices.tell(event));
    let watcher = watcher.and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| warn!(folder = %path.display(), %error, "cannot watch the folder; reading it periodically"))
        .ok()
}

/// Quiet time after which a file that its writer has not closed is read.
const SETTLE: Duration = Duration::from_millis(20);
/// A file that is written to all the time is read nevertheless.
const SETTLE_AT_MOST: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;

    use super::*;

    async fn listening() -> (tempfile::TempDir, Arc<Notices>, RecommendedWatcher) {
        let folder = tempfile::tempdir().unwrap();
        let notices = Arc::new(Notices::default());
        let watcher = watch(folder.path(), &notices).unwrap();
        (folder, notices, watcher)
    }

    /// Waits until the kernel has told all that has happened, which a file of another name marks.
    async fn told(folder: &Path, notices: &Notices) {
        let mark = folder.join("mark");
        fs::create_dir(&mark).unwrap();
        fs::remove_dir(&mark).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        notices.come().await;
    }

    #[tokio::test]
    async fn a_file_that_is_closed_or_moved_into_place_is_whole() {
        let (folder, notices, _watcher) = listening().await;
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        fs::write(folder.path().join(".b.yaml"), "b").unwrap();
        fs::rename(folder.path().join(".b.yaml"), folder.path().join("b.yaml")).unwrap();
        told(folder.path(), &notices).await;
        assert!(!notices.is_any_written_to());
    }

    #[tokio::test]
    async fn a_file_that_is_open_is_waited_for_until_it_is_quiet() {
        let (folder, notices, _watcher) = listening().await;
        let mut file = File::create(folder.path().join("a.yaml")).unwrap();
        file.write_all(b"half").unwrap();
        told(folder.path(), &notices).await;
        assert!(notices.is_any_written_to());
        let begun = Instant::now();
        notices.settle().await;
        assert!(begun.elapsed() >= SETTLE);
        assert!(!notices.is_any_written_to());
        file.write_all(b" and whole").unwrap();
        drop(file);
        told(folder.path(), &notices).await;
        assert!(!notices.is_any_written_to());
    }
}
