//! The ConfigMaps of nodes: watched, and written with the revision that they replace.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use compile::index::Sandbox;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Write, Written};
use crate::installation::Installation;
use crate::source::kubernetes::{Retry, patient};

/// The ConfigMaps of an installation.
#[derive(Clone)]
pub struct Captures {
    maps: Api<ConfigMap>,
    nodes: Api<Node>,
    installation: Installation,
    tell: mpsc::Sender<News>,
}

/// What becomes known of what is written.
#[derive(Debug)]
pub enum News {
    /// Everything that was there at the start has been told.
    Listed,
    /// The watch saw it.
    Heard(Arc<str>, Written),
    /// It is gone.
    Gone(Arc<str>),
    /// Our write was made.
    Done(Arc<str>, Written),
    /// Our write was refused: another had written before.
    Lost(Arc<str>, Option<Written>),
}

impl Captures {
    /// Those of the installation in `namespace`, and where news of them arrive.
    pub fn new(client: Client, namespace: &str) -> (Self, mpsc::Receiver<News>) {
        let (tell, told) = mpsc::channel(QUEUE);
        let captures = Self {
            maps: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client.clone()),
            installation: Installation::new(client, namespace),
            tell,
        };
        (captures, told)
    }

    /// Tells what is written, until nobody listens.
    pub async fn follow(self) {
        let config = watcher::Config::default().labels(&format!("{LABEL}={CAPTURED}"));
        let stream = patient(watcher(self.maps.clone(), config));
        let mut stream = std::pin::pin!(stream);
        let mut known: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut listed: BTreeSet<Arc<str>> = BTreeSet::new();
        while let Some(event) = stream.next().await {
            let mut news = Vec::new();
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(map) | Event::Apply(map)) => {
                    if let Some((node, written)) = read(&map) {
                        listed.insert(Arc::clone(&node));
                        known.insert(Arc::clone(&node));
                        news.push(News::Heard(node, written));
                    }
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<_> = known.difference(&listed).cloned().collect();
                    for node in gone {
                        known.remove(&node);
                        news.push(News::Gone(node));
                    }
                    news.push(News::Listed);
                }
                Ok(Event::Delete(map)) => {
                    if let Some((node, _)) = read(&map) {
                        known.remove(&node);
                        news.push(News::Gone(node));
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot follow what nodes hold; what is known of it stays")
                }
            }
            for news in news {
                if self.tell.send(news).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Removes, from time to time, what is written of nodes that the cluster does not have any more. Every replica does: who
    /// comes second finds nothing.
    pub async fn forget_nodes(self) {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            if let Err(error) = self.forget().await {
                warn!(%error, "cannot remove what is written of nodes that are gone; trying again");
            }
        }
    }

    async fn forget(&self) -> kube::Result<()> {
        let ours = ListParams::default().labels(&format!("{LABEL}={CAPTURED}"));
        // The maps first: a node that joins meanwhile is among the nodes.
        let maps = self.maps.list(&ours).await?.items;
        let nodes = self.nodes.list_metadata(&ListParams::default()).await?;
        let nodes = nodes.iter().map(ResourceExt::name_any).collect();
        for map in orphans(&maps, &nodes) {
            // Only as it was read: its node may have come back and reported.
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    resource_version: map.resource_version(),
                    uid: map.uid(),
                }),
                ..DeleteParams::default()
            };
            match self.maps.delete(&map.name_any(), &params).await {
                Ok(_) => info!(
                    map = map.name_any(),
                    "its node is gone: what was written of it is removed"
                ),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes, and tries again until the server has an answer, which is told.
    pub(crate) async fn write(self, write: Write) {
        let mut waits = Retry::default();
        loop {
            match self.attempt(&write).await {
                Ok(news) => {
                    // Nobody listens when the controller stops.
                    let _stopping = self.tell.send(news).await;
                    return;
                }
                Err(error) => {
                    warn!(node = &*write.node, %error, "cannot write down what a node holds; trying again");
                    tokio::time::sleep(waits.pause()).await;
                }
            }
        }
    }

    async fn attempt(&self, write: &Write) -> kube::Result<News> {
        let name = name(&write.node);
        let mut map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(
                    [
                        (LABEL.to_owned(), CAPTURED.to_owned()),
                        ("app.kubernetes.io/part-of".to_owned(), "keelson".to_owned()),
                    ]
                    .into(),
                ),
                resource_version: write.replaces.map(|revision| revision.to_string()),
                owner_references: self.installation.owners().await?,
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        map.data = Some(
            [
                (NODE.to_owned(), write.node.to_string()),
                (PODS.to_owned(), text(&write.pods)),
            ]
            .into(),
        );
        let params = PostParams::default();
        let answer = match write.replaces {
            Some(_) => self.maps.replace(&name, &params, &map).await,
            None => self.maps.create(&params, &map).await,
        };
        match answer {
            Ok(map) => Ok(News::Done(
                Arc::clone(&write.node),
                Written {
                    revision: revision(&map),
                    pods: write.pods.clone(),
                },
            )),
            // Changed, there already, or gone meanwhile.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                let there = self.maps.get_opt(&name).await?;
                let written = there.as_ref().and_then(read).map(|(_, written)| written);
                Ok(News::Lost(Arc::clone(&write.node), written))
            }
            Err(error) => Err(error),
        }
    }
}

/// The maps of nodes that are not among `nodes`.
fn orphans<'a>(maps: &'a [ConfigMap], nodes: &BTreeSet<String>) -> Vec<&'a ConfigMap> {
    let node = |map: &ConfigMap| map.data.as_ref()?.get(NODE).cloned();
    let is_gone = |map: &&ConfigMap| node(map).is_some_and(|node| !nodes.contains(&node));
    maps.iter().filter(is_gone).collect()
}

/// The name of the ConfigMap of a node: one that is too long is told by its digest.
fn name(node: &str) -> String {
    let plain = format!("{PREFIX}{node}");
    if plain.len() <= MAX_NAME {
        return plain;
    }
    let digest = Sha256::digest(node);
    let digest: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PREFIX}{digest}")
}

fn text(pods: &[Sandbox]) -> String {
    // Names, addresses and flags: nothing that JSON cannot say.
    serde_json::to_string(pods).unwrap_or_else(|_| "[]".to_owned())
}

/// What a ConfigMap says; nothing if somebody else has written it.
fn read(map: &ConfigMap) -> Option<(Arc<str>, Written)> {
    let data = map.data.as_ref()?;
    let node = data.get(NODE)?.as_str().into();
    let pods = serde_json::from_str(data.get(PODS)?).inspect_err(|error| {
        warn!(map = map.name_any(), %error, "what a node holds cannot be read; its agent says it again");
    });
    let revision = revision(map);
    Some((
        node,
        Written {
            revision,
            pods: pods.ok()?,
        },
    ))
}

fn revision(map: &ConfigMap) -> u64 {
    let text = map.resource_version().unwrap_or_default();
    text.parse().unwrap_or_default()
}

const LABEL: &str = "keelson.io/kept";
const CAPTURED: &str = "captured-pods";
const PREFIX: &str = "keelson-node-";
const NODE: &str = "node";
const PODS: &str = "pods";
/// Bytes of a name in Kubernetes.
const MAX_NAME: usize = 253;
/// How long a map may outlive its node.
const FORGET_EVERY: Duration = Duration::from_secs(120);
/// News that may wait; the watch then reads no further.
const QUEUE: usize = 256;

#[cfg(test)]
mod tests {
    use manifest::NamespacedName;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let mut pod = Sandbox::named(NamespacedName::new("shop", "cart-0"));
        pod.uid = "u".to_owned();
        pod.addresses = ["10.0.0.1".parse().expect("an address")].into();
        pod.service_account = Some("cart".into());
        pod.lost = true;
        let map = ConfigMap {
            metadata: ObjectMeta {
                resource_version: Some("17".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(
                [
                    (NODE.to_owned(), "n1".to_owned()),
                    (PODS.to_owned(), text(std::slice::from_ref(&pod))),
                ]
                .into(),
            ),
            ..ConfigMap::default()
        };
        let (node, written) = read(&map).expect("readable");
        assert_eq!(
            (&*node, written.revision, written.pods),
            ("n1", 17, vec![pod])
        );
        assert!(read(&ConfigMap::default()).is_none());
    }

    #[test]
    fn the_maps_of_nodes_that_are_gone_are_found_and_no_others() {
        let map = |node: Option<&str>| ConfigMap {
            data: node.map(|node| [(NODE.to_owned(), node.to_owned())].into()),
            ..ConfigMap::default()
        };
        let maps = [map(Some("n1")), map(Some("gone")), map(None)];
        let found = orphans(&maps, &["n1".to_owned(), "n2".to_owned()].into());
        assert_eq!(found, [&maps[1]]);
    }

    #[test]
    fn nodes_with_long_names_have_maps_of_their_own() {
        let long = |end: char| format!("{}{end}", "n".repeat(252));
        assert_eq!(name("n1"), "keelson-node-n1");
        let (a, b) = (name(&long('a')), name(&long('b')));
        assert!(a != b && a.len() <= MAX_NAME, "{a} {b}");
    }
}
