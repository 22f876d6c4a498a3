//! The one task that owns the index: takes batches of objects and reports of nodes, publishes snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manifest::{Diagnostic, Severity};
use parking_lot::Mutex;
use runtime::admin::Condition;
use runtime::file::{PRIVATE, atomic_write_mode};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use crate::metrics::{Metrics, SeverityLabel, type_label};
use crate::source::Batch;
use compile::diagnostics::Diagnostics;
use compile::index::{Captured, Index, Word};
use compile::snapshot::Snapshot;

/// A snapshot and when the change behind it was read.
#[derive(Clone, Debug)]
pub struct Published {
    /// The resources.
    pub snapshot: Snapshot,
    /// For the convergence metric.
    pub read_at: Instant,
}

/// What nodes say.
#[derive(Debug)]
pub struct Report {
    /// The authenticated node.
    pub node: String,
    /// What it says about its captured pods.
    pub word: Word,
    /// Answered when the report is in effect: the names that are none of the node's pods.
    pub done: oneshot::Sender<Vec<String>>,
}

/// The pipeline before it runs.
pub struct Pipeline {
    index: Index,
    metrics: Metrics,
    diagnostics: Arc<Mutex<Diagnostics>>,
    publish: watch::Sender<Arc<Published>>,
    captured_file: PathBuf,
    /// Met while something is known of every file.
    complete: Condition,
    objects: usize,
    /// The newest generation that every node which is served has taken.
    taken: u64,
    /// Since when pods that leave the mesh wait for nodes.
    waiting_since: Option<Instant>,
}

/// How many batches or reports may wait.
const QUEUE: usize = 64;

/// How long pods that leave the mesh wait for nodes that are connected and do not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A queue for batches.
pub fn batches() -> (mpsc::Sender<Batch>, mpsc::Receiver<Batch>) {
    mpsc::channel(QUEUE)
}

/// A queue for reports.
pub fn reports() -> (mpsc::Sender<Report>, mpsc::Receiver<Report>) {
    mpsc::channel(QUEUE)
}

impl Pipeline {
    /// A pipeline around an index; which pods are captured is kept in `captured_file`. `complete` is told whether
    /// everything that the source names could be read.
    pub fn new(
        index: Index,
        metrics: Metrics,
        captured_file: PathBuf,
        complete: Condition,
    ) -> (Self, watch::Receiver<Arc<Published>>) {
        let empty = Published {
            snapshot: index.snapshot().clone(),
            read_at: Instant::now(),
        };
        let (publish, published) = watch::channel(Arc::new(empty));
        let diagnostics = Arc::default();
        (
            Self {
                index,
                metrics,
                diagnostics,
                publish,
                captured_file,
                complete,
                objects: 0,
                // Nobody is served yet.
                taken: u64::MAX,
                waiting_since: None,
            },
            published,
        )
    }

    /// The current findings, shared.
    pub fn diagnostics(&self) -> Arc<Mutex<Diagnostics>> {
        Arc::clone(&self.diagnostics)
    }

    /// Takes in the first batch and what nodes reported before a restart, so that nothing half-known is ever served.
    pub fn start(&mut self, batch: Batch) {
        self.take(batch);
        match read_captured(&self.captured_file) {
            Ok(captured) => self.index.restore(captured),
            Err(error) => {
                warn!(%error, "cannot read which pods were captured; waiting for the nodes to say so")
            }
        }
        self.flush(Instant::now());
    }

    /// Runs until both queues are closed. `taken` is the newest generation that every node which is served has
    /// taken.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut reports: mpsc::Receiver<Report>,
        mut taken: watch::Receiver<u64>,
    ) {
        loop {
            let mut answers = Vec::new();
            let read_at;
            tokio::select! {
                batch = batches.recv() => {
                    read_at = Instant::now();
                    let Some(batch) = batch else { return };
                    self.take(batch);
                }
                report = reports.recv() => {
                    read_at = Instant::now();
                    let Some(report) = report else { return };
                    answers.push(self.report(report));
                }
                changed = taken.changed() => {
                    read_at = Instant::now();
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(self.patience_ends()), if self.waiting_since.is_some() => {
                    read_at = Instant::now();
                    warn!("a node has not taken for long that pods leave the mesh; they leave without it");
                    self.index.stop_waiting();
                }
            }
            self.taken = *taken.borrow_and_update();
            // Whatever came meanwhile goes into the same snapshot.
            while let Ok(batch) = batches.try_recv() {
                self.take(batch);
            }
            while let Ok(report) = reports.try_recv() {
                answers.push(self.report(report));
            }
            self.flush(read_at);
            for (done, strange) in answers {
                // A caller that hung up needs no answer.
                let _unheard: Result<(), Vec<String>> = done.send(strange);
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        for key in &batch.removals {
            self.index.remove(key);
        }
        for upsert in &batch.upserts {
            self.index.apply(upsert);
        }
        self.objects = batch.objects;
        self.complete.set(batch.unread == 0);
        if let Some(found) = batch.diagnostics {
            let new = self.diagnostics.lock().replace_source(found);
            log(&new);
        }
    }

    fn report(&mut self, report: Report) -> (oneshot::Sender<Vec<String>>, Vec<String>) {
        let strange = self.index.report(&report.node, report.word);
        for pod in &strange {
            warn!(
                node = report.node,
                pod,
                "the node holds a pod captured that is none of its own by any object; its addresses are not reached in plain"
            );
        }
        (report.done, strange)
    }

    fn patience_ends(&self) -> tokio::time::Instant {
        let since = self.waiting_since.unwrap_or_else(Instant::now);
        (since + PATIENCE).into()
    }

    fn flush(&mut self, read_at: Instant) {
        self.index.settle(self.taken);
        self.flush_once(read_at);
        // What has just been told to nobody, because nobody is served, has been taken by all.
        while self.index.settle(self.taken) {
            self.flush_once(read_at);
        }
        self.waiting_since = self
            .index
            .is_waiting()
            .then(|| self.waiting_since.unwrap_or_else(Instant::now));
    }

    fn flush_once(&mut self, read_at: Instant) {
        let changes = self.index.flush();
        for (key, found) in changes.diagnostics {
            let new = self.diagnostics.lock().replace_object(&key, found);
            log(&new);
        }
        self.count();
        if changes.captured {
            self.save_captured();
        }
        if changes.resources {
            let snapshot = self.index.snapshot().clone();
            info!(
                generation = snapshot.generation,
                addresses = snapshot.addresses.len(),
                authorizations = snapshot.authorizations.len(),
                "configuration compiled"
            );
            self.publish
                .send_replace(Arc::new(Published { snapshot, read_at }));
        }
    }

    fn count(&self) {
        for severity in [Severity::Info, Severity::Warning, Severity::Error] {
            let label = SeverityLabel {
                severity: severity.as_str(),
            };
            let count = self.diagnostics.lock().count(severity);
            self.metrics
                .diagnostics
                .get_or_create(&label)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.metrics
            .objects
            .set(i64::try_from(self.objects).unwrap_or(i64::MAX));
        let snapshot = self.index.snapshot();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics
            .unreported_nodes
            .set(gauge(snapshot.unreported.len()));
        let pods = snapshot.unreported.values().map(imbl::OrdSet::len).sum();
        self.metrics.unreported_pods.set(gauge(pods));
        for (url, count) in [
            (proto::type_url::ADDRESS, snapshot.addresses.len()),
            (
                proto::type_url::AUTHORIZATION,
                snapshot.authorizations.len(),
            ),
            (proto::type_url::ANNOUNCED, snapshot.announced.len()),
        ] {
            self.metrics
                .resources
                .get_or_create(&type_label(url))
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn save_captured(&self) {
        let saved = serde_json::to_vec(&self.index.captured())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                atomic_write_mode(&self.captured_file, &bytes, PRIVATE)
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = saved {
            error!(%error, "cannot save which pods are captured; after a restart they count as uncaptured until their nodes report");
        }
    }
}

fn read_captured(path: &std::path::Path) -> Result<Captured, String> {
    match std::fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Captured::default()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Says each finding once, when it is new.
fn log(found: &[Diagnostic]) {
    for finding in found {
        match finding.severity {
            Severity::Error => error!(target: "keelson::diagnostics", "{finding}"),
            Severity::Warning => warn!(target: "keelson::diagnostics", "{finding}"),
            Severity::Info => info!(target: "keelson::diagnostics", "{finding}"),
        }
    }
}
