//! How the rest of the agent talks to the thread of direct connections.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, mpsc},
};

use abi::{DirectVerdict, VerdictKey};
use arc_swap::ArcSwap;
use model::WorkloadUid;
use tokio::sync::watch;

use super::waypoints::{Said, Wanted};
use crate::{
    pod::{Pod, older::Older},
    telemetry::record::LiveView,
};

/// What connections of the agent need to know: which workloads' endpoints the kernel reaches itself.
#[derive(Default)]
pub struct Reached(pub(super) ArcSwap<HashSet<WorkloadUid>>);

impl Reached {
    /// Whether the kernel draws this workload for direct connections.
    #[must_use]
    pub fn contains(&self, workload: &WorkloadUid) -> bool {
        self.0.load().contains(workload)
    }
}

/// What the thread is told.
pub(super) enum Message {
    /// The mesh has changed.
    Mesh,
    /// The captured pods of this node have changed, or the addresses of its other pods.
    Pods(Vec<Arc<Pod>>, Vec<IpAddr>),
    /// These connections of a pod are older than its capture; others that it was opening were ended.
    Older(Arc<Pod>, Vec<Older>, Vec<(SocketAddr, SocketAddr)>),
    /// Which direct and older connections there are.
    Connections(tokio::sync::oneshot::Sender<Vec<LiveView>>),
    /// What the kernel goes by between two pods of this node; answered with nothing where it decides nothing.
    Verdict(
        VerdictKey,
        tokio::sync::oneshot::Sender<Option<DirectVerdict>>,
    ),
    /// What the waypoint with this pod number says now; nothing where the conversation has ended.
    Waypoint(u32, Option<Said>),
    /// Whether the pod that dials this address is led to a waypoint.
    Leads(u32, SocketAddr, tokio::sync::oneshot::Sender<bool>),
    /// From now on the tables and events are this agent's; with those that a predecessor left
    /// brought up to date before the answer, or removed.
    Charge(Inherit, mpsc::Sender<()>),
    /// Write no more and leave the events to another; answered when that holds.
    Pause(mpsc::Sender<()>),
    /// End the thread.
    Stop,
}

/// What becomes of the tables that are in the kernel when an agent takes charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inherit {
    /// They are brought up to date: an agent kept them until a moment ago.
    Tables,
    /// They are removed: nobody knows how old they are. The agent carries connections meanwhile.
    Nothing,
}

/// Talks to the thread.
#[derive(Clone)]
pub struct DirectHandle {
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) wanted: watch::Receiver<Wanted>,
}

impl DirectHandle {
    /// The mesh has changed.
    pub fn mesh_changed(&self) {
        self.send(Message::Mesh);
    }

    /// These are the captured pods of this node now, and the addresses of its other pods.
    pub fn pods(&self, pods: Vec<Arc<Pod>>, others: Vec<IpAddr>) {
        self.send(Message::Pods(pods, others));
    }

    /// These connections of a pod are older than its capture: (client, server) of what it was opening and
    /// that was `ended`.
    pub fn older(&self, pod: Arc<Pod>, open: Vec<Older>, ended: Vec<(SocketAddr, SocketAddr)>) {
        if !open.is_empty() || !ended.is_empty() {
            self.send(Message::Older(pod, open, ended));
        }
    }

    /// The direct and the older connections that are known.
    pub async fn connections(&self) -> Vec<LiveView> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.send(Message::Connections(reply));
        answer.await.unwrap_or_default()
    }

    /// What the kernel goes by for connections of one captured pod of this node to another's port; nothing where they go
    /// through the agent.
    pub async fn verdict(&self, source: u32, destination: u32, port: u16) -> Option<DirectVerdict> {
        let key = VerdictKey {
            source,
            destination,
            port,
            way: 0,
        };
        self.asked(key).await
    }

    /// What waypoints of this node are to be told.
    #[must_use]
    pub fn waypoints(&self) -> watch::Receiver<Wanted> {
        self.wanted.clone()
    }

    /// A waypoint has said this, or there is no conversation with it any more.
    pub fn waypoint_said(&self, pod: u32, said: Option<Said>) {
        self.send(Message::Waypoint(pod, said));
    }

    /// Whether the kernel leads a captured pod of this node, which dials this address, to a waypoint.
    pub async fn leads(&self, source: u32, dialled: SocketAddr) -> bool {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.send(Message::Leads(source, dialled, reply));
        answer.await.unwrap_or(false)
    }

    async fn asked(&self, key: VerdictKey) -> Option<DirectVerdict> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.send(Message::Verdict(key, reply));
        answer.await.ok().flatten()
    }

    /// Takes charge of the kernel's tables and waits until that is done.
    pub fn charge(&self, inherit: Inherit) {
        let (done, wait) = mpsc::channel();
        self.send(Message::Charge(inherit, done));
        // A thread that is gone writes nothing.
        let _gone = wait.recv().is_err();
    }

    /// Leaves the kernel's tables to another agent and waits until that is so.
    pub fn pause(&self) {
        let (done, wait) = mpsc::channel();
        self.send(Message::Pause(done));
        let _gone = wait.recv().is_err();
    }

    /// Ends the thread; what the kernel holds stays.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }

    fn send(&self, message: Message) {
        // The thread ends with the agent.
        drop(self.sender.send(message));
    }
}
