//! The one task that owns the index: takes batches of objects and reports of nodes, publishes snapshots.

mod gateways;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manifest::{Diagnostic, ObjectKey, ObjectKind, Origin, Severity};
use parking_lot::Mutex;
use runtime::admin::Condition;
use runtime::file::{PRIVATE, atomic_write_mode};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use self::gateways::Look;
pub use self::gateways::{Ended, Secrets, Viewer};
use crate::captures::{Captures, Ledger, News};
use crate::metrics::{Metrics, SeverityLabel, type_label};
use crate::source::Batch;
use crate::status::{self, Policies, Tracked};
use compile::diagnostics::Diagnostics;
use compile::index::{Captured, Index, MeshConfig, Word};
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
    /// Answered when the report is in effect and kept: false if the node has said something else to another replica
    /// meanwhile.
    pub done: oneshot::Sender<bool>,
}

/// What replicas of one controller share.
pub struct Shared {
    /// Where it is written.
    pub captures: Captures,
    /// What becomes known of it.
    pub news: mpsc::Receiver<News>,
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
    shared: Option<Shared>,
    secrets: Option<Secrets>,
    settings: Option<watch::Receiver<MeshConfig>>,
    ledger: Ledger,
    told: Told,
    /// Policies that have come since the last snapshot, with uid and generation; nothing for those that are gone.
    fresh: Vec<(ObjectKey, Option<ObjectVersion>)>,
    policies: watch::Sender<Arc<Policies>>,
    looks: (mpsc::Sender<Look>, mpsc::Receiver<Look>),
}

/// Uid and generation of an object.
type ObjectVersion = (Arc<str>, i64);

/// How many batches or reports may wait.
const QUEUE: usize = 64;

/// How long pods that leave the mesh wait for nodes that are connected and do not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long replicas may be behind each other before a node of one refuses what a node of another still does. Nothing is
/// let through by it: the wall stands a little later, and pods leave a little later.
const REPLICAS_HEAR: Duration = Duration::from_millis(500);

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
                shared: None,
                secrets: None,
                settings: None,
                ledger: Ledger::default(),
                told: Told::default(),
                fresh: Vec::new(),
                policies: watch::Sender::default(),
                looks: mpsc::channel(QUEUE),
            },
            published,
        )
    }

    /// One of several that share what nodes report.
    #[must_use]
    pub fn with_shared(mut self, shared: Option<Shared>) -> Self {
        self.shared = shared;
        self
    }

    /// With a source that reads the Secrets that it is told to read.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Option<Secrets>) -> Self {
        self.secrets = secrets;
        self
    }

    /// With settings that may change.
    #[must_use]
    pub fn with_settings(mut self, settings: watch::Receiver<MeshConfig>) -> Self {
        self.settings = Some(settings);
        self
    }

    /// The current findings, shared.
    pub fn diagnostics(&self) -> Arc<Mutex<Diagnostics>> {
        Arc::clone(&self.diagnostics)
    }

    /// The policies of the cluster, each with the generation of the snapshot that has it.
    pub fn policies(&self) -> watch::Receiver<Arc<Policies>> {
        self.policies.subscribe()
    }

    /// Takes in the first batch and what nodes reported before a restart, so that nothing half-known is ever served.
    pub async fn start(&mut self, batch: Batch) {
        self.take(batch);
        while let Some(shared) = &mut self.shared {
            match shared.news.recv().await {
                Some(News::Listed) | None => break,
                Some(news) => self.hear(news),
            }
        }
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
            let patience_ends = self.patience_ends();
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
                look = self.looks.1.recv() => {
                    if let Some(look) = look {
                        self.show(look);
                    }
                    continue;
                }
                news = next(&mut self.shared) => {
                    read_at = Instant::now();
                    self.hear(news);
                }
                mesh = changed(&mut self.settings) => {
                    read_at = Instant::now();
                    self.set_mesh(mesh);
                }
                () = sleep_until(self.told.next()), if self.told.is_waiting() => read_at = Instant::now(),
                changed = taken.changed() => {
                    read_at = Instant::now();
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(patience_ends), if self.waiting_since.is_some() => {
                    read_at = Instant::now();
                    warn!("a node has not taken for long that pods leave the mesh; they leave without it");
                    self.index.stop_waiting();
                }
            }
            self.taken = *taken.borrow_and_update();
            while let Some(news) = self
                .shared
                .as_mut()
                .and_then(|shared| shared.news.try_recv().ok())
            {
                self.hear(news);
            }
            // Whatever came meanwhile goes into the same snapshot.
            while let Ok(batch) = batches.try_recv() {
                self.take(batch);
            }
            while let Ok(report) = reports.try_recv() {
                answers.push(self.report(report));
            }
            self.flush(read_at);
            for (node, done) in answers {
                self.keep(&node, done);
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        for key in &batch.removals {
            self.index.remove(key);
            if is_told(key) {
                self.fresh.push((key.clone(), None));
            }
        }
        for upsert in &batch.upserts {
            self.index.apply(upsert);
            let key = upsert.object.key();
            if let (true, Origin::Object { uid, generation }) = (is_told(&key), &upsert.origin) {
                let version = (Arc::clone(uid), *generation);
                self.fresh.push((key, Some(version)));
            }
        }
        if let Some(unreadable) = batch.unreadable {
            self.index.set_unreadable(unreadable);
        }
        self.objects = batch.objects;
        self.complete.set(batch.unread == 0);
        if let Some(found) = batch.diagnostics {
            let new = self.diagnostics.lock().replace_source(found);
            log(&new);
        }
    }

    fn set_mesh(&mut self, mesh: MeshConfig) {
        if let Err(error) = self.index.set_mesh(mesh) {
            error!(%error, "the settings are not in force");
        }
    }

    fn report(&mut self, report: Report) -> (Arc<str>, oneshot::Sender<bool>) {
        let Report { node, word, done } = report;
        for pod in self.index.report(&node, word) {
            warn!(
                node,
                pod,
                "the node holds a pod captured that is none of its own by any object; its addresses are not reached in plain"
            );
        }
        (node.into(), done)
    }

    /// Writes down what a node holds, and answers its report when that is done.
    fn keep(&mut self, node: &Arc<str>, done: oneshot::Sender<bool>) {
        let Some(shared) = &self.shared else {
            // A caller that hung up needs no answer.
            let _unheard: Result<(), bool> = done.send(true);
            return;
        };
        let pods = self.index.held_by(node);
        if let Some(write) = self.ledger.reported(node, pods, done) {
            tokio::spawn(shared.captures.clone().write(write));
        }
    }

    /// Takes in what has become known of what is written.
    fn hear(&mut self, news: News) {
        let (node, pods) = match news {
            News::Listed => return,
            News::Gone(node) => return self.ledger.gone(&node),
            News::Done(node, written) => {
                if let (Some(write), Some(shared)) =
                    (self.ledger.done(&node, written), &self.shared)
                {
                    tokio::spawn(shared.captures.clone().write(write));
                }
                return;
            }
            News::Heard(node, written) => {
                let pods = written.pods.clone();
                if !self.ledger.heard(&node, written) {
                    return;
                }
                (node, pods)
            }
            News::Lost(node, written) => {
                let pods = written.as_ref().map(|written| written.pods.clone());
                info!(node = &*node, "the node reports to another replica by now");
                let (true, Some(pods)) = (self.ledger.lost(&node, written), pods) else {
                    return;
                };
                (node, pods)
            }
        };
        let word = Word {
            pods,
            partial: false,
        };
        // Who reported it has said which of them are strange.
        let _strange: Vec<String> = self.index.report(&node, word);
    }

    fn patience_ends(&self) -> tokio::time::Instant {
        let since = self.waiting_since.unwrap_or_else(Instant::now);
        (since + PATIENCE).into()
    }

    fn flush(&mut self, read_at: Instant) {
        let taken = self.told.by_all(self.taken);
        self.index.settle(taken);
        self.flush_once(read_at);
        // What has just been told to nobody, because nobody is served, has been taken by all.
        while self.index.settle(self.told.by_all(self.taken)) {
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
        self.name_secrets();
        if changes.captured {
            self.save_captured();
            self.write_ours();
        }
        if changes.resources {
            let snapshot = self.index.snapshot().clone();
            info!(
                generation = snapshot.generation,
                addresses = snapshot.addresses.len(),
                authorizations = snapshot.authorizations.len(),
                "configuration compiled"
            );
            if self.shared.is_some() {
                self.told.publish(snapshot.generation);
            }
            self.publish
                .send_replace(Arc::new(Published { snapshot, read_at }));
        }
        self.track();
    }

    /// What came is in the snapshot that is served now.
    fn track(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let snapshot = self.index.snapshot().generation;
        let fresh = std::mem::take(&mut self.fresh);
        self.policies.send_modify(|policies| {
            let policies = Arc::make_mut(policies);
            for (key, version) in fresh {
                match version {
                    Some((uid, generation)) => {
                        let tracked = Tracked {
                            uid,
                            generation,
                            snapshot,
                        };
                        policies.insert(key, tracked);
                    }
                    None => drop(policies.remove(&key)),
                }
            }
        });
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

    /// What objects say of pods is written down as well, by the replica that their node reports to.
    fn write_ours(&mut self) {
        let Some(shared) = &self.shared else { return };
        for node in self.ledger.ours() {
            if let Some(write) = self.ledger.holds(&node, self.index.held_by(&node)) {
                tokio::spawn(shared.captures.clone().write(write));
            }
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

/// Whether a status says what becomes of an object.
fn is_told(key: &ObjectKey) -> bool {
    match key.kind() {
        ObjectKind::Known(kind) => status::is_told(*kind),
        ObjectKind::Foreign { .. } => false,
    }
}

/// The settings, when they change; never without any.
async fn changed(settings: &mut Option<watch::Receiver<MeshConfig>>) -> MeshConfig {
    if let Some(settings) = settings
        && settings.changed().await.is_ok()
    {
        return settings.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// What becomes known of what is shared; never, where nothing is.
async fn next(shared: &mut Option<Shared>) -> News {
    match shared {
        Some(shared) => match shared.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Generations that nodes of other replicas may not know yet: those compile the same objects, and are trusted to have done
/// so after a while.
#[derive(Debug, Default)]
struct Told(VecDeque<(u64, Instant)>);

impl Told {
    fn publish(&mut self, generation: u64) {
        self.0
            .push_back((generation, Instant::now() + REPLICAS_HEAR));
    }

    /// What all nodes have taken, if those of this replica have taken `ours`.
    fn by_all(&mut self, ours: u64) -> u64 {
        let now = Instant::now();
        while self.0.front().is_some_and(|(_, at)| *at <= now) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some((generation, _)) => ours.min(generation.saturating_sub(1)),
            None => ours,
        }
    }

    fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }

    fn next(&self) -> tokio::time::Instant {
        let next = self.0.front().map(|(_, at)| *at);
        next.unwrap_or_else(Instant::now).into()
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
