//! What each replica notes of its nodes: how many there are, and which policies all of them have taken.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Client, ResourceExt};

use super::{Policies, Replica, Tracked, is_policy, refuses};
use crate::serve::sync::SyncStatus;

/// What the nodes of one replica have taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Connected nodes.
    pub(super) nodes: usize,
    /// By uid the generation of each policy that all of them have taken.
    pub(super) taken: BTreeMap<String, i64>,
}

impl Progress {
    pub(super) fn has_taken(&self, policy: &Tracked) -> bool {
        let taken = self.taken.get(&*policy.uid);
        taken.is_some_and(|generation| *generation >= policy.generation)
    }
}

/// What the nodes of this replica have taken.
pub(super) fn of(policies: &Policies, sync: &SyncStatus) -> Progress {
    let mut nodes: BTreeMap<&str, u64> = BTreeMap::new();
    for stream in sync.streams() {
        // A node has two streams while one agent succeeds another.
        let knows = if refuses(stream) { 0 } else { stream.knows };
        let least = nodes.entry(&stream.node).or_insert(knows);
        *least = knows.min(*least);
    }
    let least = nodes.values().min().copied();
    let policies = policies.iter().filter(|(key, _)| is_policy(key));
    let taken = policies.map(|(_, policy)| policy).filter(|policy| {
        // Nobody is served: nothing is behind.
        least.is_none_or(|least| policy.snapshot <= least)
    });
    Progress {
        nodes: nodes.len(),
        taken: taken
            .map(|policy| (policy.uid.to_string(), policy.generation))
            .collect(),
    }
}

/// The notes of all replicas.
pub(super) struct Replicas {
    maps: Api<ConfigMap>,
    me: Replica,
}

impl Replicas {
    pub(super) fn new(client: Client, me: &Replica) -> Self {
        Self {
            maps: Api::namespaced(client, &me.namespace),
            me: me.clone(),
        }
    }

    /// Notes what the nodes of this replica have taken.
    pub(super) async fn note(&self, progress: &Progress) -> kube::Result<()> {
        let name = self.name();
        let owner = self.me.pod_uid.as_ref().map(|uid| {
            vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: self.me.name.clone(),
                uid: uid.clone(),
                ..OwnerReference::default()
            }]
        });
        let taken = serde_json::to_string(&progress.taken).unwrap_or_default();
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some([(LABEL.to_owned(), REPLICA.to_owned())].into()),
                owner_references: owner,
                ..ObjectMeta::default()
            },
            data: Some(
                [
                    (NODES.to_owned(), progress.nodes.to_string()),
                    (TAKEN.to_owned(), taken),
                ]
                .into(),
            ),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(super::MANAGER).force();
        self.maps.patch(&name, &params, &Patch::Apply(&map)).await?;
        Ok(())
    }

    /// What the nodes of the other replicas have taken.
    pub(super) async fn others(&self) -> kube::Result<Vec<Progress>> {
        let params = ListParams::default().labels(&format!("{LABEL}={REPLICA}"));
        let all = self.maps.list(&params).await?;
        let own = self.name();
        let others = all.items.iter().filter(|map| map.name_any() != own);
        Ok(others.map(read).collect())
    }

    fn name(&self) -> String {
        format!("{PREFIX}{}", self.me.name)
    }
}

fn read(map: &ConfigMap) -> Progress {
    let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
    let nodes = text(NODES).and_then(|text| text.parse().ok());
    let taken = text(TAKEN).and_then(|text| serde_json::from_str(text).ok());
    Progress {
        nodes: nodes.unwrap_or_default(),
        taken: taken.unwrap_or_default(),
    }
}

const LABEL: &str = "keelson.io/kept";
const REPLICA: &str = "replica";
const PREFIX: &str = "keelson-replica-";
const NODES: &str = "nodes";
const TAKEN: &str = "taken";

#[cfg(test)]
mod tests {
    use manifest::{Kind, ObjectKey};

    use super::*;

    #[test]
    fn a_policy_is_taken_when_the_slowest_node_knows_its_snapshot() {
        let mut sync = SyncStatus::default();
        let policies: Policies = [("old", 3), ("new", 5)]
            .map(|(name, snapshot)| {
                let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", name);
                let uid = name.into();
                let tracked = Tracked {
                    uid,
                    generation: 1,
                    snapshot,
                };
                (key, tracked)
            })
            .into();
        let taken = |sync: &SyncStatus| {
            let progress = of(&policies, sync);
            (
                progress.nodes,
                progress.taken.into_keys().collect::<Vec<_>>(),
            )
        };
        assert_eq!(taken(&sync), (0, vec!["new".to_owned(), "old".to_owned()]));
        let (n1, n2) = (sync.open("n1".into()), sync.open("n2".into()));
        assert_eq!(taken(&sync), (2, vec![]));
        sync.knows(n1, 9);
        sync.knows(n2, 4);
        assert_eq!(taken(&sync), (2, vec!["old".to_owned()]));
        sync.close(n2);
        assert_eq!(taken(&sync), (1, vec!["new".to_owned(), "old".to_owned()]));
    }
}
