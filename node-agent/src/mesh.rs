//! The mesh as the controller tells it: state for decisions, and what is wanted of this node's pods.

pub mod native;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use clap::ValueEnum;
use model::{Identity, MeshState, TrustDomain, WorkloadUid, state::carried};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use prost::Message;
use proto::{
    agent::{Capture, NodePod},
    convert, type_url,
};
use tokio::sync::watch;

use crate::{
    mesh::native::{Change, Native},
    pod::PodName,
};

/// How captured pods of one node talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SameNode {
    /// Socket to socket in the kernel where policy is a plain yes; the bytes never leave the kernel
    /// and are not encrypted.
    Direct,
    /// By mutual TLS through the agent, as between nodes.
    Mtls,
}

/// What the controller wants of a pod of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name in the workload API.
    pub workload: WorkloadUid,
    /// `metadata.uid`.
    pub uid: String,
    /// Who it is.
    pub identity: Identity,
    /// Whether it is to be captured.
    pub capture: bool,
    /// Why, naming object and label.
    pub reason: String,
    /// Its addresses, as the cluster says.
    pub addresses: Vec<IpAddr>,
    /// Ports that its own probes declare: what the kubelet calls there is a probe.
    pub probe_ports: BTreeSet<u16>,
}

/// What is wanted of all pods of this node.
pub type WantedPods = BTreeMap<PodName, Wanted>;

/// What connections and enrolment read. Readers never wait for writers.
pub struct Mesh {
    state: ArcSwap<MeshState>,
    changed: watch::Sender<u64>,
    /// How captured pods of this node talk to each other, if the mesh says so.
    same_node: ArcSwap<Option<SameNode>>,
    /// When the newest state was published.
    since: ArcSwap<Option<Instant>>,
    wanted: watch::Sender<Arc<WantedPods>>,
    announced: RwLock<Announced>,
    /// Addresses of what has changed since somebody asked last.
    touched: Mutex<BTreeSet<IpAddr>>,
}

/// Captured workloads that all nodes know to be captured, with the addresses by which they know them.
#[derive(Clone, Debug, Default)]
pub struct Announced(HashMap<String, Vec<IpAddr>>);

impl Announced {
    /// The addresses of a workload; none if some node may not know yet that it is captured.
    #[must_use]
    pub fn of(&self, workload: &str) -> &[IpAddr] {
        self.0.get(workload).map_or(&[], Vec::as_slice)
    }
}

impl<const N: usize> From<[(String, Vec<IpAddr>); N]> for Announced {
    fn from(workloads: [(String, Vec<IpAddr>); N]) -> Self {
        Self(workloads.into())
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            state: ArcSwap::default(),
            changed: watch::Sender::new(0),
            same_node: ArcSwap::default(),
            since: ArcSwap::default(),
            wanted: watch::Sender::default(),
            announced: RwLock::default(),
            touched: Mutex::default(),
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

    /// Which workloads all nodes know to be captured. Keep it for a moment only: news wait meanwhile.
    pub fn announced(&self) -> RwLockReadGuard<'_, Announced> {
        self.announced.read()
    }

    /// The addresses of workloads and services that have come, changed or gone since the last call. The
    /// state that is read afterwards is at least as new.
    pub fn take_touched(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.touched.lock())
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
    /// Who keeps the kernel in step with addresses; nobody where there is no kernel half.
    native: Option<Arc<Native>>,
    state: MeshState,
    /// Names of workloads and services that could not be read.
    unreadable: BTreeSet<String>,
    wanted: BTreeMap<String, (PodName, Wanted)>,
    same_node: BTreeMap<String, Option<SameNode>>,
}

impl Writer {
    /// A writer of an empty mesh.
    #[must_use]
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self {
            mesh,
            native: None,
            unreadable: BTreeSet::new(),
            state: MeshState::default(),
            wanted: BTreeMap::new(),
            same_node: BTreeMap::new(),
        }
    }

    /// The same, and the kernel is told which destinations may have to be carried.
    #[must_use]
    pub fn telling(mut self, native: Arc<Native>) -> Self {
        self.native = Some(native);
        self
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
            type_url::ANNOUNCED => self.announced(updated, removed, &mut rejected),
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
        let mut touched = BTreeSet::new();
        let mut named = BTreeSet::new();
        for resource in updated {
            self.unreadable.remove(resource.name);
            match convert::address(resource.bytes) {
                Ok(convert::Address::Workload(workload)) => {
                    touched.extend(self.addresses_of(workload.uid.as_ref()));
                    touched.extend(&workload.addresses);
                    named.extend(carried::of_name(&self.state, &workload.uid));
                    named.extend(carried::of_workload(&workload));
                    self.state.insert_workload(workload);
                }
                Ok(convert::Address::Tombstone(tombstone)) => {
                    touched.extend(self.addresses_of(tombstone.uid.as_ref()));
                    touched.extend(&tombstone.addresses);
                    named.extend(carried::of_name(&self.state, &tombstone.uid));
                    named.extend(carried::of_tombstone(&tombstone));
                    self.state.insert_tombstone(tombstone);
                }
                Ok(convert::Address::Service(service)) => {
                    let key = service.key().to_string();
                    touched.extend(self.addresses_of(resource.name));
                    touched.extend(service.addresses.iter().map(|address| address.ip));
                    named.extend(carried::of_name(&self.state, &key));
                    named.extend(carried::of_service(&service));
                    self.state.insert_service(service);
                }
                Err(error) => {
                    self.unreadable.insert(resource.name.to_owned());
                    rejected.push((resource.name.to_owned(), error.to_string()));
                }
            }
        }
        for name in removed {
            self.unreadable.remove(name);
            touched.extend(self.addresses_of(name));
            named.extend(carried::of_name(&self.state, name));
            self.state.remove(name);
        }
        let Some(native) = &self.native else {
            return self.publish_touching(touched);
        };
        let change = Change {
            state: &self.state,
            named: &named,
            whole: self.unreadable.is_empty(),
        };
        native.change(&change, || self.publish_touching(touched));
    }

    /// The addresses by which a workload or a service is known, by its name in xDS.
    fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        if let Some(workload) = self.state.workload(name) {
            return workload.addresses.clone();
        }
        let service = name.parse().ok().and_then(|key| self.state.service(&key));
        let addresses = service.map_or(&[][..], |service| &service.addresses);
        addresses.iter().map(|address| address.ip).collect()
    }

    fn announced<'a>(
        &self,
        updated: impl Iterator<Item = Resource<'a>>,
        removed: &[String],
        rejected: &mut Vec<(String, String)>,
    ) {
        let mut touched = BTreeSet::new();
        let mut announced = self.mesh.announced.write();
        for resource in updated {
            match announced_addresses(resource.bytes) {
                Ok(addresses) => {
                    touched.extend(&addresses);
                    let before = announced.0.insert(resource.name.to_owned(), addresses);
                    touched.extend(before.into_iter().flatten());
                }
                Err(error) => rejected.push((resource.name.to_owned(), error)),
            }
        }
        for name in removed {
            touched.extend(announced.0.remove(name).into_iter().flatten());
        }
        drop(announced);
        self.mesh.touched.lock().append(&mut touched);
        self.mesh.changed.send_modify(|version| *version += 1);
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
        self.publish_touching(BTreeSet::new());
    }

    fn publish_touching(&self, mut touched: BTreeSet<IpAddr>) {
        self.mesh.since.store(Arc::new(Some(Instant::now())));
        self.mesh.state.store(Arc::new(self.state.clone()));
        self.mesh.touched.lock().append(&mut touched);
        self.mesh.changed.send_modify(|version| *version += 1);
    }
}

fn announced_addresses(bytes: &[u8]) -> Result<Vec<IpAddr>, String> {
    let message = proto::agent::Announced::decode(bytes).map_err(|e| e.to_string())?;
    let address = |octets: &Vec<u8>| match octets.as_slice() {
        [a, b, c, d] => Ok(IpAddr::from([*a, *b, *c, *d])),
        longer => <[u8; 16]>::try_from(longer)
            .map(IpAddr::from)
            .map_err(|_length| format!("addresses: {} bytes are no address", longer.len())),
    };
    message.addresses.iter().map(address).collect()
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
        addresses: pod
            .addresses
            .iter()
            .filter_map(|bytes| address(bytes))
            .collect(),
        probe_ports: pod
            .probe_ports
            .into_iter()
            .filter_map(|port| port.try_into().ok())
            .collect(),
    };
    Ok(((name, wanted), same_node))
}

/// An address of 4 or 16 bytes.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}
