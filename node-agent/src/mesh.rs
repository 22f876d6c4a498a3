//! The mesh as the controller tells it: state for decisions, and what is wanted of this node's pods.

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use model::{Identity, MeshState, TrustDomain, WorkloadUid};
use prost::Message;
use proto::{
    agent::{Capture, NodePod},
    convert, type_url,
};
use tokio::sync::watch;

use crate::{
    config::SameNode,
    enrol::{Wanted, WantedPods},
    pod::PodName,
};

/// What connections and enrolment read. Readers never wait for writers.
pub struct Mesh {
    state: ArcSwap<MeshState>,
    changed: watch::Sender<u64>,
    /// How captured pods of this node talk to each other, if the mesh says so.
    same_node: ArcSwap<Option<SameNode>>,
    /// When the newest state was published.
    since: ArcSwap<Option<Instant>>,
    wanted: watch::Sender<Arc<WantedPods>>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            state: ArcSwap::default(),
            changed: watch::Sender::new(0),
            same_node: ArcSwap::default(),
            since: ArcSwap::default(),
            wanted: watch::Sender::default(),
        }
    }
}

impl Mesh {
    /// The state now. Keep it for one decision, not longer.
    pub fn state(&self) -> Arc<MeshState> {
        self.state.load_full()
    }

    /// How captured pods of this node talk to each other, if the mesh says so. A change of it counts as
    /// a change of the state.
    pub fn same_node(&self) -> Option<SameNode> {
        **self.same_node.load()
    }

    /// When the newest state came, if one has come.
    pub fn since(&self) -> Option<Instant> {
        **self.since.load()
    }

    /// Changes with every new state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What is wanted of this node's pods; empty until the controller has said something.
    pub fn wanted(&self) -> watch::Receiver<Arc<WantedPods>> {
        self.wanted.subscribe()
    }
}

/// One resource as it came: name and bytes.
pub struct Resource<'a> {
    /// Its name.
    pub name: &'a str,
    /// The message.
    pub bytes: &'a [u8],
}

/// Turns resources into state. Only this writes a [`Mesh`].
pub struct Writer {
    mesh: Arc<Mesh>,
    state: MeshState,
    wanted: std::collections::BTreeMap<String, (PodName, Wanted)>,
    same_node: std::collections::BTreeMap<String, Option<SameNode>>,
}

impl Writer {
    /// A writer of an empty mesh.
    #[must_use]
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self {
            mesh,
            state: MeshState::default(),
            wanted: std::collections::BTreeMap::new(),
            same_node: std::collections::BTreeMap::new(),
        }
    }

    /// Applies one update. What cannot be understood is returned with the reason; a policy among it
    /// denies in its scope, everything else keeps its last good version.
    pub fn apply<'a>(
        &mut self,
        kind: &str,
        updated: impl Iterator<Item = Resource<'a>>,
        removed: &[String],
    ) -> Vec<(String, String)> {
        let mut rejected = Vec::new();
        match kind {
            type_url::ADDRESS | type_url::WORKLOAD => {
                self.addresses(updated, removed, &mut rejected)
            }
            type_url::AUTHORIZATION => self.policies(updated, removed, &mut rejected),
            type_url::NODE_POD => self.pods(updated, removed, &mut rejected),
            _ => {}
        }
        rejected
    }

    fn addresses<'a>(
        &mut self,
        updated: impl Iterator<Item = Resource<'a>>,
        removed: &[String],
        rejected: &mut Vec<(String, String)>,
    ) {
        for resource in updated {
            match convert::address(resource.bytes) {
                Ok(convert::Address::Workload(workload)) => self.state.insert_workload(workload),
                Ok(convert::Address::Service(service)) => self.state.insert_service(service),
                Err(error) => rejected.push((resource.name.to_owned(), error.to_string())),
            }
        }
        for name in removed {
            self.state.remove(name);
        }
        self.publish();
    }

    fn policies<'a>(
        &mut self,
        updated: impl Iterator<Item = Resource<'a>>,
        removed: &[String],
        rejected: &mut Vec<(String, String)>,
    ) {
        for resource in updated {
            match convert::authorization(resource.name, resource.bytes) {
                Ok(policy) => self.state.insert_policy(policy),
                Err(error) => {
                    if let Some(substitute) = error.substitute {
                        self.state.insert_policy(*substitute);
                    }
                    rejected.push((resource.name.to_owned(), error.error.to_string()));
                }
            }
        }
        for name in removed {
            self.state.remove_policy(name);
        }
        self.publish();
    }

    fn pods<'a>(
        &mut self,
        updated: impl Iterator<Item = Resource<'a>>,
        removed: &[String],
        rejected: &mut Vec<(String, String)>,
    ) {
        for resource in updated {
            match wanted(resource.bytes) {
                Ok((wanted, same_node)) => {
                    self.wanted.insert(resource.name.to_owned(), wanted);
                    self.same_node.insert(resource.name.to_owned(), same_node);
                }
                Err(error) => rejected.push((resource.name.to_owned(), error)),
            }
        }
        for name in removed {
            self.wanted.remove(name);
            self.same_node.remove(name);
        }
        self.publish_same_node();
        let pods: WantedPods = self.wanted.values().cloned().collect();
        self.mesh.wanted.send_replace(Arc::new(pods));
    }

    /// All pods of a node say the same, but for the moment of a change: then the stricter counts.
    fn publish_same_node(&self) {
        let says = |wish: SameNode| self.same_node.values().any(|said| *said == Some(wish));
        let said = [SameNode::Mtls, SameNode::Direct]
            .into_iter()
            .find(|wish| says(*wish));
        if self.mesh.same_node() != said {
            self.mesh.same_node.store(Arc::new(said));
            self.mesh.changed.send_modify(|version| *version += 1);
        }
    }

    fn publish(&self) {
        self.mesh.since.store(Arc::new(Some(Instant::now())));
        self.mesh.state.store(Arc::new(self.state.clone()));
        self.mesh.changed.send_modify(|version| *version += 1);
    }
}

type Wish = ((PodName, Wanted), Option<SameNode>);

fn wanted(bytes: &[u8]) -> Result<Wish, String> {
    let pod = NodePod::decode(bytes).map_err(|e| e.to_string())?;
    let same_node = match pod.same_node() {
        proto::agent::SameNode::Unsaid => None,
        proto::agent::SameNode::Direct => Some(SameNode::Direct),
        proto::agent::SameNode::Mtls => Some(SameNode::Mtls),
    };
    let capture = pod.capture() == Capture::Capture;
    let trust_domain: TrustDomain = if pod.trust_domain.is_empty() {
        "cluster.local"
    } else {
        &pod.trust_domain
    }
    .parse()
    .map_err(|e| format!("trust_domain: {e}"))?;
    let account = if pod.service_account.is_empty() {
        "default"
    } else {
        &pod.service_account
    };
    let identity = Identity::new(trust_domain, &*pod.namespace, account);
    let workload: WorkloadUid = pod.uid.as_str().into();
    let name = PodName {
        namespace: pod.namespace,
        name: pod.name,
    };
    let wanted = Wanted {
        workload,
        uid: pod.pod_uid,
        identity,
        capture,
        reason: pod.reason,
    };
    Ok(((name, wanted), same_node))
}
