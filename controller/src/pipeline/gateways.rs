//! What the pipeline has to do with gateways: it names the Secrets that they need, and says what there is to say of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compile::index::view::View;
use manifest::{Diagnostic, NamespacedName, ObjectKey};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::warn;

use super::Pipeline;
use crate::source::Batch;

/// The pipeline's end of what follows Secrets by their names.
#[derive(Debug)]
pub struct Secrets {
    /// Told which ones gateways name.
    pub wanted: watch::Sender<Arc<BTreeSet<NamespacedName>>>,
    /// Those of which something is known.
    pub answered: watch::Receiver<BTreeSet<NamespacedName>>,
}

/// Asks the pipeline what there is to say of gateways and routes.
#[derive(Clone, Debug)]
pub struct Viewer(mpsc::Sender<Look>);

/// A question of a [`Viewer`].
#[derive(Debug)]
pub(super) enum Look {
    /// What there is to say, unless it is what is known.
    View {
        known: Option<u64>,
        answer: oneshot::Sender<Option<(u64, Arc<View>)>>,
    },
    /// What is surely not meant of all traffic objects, unless it is what is known.
    Lint {
        known: Option<u64>,
        answer: oneshot::Sender<Option<(u64, Vec<Diagnostic>)>>,
    },
    /// The same of an object that somebody is about to write.
    LintOf {
        key: ObjectKey,
        content: Value,
        answer: oneshot::Sender<Vec<Diagnostic>>,
    },
    /// Which policies waypoints are told of.
    AtWaypoints {
        answer: oneshot::Sender<BTreeSet<String>>,
    },
}

/// Nobody answers any more.
#[derive(Debug, thiserror::Error)]
#[error("the pipeline has ended")]
pub struct Ended;

impl Viewer {
    /// The newest view with its version; `None` if that is the `known` one.
    ///
    /// # Errors
    /// The pipeline has ended.
    pub async fn newest(&self, known: Option<u64>) -> Result<Option<(u64, Arc<View>)>, Ended> {
        self.ask(|answer| Look::View { known, answer }).await
    }

    /// What is legal in traffic objects of the cluster and surely not meant, with its version; `None` if that is the `known`
    /// one.
    ///
    /// # Errors
    /// The pipeline has ended.
    pub async fn lint(&self, known: Option<u64>) -> Result<Option<(u64, Vec<Diagnostic>)>, Ended> {
        self.ask(|answer| Look::Lint { known, answer }).await
    }

    /// The same of an object that somebody is about to write.
    ///
    /// # Errors
    /// The pipeline has ended.
    pub async fn lint_of(&self, key: ObjectKey, content: Value) -> Result<Vec<Diagnostic>, Ended> {
        let look = |answer| Look::LintOf {
            key,
            content,
            answer,
        };
        self.ask(look).await
    }

    /// Authorization policies that a waypoint is told of, as `namespace/name`.
    ///
    /// # Errors
    /// The pipeline has ended.
    pub async fn at_waypoints(&self) -> Result<BTreeSet<String>, Ended> {
        self.ask(|answer| Look::AtWaypoints { answer }).await
    }

    async fn ask<T>(&self, look: impl FnOnce(oneshot::Sender<T>) -> Look) -> Result<T, Ended> {
        let (answer, answered) = oneshot::channel();
        let asked = self.0.send(look(answer)).await;
        asked.map_err(|_gone| Ended)?;
        answered.await.map_err(|_gone| Ended)
    }
}

impl Pipeline {
    /// What there is to say of gateways and routes.
    pub fn viewer(&self) -> Viewer {
        Viewer(self.looks.0.clone())
    }

    /// Tells which Secrets gateways name.
    pub(super) fn name_secrets(&self) {
        if let Some(secrets) = &self.secrets {
            let named = self.index.named_secrets();
            secrets.wanted.send_if_modified(|wanted| {
                let differs = wanted != named;
                if differs {
                    wanted.clone_from(named);
                }
                differs
            });
        }
    }

    /// Takes in the Secrets that gateways name, after the start: a gateway that is served without them would close its
    /// listeners. Who does not answer in time is gone on without.
    pub async fn complete(&mut self, batches: &mut mpsc::Receiver<Batch>) {
        let Some(secrets) = &self.secrets else { return };
        let mut answered = secrets.answered.clone();
        let end = tokio::time::Instant::now() + SECRETS_WITHIN;
        loop {
            // All that is known of them has been sent.
            let is_known = self
                .index
                .named_secrets()
                .is_subset(&answered.borrow_and_update());
            while let Ok(batch) = batches.try_recv() {
                self.take(batch);
            }
            self.flush(Instant::now());
            if is_known {
                return;
            }
            tokio::select! {
                changed = answered.changed() => if changed.is_err() {
                    return;
                },
                batch = batches.recv() => match batch {
                    Some(batch) => self.take(batch),
                    None => return,
                },
                () = sleep_until(end) => {
                    warn!("the API server does not answer about Secrets that gateways name; their listeners stay closed until it does");
                    return;
                }
            }
        }
    }

    pub(super) fn show(&self, look: Look) {
        let version = self.index.view_version();
        // Who does not wait any more needs no answer.
        match look {
            Look::View { known, answer } => {
                let is_new = known != Some(version);
                let view = is_new.then(|| (version, Arc::new(self.index.view())));
                drop(answer.send(view));
            }
            Look::Lint { known, answer } => {
                let is_new = known != Some(version);
                drop(answer.send(is_new.then(|| (version, self.index.lint()))));
            }
            Look::AtWaypoints { answer } => drop(answer.send(self.index.policies_at_waypoints())),
            Look::LintOf {
                key,
                content,
                answer,
            } => drop(answer.send(self.index.lint_of(&key, &content))),
        }
    }
}

/// How long nothing is served because a Secret that a gateway names has not been read yet.
const SECRETS_WITHIN: Duration = Duration::from_secs(5);
