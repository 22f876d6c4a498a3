//! The configuration of this node, kept up to date over one delta ADS stream and kept on disk for the next start.
//!
//! Every type is subscribed with a wildcard. After a lost stream the client says which versions it holds, so that only
//! changes are sent; resources that the handler rejected are left out of that list and come again.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use runtime::file::WriteError;
use tls::store::Backoff;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::causes;
use crate::controller::Controller;
use crate::node::NodeInfo;
use crate::snapshot::{self, Stored};
use crate::status::Status;
use kept::Kept;

mod kept;
mod stream;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whom to ask.
    pub controller: Controller,
    /// Who asks.
    pub node: NodeInfo,
    /// Type URLs to subscribe, in this order.
    pub types: Vec<String>,
    /// Where the last good configuration is kept; `None` keeps none.
    pub snapshot: Option<PathBuf>,
    /// Waits between streams that fail.
    pub backoff: Backoff,
    /// A stream that lasted this long starts the backoff anew.
    pub healthy_after: Duration,
    /// A larger response ends the stream, in bytes.
    pub max_response: usize,
}

impl Config {
    /// With default limits and without a snapshot.
    #[must_use]
    pub fn new(controller: Controller, node: NodeInfo, types: Vec<String>) -> Self {
        Self {
            controller,
            node,
            types,
            snapshot: None,
            backoff: Backoff {
                first: Duration::from_millis(10),
                max: Duration::from_secs(15),
            },
            healthy_after: Duration::from_secs(10),
            max_response: 200 << 20,
        }
    }
}

/// A resource as it came: not decoded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RawResource {
    /// Its name within its type; who keeps it does not have to copy it.
    pub name: Arc<str>,
    /// Its version, opaque.
    pub version: String,
    /// The encoded message.
    pub bytes: Bytes,
}

/// A resource that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Takes configuration.
pub trait Handler {
    /// Takes one response of one type as a whole and names what it cannot use; the rest is in force.
    ///
    /// Called with everything from the snapshot first, before a connection is tried.
    fn apply(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
    ) -> Vec<Rejection>;

    /// Takes a response that is a part of what belongs together, where `more` of it follows. Nothing is decided with it
    /// before the last part. If the stream breaks, the next one begins with a response that ends it.
    fn apply_part(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
        more: bool,
    ) -> Vec<Rejection> {
        let _more = more;
        self.apply(type_url, updated, removed)
    }
}

/// A client that does not run yet.
pub struct Client {
    config: Config,
    shared: Arc<Shared>,
}

/// What the stream and the writer of the snapshot both see.
struct Shared {
    /// By type; a type that the controller has never answered for is not there.
    held: Mutex<Kept>,
    changed: Notify,
    unwritten: AtomicBool,
    writing: Mutex<()>,
    status: watch::Sender<Status>,
}

impl Client {
    /// A client that will do what `config` says.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let status = Status::new(&config.types);
        Self {
            config,
            shared: Arc::new(Shared {
                held: Mutex::default(),
                changed: Notify::new(),
                unwritten: AtomicBool::new(false),
                writing: Mutex::default(),
                status: watch::Sender::new(status),
            }),
        }
    }

    /// How far the configuration has come, now and after every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Writes the snapshot when it must not wait.
    #[must_use]
    pub fn flusher(&self) -> Flusher {
        Flusher {
            shared: Arc::clone(&self.shared),
            path: self.config.snapshot.clone(),
            node: self.config.node.node.clone(),
        }
    }

    /// Gives the snapshot to `handler`, then keeps it up to date until `stop` resolves; then writes the snapshot.
    ///
    /// Nothing of this fails for good: every trouble is on the status and tried again.
    pub async fn run(self, mut handler: impl Handler, stop: impl Future<Output = ()>) {
        self.restore(&mut handler);
        tokio::select! {
            () = stop => {}
            () = self.keep_connected(&mut handler) => {}
            () = self.keep_written() => {}
        }
        if self.shared.unwritten.load(Ordering::Acquire) {
            self.write().await;
        }
    }

    /// Before anything else: what was good when we last ran.
    fn restore(&self, handler: &mut impl Handler) {
        let Some(path) = &self.config.snapshot else {
            return;
        };
        let stored = match snapshot::read(path, &self.config.node.node) {
            Ok(Some(stored)) => stored,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the configuration on disk is not used"
                );
                self.shared
                    .status
                    .send_modify(|status| status.snapshot_error = Some(causes(&error)));
                return;
            }
        };
        for (type_url, resources) in stored {
            if self.config.types.contains(&type_url) {
                self.restore_type(handler, &type_url, resources);
            }
        }
        // The file becomes this client's own, also beside an earlier one, and contents leave memory.
        self.shared.change();
    }

    fn restore_type(
        &self,
        handler: &mut impl Handler,
        type_url: &str,
        mut resources: BTreeMap<String, Stored>,
    ) {
        let raw = resources
            .iter()
            .map(|(name, stored)| RawResource {
                name: name.as_str().into(),
                version: stored.version.clone().unwrap_or_default(),
                bytes: stored.bytes.clone(),
            })
            .collect();
        for rejection in handler.apply(type_url, raw, Vec::new()) {
            tracing::warn!(
                type_url,
                name = rejection.name,
                reason = rejection.reason,
                "a resource from disk is not used"
            );
            resources.remove(&*rejection.name);
        }
        let count = self.shared.held().restore(type_url, resources);
        tracing::info!(
            type_url,
            resources = count,
            "configuration from disk is in force"
        );
        self.shared.status.send_modify(|status| {
            let one = status.types.entry(type_url.to_owned()).or_default();
            one.restored = true;
            one.resources = count;
        });
    }

    async fn keep_connected(&self, handler: &mut impl Handler) {
        let mut failures = 0;
        loop {
            let start = Instant::now();
            let error = stream::run(&self.config, &self.shared, handler).await;
            if start.elapsed() >= self.config.healthy_after {
                failures = 0;
            }
            failures += 1;
            let wait = self
                .config
                .backoff
                .wait(failures, rand::random_range(0.0..1.0));
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                wait_ms = wait.as_millis(),
                "no stream to the controller; the configuration in force stays"
            );
            self.shared.status.send_modify(|status| {
                status.connected = false;
                status.last_error = Some(causes(&error));
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Writes after changes, at most every [`WRITE_PAUSE`] and with at most a tenth of the time spent on it.
    async fn keep_written(&self) {
        let mut pause = WRITE_PAUSE;
        loop {
            self.shared.changed.notified().await;
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            self.write().await;
            pause = WRITE_PAUSE.max(start.elapsed() * 10);
        }
    }

    async fn write(&self) {
        if self.config.snapshot.is_some() {
            self.flusher().flush().await;
        }
    }
}

/// Writes the snapshot of a [`Client`] at once. What a client has been given before it is in there survives
/// whatever happens to the process.
#[derive(Clone)]
pub struct Flusher {
    shared: Arc<Shared>,
    path: Option<PathBuf>,
    node: String,
}

impl Flusher {
    /// Returns when everything that was taken until now is on disk, or cannot be; says whether it is. Trouble is on
    /// the client's status.
    pub async fn flush(&self) -> bool {
        let Some(path) = self.path.clone() else {
            return false;
        };
        let (shared, node) = (Arc::clone(&self.shared), self.node.clone());
        let write = move || shared.write(&path, &node);
        let trouble = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the configuration is not kept on disk"
                );
                Some(causes(&error))
            }
            // Only at the end of the runtime.
            Err(_cancelled) => return false,
        };
        let is_kept = trouble.is_none();
        self.shared.status.send_if_modified(|status| {
            let changed = status.snapshot_error != trouble;
            status.snapshot_error = trouble;
            changed
        });
        is_kept
    }
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Writes what is held now. The last of several writes, wherever they run, writes the newest state.
    fn write(&self, path: &Path, node: &str) -> Result<(), WriteError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have written it while this waited.
        if !self.unwritten.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Contents are shared, so this copies names only.
        let copy = self.held().copy();
        let (file, places) = copy
            .write(path, node)
            .inspect_err(|_| self.unwritten.store(true, Ordering::Release))?;
        self.held().written(&copy, file, &places);
        Ok(())
    }

    fn change(&self) {
        self.unwritten.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    fn held(&self) -> MutexGuard<'_, Kept> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A burst of changes is written once.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
