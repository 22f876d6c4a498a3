//! The certificates of the identities that a node uses: asked for once, renewed before they end, forgotten after use.
//!
//! One task per identity is the only one that asks for its certificate; everybody else watches. A renewal replaces
//! the certificate in one step, and a failed one leaves the old certificate in use until it ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use model::identity::Identity;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::cert::{TlsOptions, WorkloadCert};
use crate::persist::PrivateDir;
use crate::source::{IssueError, SvidSource};
use crate::svid::SvidInfo;

mod entry;
mod policy;

pub use policy::{Backoff, RotationPolicy};

/// What an identity's certificate is doing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SvidState {
    /// The first certificate is being asked for.
    #[default]
    Requesting,
    /// A certificate is in use and its renewal is not due.
    Valid,
    /// A certificate is in use and its successor is being asked for.
    Renewing,
    /// The last attempt failed; [`SvidStatus::cert`] tells whether an older certificate is still in use.
    Failing,
}

impl SvidState {
    /// The word for admin pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requesting => "requesting",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Failing => "failing",
        }
    }
}

/// One identity in [`SvidStore::snapshot`].
#[derive(Clone, Debug)]
pub struct SvidStatus {
    /// The identity.
    pub identity: Identity,
    /// What is being done for it.
    pub state: SvidState,
    /// The certificate in use.
    pub cert: Option<SvidInfo>,
    /// When the next renewal is due.
    pub renewal: Option<SystemTime>,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// The last failure; cleared by a success.
    pub last_error: Option<IssueError>,
    /// Receivers that watch it now.
    pub watchers: usize,
}

/// What the store tells about its work, for metrics. Called from the store's tasks; must not block.
pub trait SvidEvents: Send + Sync {
    /// A certificate came into use.
    fn issued(&self, _cert: &SvidInfo) {}
    /// An attempt failed; `error.code()` is the reason.
    fn failed(&self, _identity: &Identity, _error: &IssueError) {}
    /// A certificate ended without a successor.
    fn expired(&self, _identity: &Identity) {}
    /// The identity is not kept any longer: its gauges should go.
    fn forgotten(&self, _identity: &Identity) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl SvidEvents for NoEvents {}

/// Why [`SvidStore::get`] has no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GetError {
    /// None came in time; the last failure, if there was one, tells why.
    #[error("there is no certificate for {identity}")]
    None {
        /// The identity.
        identity: Identity,
        /// The last failure.
        #[source]
        source: Option<IssueError>,
    },
    /// The identity was forgotten while somebody waited.
    #[error("{0} is no longer needed on this node")]
    Forgotten(Identity),
}

/// The store; clones share it. Dropping the last one ends its tasks.
#[derive(Clone)]
pub struct SvidStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    runtime: Handle,
    entries: Mutex<HashMap<Identity, Arc<Entry>>>,
}

/// What every entry's task needs; it does not keep the store alive.
struct Shared {
    source: Arc<dyn SvidSource>,
    policy: RotationPolicy,
    options: TlsOptions,
    directory: Option<PrivateDir>,
    events: Arc<dyn SvidEvents>,
    slots: Semaphore,
}

struct Entry {
    cert: watch::Sender<Option<Arc<WorkloadCert>>>,
    progress: watch::Sender<Progress>,
    pinned: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    state: SvidState,
    renewal: Option<SystemTime>,
    failures: u32,
    last_error: Option<IssueError>,
}

/// Collects what a store is made of.
pub struct Builder {
    shared: Shared,
}

impl Builder {
    /// How the configurations of certificates are built, and the clock.
    #[must_use]
    pub fn options(mut self, options: TlsOptions) -> Self {
        self.shared.options = options;
        self
    }

    /// Keeps SVIDs in this directory, so that a restart needs no authority.
    #[must_use]
    pub fn directory(mut self, directory: PrivateDir) -> Self {
        self.shared.directory = Some(directory);
        self
    }

    /// Tells `events` what happens.
    #[must_use]
    pub fn events(mut self, events: Arc<dyn SvidEvents>) -> Self {
        self.shared.events = events;
        self
    }

    /// The store; its tasks run on the current tokio runtime, whichever thread uses it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn build(self) -> SvidStore {
        SvidStore {
            inner: Arc::new(Inner {
                shared: Arc::new(self.shared),
                runtime: Handle::current(),
                entries: Mutex::default(),
            }),
        }
    }
}

impl SvidStore {
    /// A store without persistence, with the system's clock. Call it inside a tokio runtime.
    #[must_use]
    pub fn new(source: Arc<dyn SvidSource>, policy: RotationPolicy) -> Self {
        Self::builder(source, policy).build()
    }

    /// A store with more to say about it.
    #[must_use]
    pub fn builder(source: Arc<dyn SvidSource>, policy: RotationPolicy) -> Builder {
        Builder {
            shared: Shared {
                slots: Semaphore::new(policy.concurrency.max(1)),
                source,
                policy,
                options: TlsOptions::default(),
                directory: None,
                events: Arc::new(NoEvents),
            },
        }
    }

    /// The certificate of `identity` now and after every renewal; `None` while there is no valid one.
    ///
    /// The identity is kept while a receiver lives, and for [`RotationPolicy::linger`] after the last one.
    #[must_use]
    pub fn watch(&self, identity: &Identity) -> watch::Receiver<Option<Arc<WorkloadCert>>> {
        self.with_entry(identity, |entry| entry.cert.subscribe())
    }

    /// Asks for a certificate before anybody needs it, and keeps the identity until [`SvidStore::forget`].
    pub fn prefetch(&self, identity: &Identity) {
        self.with_entry(identity, |entry| {
            entry.pinned.store(true, Ordering::Relaxed)
        });
    }

    /// The certificate of `identity`, waited for up to [`RotationPolicy::get_timeout`].
    ///
    /// # Errors
    /// The last failure to obtain one. A refusal by the authority is returned without further waiting.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<WorkloadCert>, GetError> {
        let (mut cert, mut progress) = self.with_entry(identity, |entry| {
            (entry.cert.subscribe(), entry.progress.subscribe())
        });
        let waiting = async {
            loop {
                if let Some(cert) = cert.borrow_and_update().clone() {
                    return Ok(cert);
                }
                let last_error = progress.borrow_and_update().last_error.clone();
                if let Some(error @ IssueError::Refused { .. }) = last_error {
                    return Err(GetError::None {
                        identity: identity.clone(),
                        source: Some(error),
                    });
                }
                let changed = tokio::select! {
                    changed = cert.changed() => changed,
                    changed = progress.changed() => changed,
                };
                if changed.is_err() {
                    return Err(GetError::Forgotten(identity.clone()));
                }
            }
        };
        let timeout = self.inner.shared.policy.get_timeout;
        let waited = tokio::time::timeout(timeout, waiting).await;
        waited.unwrap_or_else(|_elapsed| {
            Err(GetError::None {
                identity: identity.clone(),
                source: progress.borrow().last_error.clone(),
            })
        })
    }

    /// Drops the identity at once, its key in the directory too: watchers see `None`, then a closed channel.
    pub fn forget(&self, identity: &Identity) {
        let entry = self.inner.entries().remove(identity);
        if let Some(entry) = entry {
            entry.stop();
            self.inner.shared.forgotten(identity);
        }
    }

    /// Every identity that is kept, ordered.
    #[must_use]
    pub fn snapshot(&self) -> Vec<SvidStatus> {
        let mut all: Vec<SvidStatus> = self
            .inner
            .entries()
            .iter()
            .map(|(identity, entry)| entry.status(identity))
            .collect();
        all.sort_by(|one, other| one.identity.cmp(&other.identity));
        all
    }

    fn with_entry<T>(&self, identity: &Identity, use_it: impl FnOnce(&Entry) -> T) -> T {
        let mut entries = self.inner.entries();
        if let Some(entry) = entries.get(identity) {
            return use_it(entry);
        }
        let entry = Arc::new(Entry {
            cert: watch::Sender::new(None),
            progress: watch::Sender::default(),
            pinned: AtomicBool::new(false),
            task: Mutex::default(),
        });
        // Before the task starts, so that it finds its first user.
        let used = use_it(&entry);
        let life = entry::Life {
            identity: identity.clone(),
            entry: Arc::clone(&entry),
            shared: Arc::clone(&self.inner.shared),
            store: Arc::downgrade(&self.inner),
        };
        let task = self.inner.runtime.spawn(life.run());
        entry.set_task(task.abort_handle());
        entries.insert(identity.clone(), entry);
        used
    }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<Identity, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops `entry` unless somebody uses it again. The lock is the one under which users appear.
    fn forget_unused(&self, identity: &Identity, entry: &Arc<Entry>) -> bool {
        let mut entries = self.entries();
        let unused = !entry.pinned.load(Ordering::Relaxed) && entry.cert.receiver_count() == 0;
        if unused
            && entries
                .get(identity)
                .is_some_and(|now| Arc::ptr_eq(now, entry))
        {
            entries.remove(identity);
        }
        unused
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for entry in self.entries().values() {
            entry.abort();
        }
    }
}

impl Shared {
    fn forgotten(&self, identity: &Identity) {
        if let Some(Err(error)) = self.directory.as_ref().map(|kept| kept.remove(identity)) {
            tracing::warn!(%identity, error = &error as &dyn std::error::Error, "a key that is no longer needed stays in memory");
        }
        self.events.forgotten(identity);
    }
}

impl Entry {
    fn status(&self, identity: &Identity) -> SvidStatus {
        let progress = self.progress.borrow().clone();
        SvidStatus {
            identity: identity.clone(),
            state: progress.state,
            cert: self.cert.borrow().as_ref().map(|cert| cert.info().clone()),
            renewal: progress.renewal,
            failures: progress.failures,
            last_error: progress.last_error,
            watchers: self.cert.receiver_count(),
        }
    }

    fn set_task(&self, task: AbortHandle) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    fn abort(&self) {
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }

    fn stop(&self) {
        self.abort();
        self.cert.send_replace(None);
    }
}

impl fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidStore")
            .field("identities", &self.inner.entries().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
