//! The one task that owns the index: takes batches of objects and reports of nodes, publishes snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use runtime::file::{PRIVATE, atomic_write_mode};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::diagnostics::{Diagnostic, Diagnostics, Severity};
use crate::index::{Captured, Index};
use crate::metrics::{Metrics, SeverityLabel, type_label};
use crate::snapshot::Snapshot;
use crate::source::Batch;

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
    /// The full set of its captured pods, by resource name.
    pub captured: Vec<String>,
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
    objects: usize,
}

/// How many batches or reports may wait.
const QUEUE: usize = 64;

/// A queue for batches.
pub fn batches() -> (mpsc::Sender<Batch>, mpsc::Receiver<Batch>) {
    mpsc::channel(QUEUE)
}

/// A queue for reports.
pub fn reports() -> (mpsc::Sender<Report>, mpsc::Receiver<Report>) {
    mpsc::channel(QUEUE)
}

impl Pipeline {
    /// A pipeline around an index; which pods are captured is kept in `captured_file`.
    pub fn new(
        index: Index,
        metrics: Metrics,
        captured_file: PathBuf,
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
                objects: 0,
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
            Ok(captured) => {
                for (node, pods) in captured.0 {
                    // What is strange here went away while nobody looked.
                    let _gone: Vec<String> = self.index.report(&node, pods);
                }
            }
            Err(error) => {
                warn!(%error, "cannot read which pods were captured; waiting for the nodes to say so")
            }
        }
        self.flush(Instant::now());
    }

    /// Runs until both queues are closed.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut reports: mpsc::Receiver<Report>,
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
            }
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
        if let Some(found) = batch.diagnostics {
            let new = self.diagnostics.lock().replace_source(found);
            log(&new);
        }
    }

    fn report(&mut self, report: Report) -> (oneshot::Sender<Vec<String>>, Vec<String>) {
        let strange = self.index.report(&report.node, report.captured);
        for pod in &strange {
            warn!(
                node = report.node,
                pod, "the node reports a pod as captured that is none of its own; ignored"
            );
        }
        (report.done, strange)
    }

    fn flush(&mut self, read_at: Instant) {
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
        for (url, count) in [
            (proto::type_url::ADDRESS, snapshot.addresses.len()),
            (
                proto::type_url::AUTHORIZATION,
                snapshot.authorizations.len(),
            ),
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
