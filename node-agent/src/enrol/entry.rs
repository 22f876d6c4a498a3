//! One pod on its way into the mesh, in it, or out of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use abi::PodState;
use tokio::sync::oneshot;

use super::{Added, Listed};
use crate::{
    bpf::Kernel,
    netns::Netns,
    pod::{Pod, Sandbox},
    worker::PodListeners,
};

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is decided or something is missing.
    Unknown,
    /// In the mesh.
    Captured,
    /// Not in the mesh.
    Exempt,
    /// Capture failed; tried again at the given time.
    Failed(Instant),
    /// Leaving: since when, and whether its tunnels are ended.
    Releasing(Instant, bool),
}

/// How long the CNI waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) sandbox: Sandbox,
    pub(super) netns: Netns,
    /// The namespace's default congestion control, as the kernel half compares it.
    pub(super) congestion: [u8; 8],
    pub(super) phase: Phase,
    pub(super) reason: String,
    /// Whether the pod is kept from using addresses that are not its own.
    pub(super) guarded: bool,
    /// When the CNI asked last.
    pub(super) asked: Instant,
    /// When its ports were looked at last because its application refused a connection.
    pub(super) looked: Option<Instant>,
    /// Since when the pod should be captured and is not.
    pub(super) wanted_since: Option<Instant>,
    pub(super) pod: Option<Arc<Pod>>,
    /// Captured by an earlier agent, and not released since.
    pub(super) held: bool,
    /// Sockets of each worker that were opened before they are needed.
    pub(super) prepared: Vec<PodListeners>,
    pub(super) waiting: Vec<oneshot::Sender<Result<Added, String>>>,
}

impl Entry {
    pub(super) fn new(id: u32, sandbox: Sandbox, netns: Netns) -> Self {
        Self {
            id,
            sandbox,
            congestion: super::congestion(&netns),
            netns,
            phase: Phase::Unknown,
            reason: "the controller has not said whether the pod belongs to the mesh".to_owned(),
            guarded: false,
            asked: Instant::now(),
            looked: None,
            wanted_since: None,
            pod: None,
            held: false,
            prepared: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// The CNI names the same pod in other words. With other addresses every step is taken again, over
    /// what is there.
    pub(super) fn rename(&mut self, sandbox: Sandbox) {
        if self.sandbox.ips != sandbox.ips {
            self.pod = None;
            if matches!(self.phase, Phase::Captured | Phase::Exempt) {
                self.held |= self.phase == Phase::Captured;
                self.phase = Phase::Unknown;
            }
        }
        self.sandbox = sandbox;
    }

    /// Answers the CNI once it is decided, or when it has waited long enough. `unkept` says why the next
    /// agent would not know the pod: then it must not start.
    pub(super) fn answer(&mut self, unkept: Option<&str>) {
        let capture = match self.phase {
            Phase::Captured | Phase::Exempt if let Some(error) = unkept => {
                return self.refuse(error);
            }
            Phase::Captured => "captured",
            Phase::Exempt => "exempt",
            _ if self.asked.elapsed() < ANSWER_WITHIN => return,
            _ => return self.refuse(&self.reason.clone()),
        };
        for reply in self.waiting.drain(..) {
            // The CNI may have given up; it will ask again.
            drop(reply.send(Ok(Added {
                capture,
                reason: self.reason.clone(),
            })));
        }
    }

    /// Whether the kernel refuses what it dials unless we carry it.
    pub(super) fn is_captured_by(&self, kernel: &Kernel) -> bool {
        let pod = kernel.pod(self.netns.cookie());
        pod.is_some_and(|(_, state)| state == PodState::Captured)
    }

    fn refuse(&mut self, reason: &str) {
        for reply in self.waiting.drain(..) {
            // The CNI may have given up; it will ask again.
            drop(reply.send(Err(format!("pod {}: {reason}", self.sandbox.pod))));
        }
    }

    pub(super) fn listed(&self) -> Listed {
        Listed {
            pod: self.sandbox.pod.clone(),
            uid: self.sandbox.uid.clone(),
            pod_id: self.id,
            netns_cookie: self.netns.cookie(),
            state: match self.phase {
                Phase::Unknown => "pending",
                Phase::Captured => "captured",
                Phase::Exempt => "exempt",
                Phase::Failed(_) => "failed",
                Phase::Releasing(..) => "releasing",
            },
            reason: self.reason.clone(),
            connections: self.pod.as_ref().map_or(0, |pod| pod.open()),
        }
    }
}
