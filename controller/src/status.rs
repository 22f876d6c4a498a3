//! What the cluster is told of policies, and of Istio's traffic objects: whether each is accepted; and of a policy whether all
//! nodes act by it.
//!
//! Every replica notes in a ConfigMap of its own which policies all of its nodes have taken, at most once a second. The one
//! that holds the Lease puts these together and writes `status.conditions` by server-side apply. A policy is written when
//! its own state changes; that a node joins or leaves rewrites none. Where somebody else keeps conditions, such as Istio's
//! control plane, they are left to it. Losing the Lease, or an API server that cannot be reached, stops nothing but this.

mod conditions;
pub(crate) mod gateways;
pub(crate) mod ingresses;
mod lease;
mod progress;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use compile::diagnostics::Diagnostics;
use compile::index::authorization::is_for_want_of_a_waypoint;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use manifest::{Diagnostic, ObjectKey, ObjectKind};
use parking_lot::Mutex;
use proto::type_url;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use self::conditions::{Condition, State, accepted, merge, programmed};
pub use self::lease::Lease;
use self::progress::{Progress, Replicas};
pub(crate) use self::traffic::is_told;
use self::traffic::{Lint, broken};
use crate::pipeline::Viewer;
use crate::serve::sync::SyncStatus;
use crate::source::kubernetes::resource;

/// A policy of the cluster, as it was last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// The generation of the snapshot that has it.
    pub snapshot: u64,
}

/// All policies by key.
pub type Policies = BTreeMap<ObjectKey, Tracked>;

/// Which replica of which installation this is.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The installation's namespace.
    pub namespace: String,
    /// The name of this replica's pod, or another that no other replica has.
    pub name: String,
    /// The uid of the pod, with which go what this replica notes.
    pub pod_uid: Option<String>,
}

/// What the writer looks at.
pub struct Views {
    /// Policies as they are compiled.
    pub policies: watch::Receiver<Arc<Policies>>,
    /// What is wrong with them.
    pub diagnostics: Arc<Mutex<Diagnostics>>,
    /// Which nodes have taken what.
    pub sync: Arc<Mutex<SyncStatus>>,
    /// Asked what is surely not meant of traffic objects.
    pub viewer: Viewer,
}

fn is_policy(key: &ObjectKey) -> bool {
    match key.kind() {
        ObjectKind::Known(kind) => kind.policy().is_some(),
        ObjectKind::Foreign { .. } => false,
    }
}

/// Notes what this replica's nodes have taken, and writes statuses while this replica holds the Lease, which it tells `leads`.
pub async fn run(client: Client, replica: Replica, views: Views, leads: watch::Sender<bool>) {
    let leading = leads.subscribe();
    let lease = Lease::new(client.clone(), &replica.namespace, &replica.name);
    let election = tokio::spawn(lease.run(leads));
    let _ends_with_this = AbortOnDrop(election);
    let replicas = Replicas::new(client.clone(), &replica);
    let mut writer = Writer::new(client, &replica.name);
    let mut noted = Progress::default();
    let mut lint = Lint::default();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let policies = Arc::clone(&views.policies.borrow());
        let progress = progress::of(&policies, &views.sync.lock());
        if progress != noted {
            match replicas.note(&progress).await {
                Ok(()) => noted = progress.clone(),
                Err(error) => debug!(%error, "cannot note what nodes have taken"),
            }
        }
        if !*leading.borrow() {
            writer.forget();
            continue;
        }
        match replicas.others().await {
            Ok(mut all) => {
                all.push(progress);
                let mut findings = views.diagnostics.lock().all();
                let mut at_waypoints = BTreeSet::new();
                if findings.iter().any(is_for_want_of_a_waypoint) {
                    at_waypoints = views.viewer.at_waypoints().await.unwrap_or_default();
                }
                findings.extend_from_slice(lint.newest(&views.viewer).await);
                let said = Said {
                    findings: &findings,
                    at_waypoints: &at_waypoints,
                };
                writer.write(&policies, said, &all).await;
            }
            Err(error) => debug!(%error, "cannot read what nodes of other replicas have taken"),
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What there is to say of objects.
#[derive(Clone, Copy)]
struct Said<'s> {
    findings: &'s [Diagnostic],
    /// Policies that a waypoint is told of, as `namespace/name`.
    at_waypoints: &'s BTreeSet<String>,
}

/// Writes what has changed since it wrote last.
struct Writer {
    client: Client,
    recorder: Recorder,
    written: HashMap<ObjectKey, (Arc<str>, State)>,
    /// Objects whose conditions somebody else keeps, by uid.
    others: BTreeSet<Arc<str>>,
}

impl Writer {
    fn new(client: Client, name: &str) -> Self {
        let reporter = Reporter {
            controller: "keelson-controller".to_owned(),
            instance: Some(name.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            written: HashMap::new(),
            others: BTreeSet::new(),
        }
    }

    /// Another replica writes by now.
    fn forget(&mut self) {
        self.written.clear();
    }

    async fn write(&mut self, policies: &Policies, said: Said<'_>, replicas: &[Progress]) {
        let Said {
            findings,
            at_waypoints,
        } = said;
        let mut of: BTreeMap<(&ObjectKind, &str, &str), Vec<&Diagnostic>> = BTreeMap::new();
        for finding in findings {
            if let Some(kind) = &finding.kind {
                let key = (kind, &*finding.namespace, &*finding.name);
                of.entry(key).or_default().push(finding);
            }
        }
        let broken = broken(policies, findings);
        self.written
            .retain(|key, _| policies.contains_key(key) || broken.contains_key(key));
        for (key, tracked) in policies.iter().chain(&broken) {
            let said = of.remove(&(key.kind(), key.namespace(), key.name()));
            let said = said.unwrap_or_default();
            let generation = conditions::generation(tracked.generation, &said);
            let is_at_waypoint = is_policy(key)
                && at_waypoints.contains(&format!("{}/{}", key.namespace(), key.name()));
            let state = State {
                generation,
                in_effect: tracked.generation,
                accepted: accepted(&said, is_at_waypoint),
                programmed: is_policy(key).then(|| programmed(tracked, replicas)),
            };
            let known = self.written.get(key);
            if known.is_some_and(|(uid, known)| *uid == tracked.uid && known.says_all_of(&state)) {
                continue;
            }
            match self.one(key, tracked, &state).await {
                Ok(()) => {
                    let uid = Arc::clone(&tracked.uid);
                    self.written.insert(key.clone(), (uid, state));
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => warn!(object = %key, %error, "cannot write the status"),
            }
        }
    }

    async fn one(&mut self, key: &ObjectKey, tracked: &Tracked, state: &State) -> kube::Result<()> {
        let ObjectKind::Known(kind) = key.kind() else {
            return Ok(());
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), key.namespace(), &resource(*kind));
        let there = api.get(key.name()).await?;
        if there.metadata.uid.as_deref() != Some(&*tracked.uid) {
            return Ok(());
        }
        let empty = Vec::new();
        let conditions = there
            .data
            .pointer("/status/conditions")
            .and_then(serde_json::Value::as_array);
        let conditions = conditions.unwrap_or(&empty);
        let Some(merged) = merge(conditions, state) else {
            if self.others.insert(Arc::clone(&tracked.uid)) {
                info!(object = %key, "somebody else keeps the conditions of this object; they are left to it");
            }
            return Ok(());
        };
        if merged.changed {
            let resource = resource(*kind);
            let patch = serde_json::json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "status": {
                    "observedGeneration": state.generation,
                    "conditions": merged.conditions,
                },
            });
            let params = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&patch);
            match api.patch_status(key.name(), &params, &patch).await {
                // Its kind has no status, and an event says it all.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        if merged.newly_refused {
            self.say(key, tracked, &state.accepted).await;
        }
        Ok(())
    }

    /// What its author has to notice, where `kubectl describe` shows it.
    async fn say(&self, key: &ObjectKey, tracked: &Tracked, why: &Condition) {
        let ObjectKind::Known(kind) = key.kind() else {
            return;
        };
        let event = Event {
            type_: EventType::Warning,
            reason: why.reason.to_owned(),
            note: Some(short(&why.message)),
            action: "Compile".to_owned(),
            secondary: None,
        };
        let resource = resource(*kind);
        let about = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            namespace: Some(key.namespace().to_owned()),
            name: Some(key.name().to_owned()),
            uid: Some(tracked.uid.to_string()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            debug!(object = %key, %error, "cannot write an event");
        }
    }
}

/// Notes of events have a limit.
fn short(text: &str) -> String {
    text.chars().take(MAX_NOTE).collect()
}

/// Whether a stream has refused policies.
fn refuses(stream: &crate::serve::sync::StreamStatus) -> bool {
    let of_policies = stream.types.get(type_url::AUTHORIZATION);
    of_policies.is_some_and(|status| status.nack.is_some())
}

const MANAGER: &str = "keelson-controller";
/// How often it is looked whether there is something to write.
const EVERY: Duration = Duration::from_secs(1);
/// Characters of an event's note.
const MAX_NOTE: usize = 1000;
