//! What the API server has told, and what of it has not been passed on yet. Pure and synchronous.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use manifest::{Claim, Diagnostic, Kind, NamespacedName, ObjectKey, Severity, Upsert, read_object};
use serde_json::Value;

use crate::source::Batch;

/// One thing that the server says of a kind.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// A list of all its objects follows.
    ListStarts,
    /// An object of the list.
    Listed(Value),
    /// That was the list: what it did not name is gone.
    ListDone,
    /// An object is new or changed.
    Applied(Value),
    /// An object is gone.
    Deleted {
        /// Empty for kinds without namespaces.
        namespace: String,
        /// The name.
        name: String,
        /// Which of those that had the name.
        uid: String,
    },
    /// How an object stands that is followed by its name: there, not there, or why that cannot be told.
    Named(NamespacedName, Result<Option<Value>, String>),
    /// That one is followed no more.
    Unnamed(NamespacedName),
}

/// The objects of the server.
#[derive(Debug)]
pub(super) struct Memory {
    root_namespace: String,
    kinds: BTreeMap<Kind, List>,
    held: BTreeMap<ObjectKey, Held>,
    /// What has changed since the last batch: the object, or that it is gone.
    pending: BTreeMap<ObjectKey, Option<Arc<Upsert>>>,
    findings_changed: bool,
    /// Those that are followed by name and of which something is known, with why they cannot be read.
    named: BTreeMap<NamespacedName, Option<String>>,
    named_changed: bool,
    /// A batch was given: the first one holds everything.
    started: bool,
}

#[derive(Debug, Default)]
struct List {
    /// It has been listed once.
    complete: bool,
    /// The objects that the list in progress has named.
    running: Option<BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Held {
    uid: String,
    revision: Option<u64>,
    /// What the receiver has of it.
    version: Version,
    findings: Vec<Diagnostic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Nothing: it was never in good order, and is no policy.
    None,
    /// One that was in good order.
    Good,
    /// A policy that refuses because it cannot be read.
    Refusing,
}

impl Memory {
    /// Knows nothing yet of `kinds`.
    pub(super) fn new(root_namespace: &str, kinds: &[Kind]) -> Self {
        Self {
            root_namespace: root_namespace.to_owned(),
            kinds: kinds.iter().map(|kind| (*kind, List::default())).collect(),
            held: BTreeMap::new(),
            pending: BTreeMap::new(),
            findings_changed: false,
            named: BTreeMap::new(),
            named_changed: false,
            started: false,
        }
    }

    /// Takes in what the server says.
    pub(super) fn take(&mut self, kind: Kind, told: Told) {
        match told {
            Told::ListStarts => {
                self.kinds.entry(kind).or_default().running = Some(BTreeSet::new());
            }
            Told::Listed(object) => {
                let key = self.apply(kind, object, true);
                let running = &mut self.kinds.entry(kind).or_default().running;
                running.get_or_insert_default().insert(key);
            }
            Told::ListDone => {
                let list = self.kinds.entry(kind).or_default();
                list.complete = true;
                let named = list.running.take().unwrap_or_default();
                let of_kind = self.held.keys().filter(|key| is_of(key, kind));
                let gone: Vec<_> = of_kind
                    .filter(|key| !named.contains(*key))
                    .cloned()
                    .collect();
                for key in gone {
                    self.remove(key);
                }
            }
            Told::Applied(object) => {
                let key = self.apply(kind, object, false);
                // What appears while a list is being read is not gone for not being on it.
                if let Some(running) = &mut self.kinds.entry(kind).or_default().running {
                    running.insert(key);
                }
            }
            Told::Deleted {
                namespace,
                name,
                uid,
            } => {
                let namespace = if kind.is_namespaced() {
                    &*namespace
                } else {
                    ""
                };
                let key = ObjectKey::new(kind, namespace, &name);
                // Another may have the name by now.
                if self.held.get(&key).is_some_and(|held| held.uid == uid) {
                    self.remove(key);
                }
            }
            Told::Named(name, found) => {
                let key = ObjectKey::new(kind, &name.namespace, &name.name);
                let unreadable = match found {
                    Ok(Some(object)) => {
                        let _key = self.apply(kind, object, false);
                        None
                    }
                    Ok(None) => {
                        self.remove(key);
                        None
                    }
                    // What was known stays.
                    Err(why) => Some(why),
                };
                if self.named.get(&name).cloned().flatten() != unreadable {
                    self.named_changed = true;
                }
                self.named.insert(name, unreadable);
            }
            Told::Unnamed(name) => {
                self.remove(ObjectKey::new(kind, &name.namespace, &name.name));
                self.named_changed |= self.named.remove(&name).flatten().is_some();
            }
        }
    }

    /// Brings up to date of which objects that are followed by name something is known; says whether that changed.
    pub(super) fn tell_answered(&self, known: &mut BTreeSet<NamespacedName>) -> bool {
        if known.iter().eq(self.named.keys()) {
            return false;
        }
        *known = self.named.keys().cloned().collect();
        true
    }

    /// What changed since the last one; none before everything has been listed once, or where nothing changed.
    pub(super) fn batch(&mut self) -> Option<Batch> {
        let is_same = self.pending.is_empty() && !self.findings_changed && !self.named_changed;
        let nothing = is_same && self.started;
        if nothing || self.kinds.values().any(|list| !list.complete) {
            return None;
        }
        let mut batch = Batch::default();
        for (key, change) in std::mem::take(&mut self.pending) {
            match change {
                Some(upsert) => batch.upserts.push(upsert),
                None => batch.removals.push(key),
            }
        }
        batch.objects = self.held.len();
        if std::mem::take(&mut self.findings_changed) || !self.started {
            let mut all: Vec<_> = self
                .held
                .values()
                .flat_map(|held| held.findings.clone())
                .collect();
            all.sort();
            batch.diagnostics = Some(all);
        }
        if std::mem::take(&mut self.named_changed) {
            let unreadable = self.named.iter();
            let unreadable =
                unreadable.filter_map(|(name, why)| Some((name.clone(), why.clone()?)));
            batch.unreadable = Some(unreadable.collect());
        }
        self.started = true;
        Some(batch)
    }

    fn apply(&mut self, kind: Kind, object: Value, listed: bool) -> ObjectKey {
        let text = |pointer| {
            let found = object.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let namespace = if kind.is_namespaced() {
            text("/metadata/namespace")
        } else {
            String::new()
        };
        let key = ObjectKey::new(kind, &namespace, &text("/metadata/name"));
        let uid = text("/metadata/uid");
        let revision = text("/metadata/resourceVersion").parse().ok();
        let known = self.held.get(&key);
        // An event that comes again, or late. A list is the newest there is, even where the server was set back.
        let is_old =
            |held: &Held| held.uid == uid && held.revision >= revision && revision.is_some();
        if !listed && known.is_some_and(is_old) {
            return key;
        }
        let same = known
            .is_some_and(|held| held.uid == uid && held.revision == revision && revision.is_some());
        if same {
            return key;
        }
        let before = known.map_or(Version::None, |held| held.version);
        let mut decoded = read_object(kind, object, &self.root_namespace);
        let version = match decoded.claims.pop() {
            Some(Claim::Good(upsert)) => {
                self.pending.insert(key.clone(), Some(Arc::from(upsert)));
                Version::Good
            }
            Some(Claim::Broken {
                fallback, origin, ..
            }) => {
                let (version, message) = match (before, fallback) {
                    (Version::Good, _) => (before, Some("the last good version stays in effect")),
                    (_, Some(fallback)) => {
                        self.pending.insert(key.clone(), Some(Arc::from(fallback)));
                        (Version::Refusing, Some(REFUSES))
                    }
                    (_, None) => (before, None),
                };
                let said = message
                    .map(|text| Diagnostic::new(Severity::Warning, &origin, Some(&key), text));
                decoded.findings.extend(said);
                version
            }
            Some(Claim::Foreign { .. }) | None => before,
        };
        let findings = decoded.findings;
        let said = known.map_or(&[][..], |held| &held.findings);
        self.findings_changed |= said != findings;
        let held = Held {
            uid,
            revision,
            version,
            findings,
        };
        self.held.insert(key.clone(), held);
        key
    }

    fn remove(&mut self, key: ObjectKey) {
        let Some(held) = self.held.remove(&key) else {
            return;
        };
        self.findings_changed |= !held.findings.is_empty();
        if held.version != Version::None {
            self.pending.insert(key, None);
        }
    }
}

fn is_of(key: &ObjectKey, kind: Kind) -> bool {
    *key.kind() == manifest::ObjectKind::Known(kind)
}

const REFUSES: &str =
    "there is no earlier good version, so it refuses everything on its scope until it is repaired";

#[cfg(test)]
mod tests;
