//! Secrets, each followed by its name: a list and a watch with `metadata.name` as their field selector, which the API server
//! also grants to who may read that one Secret and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use manifest::{Kind, NamespacedName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::memory::Told;
use super::{json, patient, resource, whole};

/// Which Secrets are read, and of which something is known.
#[derive(Debug)]
pub struct Named {
    /// The names of all that are to be followed.
    pub wanted: watch::Receiver<Arc<BTreeSet<NamespacedName>>>,
    /// Those of which has been sent whether they are there, or why that cannot be told.
    pub answered: watch::Sender<BTreeSet<NamespacedName>>,
}

/// Follows what is wanted until nobody listens.
pub(super) async fn follow(
    client: Client,
    mut wanted: watch::Receiver<Arc<BTreeSet<NamespacedName>>>,
    tell: mpsc::Sender<(Kind, Told)>,
) {
    // A set of one task each, which ends with its set.
    let mut running: BTreeMap<NamespacedName, JoinSet<()>> = BTreeMap::new();
    loop {
        let names = Arc::clone(&wanted.borrow_and_update());
        let gone: Vec<_> = running
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(mut watch) = running.remove(&name) {
                // Nothing comes of it after what is told now.
                watch.shutdown().await;
            }
            if tell.send((KIND, Told::Unnamed(name))).await.is_err() {
                return;
            }
        }
        for name in names.iter() {
            running.entry(name.clone()).or_insert_with(|| {
                let mut watch = JoinSet::new();
                watch.spawn(follow_one(client.clone(), name.clone(), tell.clone()));
                watch
            });
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = tell.closed() => return,
        }
    }
}

async fn follow_one(client: Client, name: NamespacedName, tell: mpsc::Sender<(Kind, Told)>) {
    let api: Api<DynamicObject> = Api::namespaced_with(client, &name.namespace, &resource(KIND));
    let only = watcher::Config::default().fields(&format!("metadata.name={}", name.name));
    let stream = patient(watcher(api, only));
    let mut stream = std::pin::pin!(stream);
    let mut listed = None;
    let mut failed = None;
    while let Some(event) = stream.next().await {
        let found = match event {
            Ok(Event::Init) => {
                listed = None;
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed = json(object);
                continue;
            }
            Ok(Event::InitDone) => Ok(listed.take()),
            Ok(Event::Apply(object)) => Ok(json(object)),
            Ok(Event::Delete(_)) => Ok(None),
            Err(error) => Err(whole(&error)),
        };
        // Each reason once.
        let why = found.as_ref().err().cloned();
        if let Some(why) = &why {
            if failed.as_ref() == Some(why) {
                continue;
            }
            warn!(secret = %name, why, "cannot follow a Secret that a gateway names; what is known of it stays");
        }
        failed = why;
        if tell
            .send((KIND, Told::Named(name.clone(), found)))
            .await
            .is_err()
        {
            return;
        }
    }
}

const KIND: Kind = Kind::Secret;
