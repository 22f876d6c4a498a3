//! A pod of this node, as the parts of the agent share it.

pub(crate) mod bound;
pub mod budget;
pub mod older;
pub mod sock;
pub(crate) mod translation;

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use model::{Identity, WorkloadUid};
use serde::{Deserialize, Serialize};
use tls::WorkloadCert;
use tokio::sync::watch;

use crate::{
    host::netns::Netns,
    pod::{bound::Bound, budget::Usage, translation::Turns},
};

/// Namespace and name of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PodName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the container runtime made for a pod: known before its containers start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodName,
    /// `metadata.uid`.
    pub uid: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Addresses that the cluster gave to the pod.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// A captured pod.
pub struct Pod {
    /// Its number in the kernel's maps.
    pub id: u32,
    /// Its name.
    pub name: PodName,
    /// Its name in the workload API.
    pub workload: WorkloadUid,
    /// Who it is to its peers.
    pub identity: Identity,
    /// Where its sockets are made.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its current certificate; none until the CA has answered once.
    pub cert: watch::Receiver<Option<Arc<WorkloadCert>>>,
    /// What it uses of the agent's room for connections.
    pub usage: Usage,
    /// Which of its servers take connections on one interface only.
    pub(crate) bound: Bound,
    /// Bounds what questions about its ports cost.
    pub(crate) turns: Turns,
    /// Connections that the agent carries for it now.
    open: AtomicUsize,
}

impl Pod {
    /// A pod that carries nothing yet.
    #[must_use]
    pub fn new(
        id: u32,
        sandbox: &Sandbox,
        workload: WorkloadUid,
        identity: Identity,
        netns: Netns,
        addresses: Vec<IpAddr>,
        cert: watch::Receiver<Option<Arc<WorkloadCert>>>,
    ) -> Self {
        Self {
            id,
            name: sandbox.pod.clone(),
            workload,
            identity,
            netns,
            addresses,
            cert,
            usage: Usage::default(),
            bound: Bound::default(),
            turns: Turns::default(),
            open: AtomicUsize::new(0),
        }
    }

    /// Connections that the agent carries for the pod now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as the result lives.
    #[must_use]
    pub fn carry(self: &Arc<Self>) -> Carried {
        self.open.fetch_add(1, Ordering::Relaxed);
        Carried(Arc::clone(self))
    }

    /// Whether an address is the pod's.
    #[must_use]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One connection of a pod, counted until it is dropped.
pub struct Carried(Arc<Pod>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
