//! What there is in the cluster of what was made for Gateways: followed in namespaces that have such Gateways, and nowhere
//! else, so that rights in these are enough.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::objects::{MANAGED_BY, MANAGER, Made};
use crate::source::kubernetes::{patient, whole};

/// Kind, namespace and name.
pub(super) type Key = (Made, String, String);

/// The objects, followed.
pub(super) struct Owned {
    client: Client,
    known: Arc<Mutex<Known>>,
    watches: BTreeMap<String, JoinSet<()>>,
    /// Told of each change.
    pub(super) changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    objects: BTreeMap<Key, Arc<Value>>,
    /// Whether a kind has been listed in a namespace, or why not.
    listed: BTreeMap<(Made, String), Result<(), String>>,
}

impl Owned {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: Arc::default(),
            watches: BTreeMap::new(),
            changed: Arc::default(),
        }
    }

    /// Follows another namespace.
    pub(super) fn follow(&mut self, namespace: &str) {
        if self.watches.contains_key(namespace) {
            return;
        }
        let mut watches = JoinSet::new();
        for made in Made::ALL {
            let (known, changed) = (Arc::clone(&self.known), Arc::clone(&self.changed));
            let namespace = namespace.to_owned();
            watches.spawn(follow(self.client.clone(), made, namespace, known, changed));
        }
        self.watches.insert(namespace.to_owned(), watches);
    }

    /// Forgets all.
    pub(super) fn stop(&mut self) {
        self.watches.clear();
        self.known = Arc::default();
    }

    /// Whether everything is known of a namespace.
    ///
    /// # Errors
    /// Why something cannot be known.
    pub(super) fn is_listed(&self, namespace: &str) -> Result<bool, String> {
        let known = self.known.lock();
        let mut all = true;
        for made in Made::ALL {
            match known.listed.get(&(made, namespace.to_owned())) {
                None => all = false,
                Some(Ok(())) => {}
                Some(Err(why)) => return Err(why.clone()),
            }
        }
        Ok(all)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.known.lock().objects.get(key).cloned()
    }

    /// Takes in the answer to a write, unless something newer is known.
    pub(super) fn put(&self, key: Key, object: Value) {
        self.known.lock().put(key, object);
    }

    /// All that is there.
    pub(super) fn all(&self) -> Vec<(Key, Arc<Value>)> {
        let known = self.known.lock();
        let all = known.objects.iter();
        all.map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect()
    }
}

impl Known {
    fn put(&mut self, key: Key, object: Value) {
        let is_newer = self.objects.get(&key).is_none_or(|known| {
            let same = known["metadata"]["uid"] == object["metadata"]["uid"];
            !same || revision(known) <= revision(&object)
        });
        if is_newer {
            self.objects.insert(key, Arc::new(object));
        }
    }
}

fn revision(object: &Value) -> Option<u64> {
    let revision = object["metadata"]["resourceVersion"].as_str()?;
    revision.parse().ok()
}

pub(super) fn resource(made: Made) -> ApiResource {
    let (group, version, kind, plural) = made.names();
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

async fn follow(
    client: Client,
    made: Made,
    namespace: String,
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
) {
    let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource(made));
    let config = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let stream = patient(watcher(api, config));
    let mut stream = std::pin::pin!(stream);
    let mut listed = BTreeSet::new();
    let key = |object: &DynamicObject| {
        let name = object.metadata.name.clone().unwrap_or_default();
        (made, namespace.clone(), name)
    };
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let key = key(&object);
                listed.insert(key.clone());
                if let Ok(object) = serde_json::to_value(object) {
                    known.lock().put(key, object);
                }
            }
            Ok(Event::InitDone) => {
                let mut known = known.lock();
                let here = |of: &Key| of.0 == made && of.1 == namespace;
                known
                    .objects
                    .retain(|key, _| !here(key) || listed.contains(key));
                known.listed.insert((made, namespace.clone()), Ok(()));
            }
            Ok(Event::Delete(object)) => {
                let key = key(&object);
                listed.remove(&key);
                let mut known = known.lock();
                let uid = object.metadata.uid.as_deref();
                let is_it = |there: &Arc<Value>| there["metadata"]["uid"].as_str() == uid;
                if known.objects.get(&key).is_some_and(is_it) {
                    known.objects.remove(&key);
                }
            }
            Err(error) => {
                let mut known = known.lock();
                let listed = known.listed.entry((made, namespace.clone()));
                // What was known stays.
                let so_far = listed.or_insert_with(|| Err(String::new()));
                if so_far.is_err() {
                    *so_far = Err(whole(&error));
                }
            }
        }
        changed.notify_one();
    }
}
