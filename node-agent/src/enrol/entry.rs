//! One pod on its way into the mesh, in it, or out of it.
//!
//! An [`Entry`] has a [`Phase`], which is what this agent has done, and the kernel half has a state for the pod's
//! namespace ([`PodState`]), which is what happens to packets. The two differ on purpose: an agent that starts has
//! the phase `Unknown` for a pod that the kernel still holds captured. Each pass takes at most one step; [`super::step`]
//! has this table as code:
//!
//! | phase | wanted | step | next phase | state in the kernel |
//! |---|---|---|---|---|
//! | `Unknown` | nothing known yet | none; the CNI waits | `Unknown` | `Pending` for a new pod: what it dials is refused |
//! | `Unknown` | captured, certificate missing | none for `certificate_wait` | `Unknown` | as before |
//! | `Unknown` | captured | `capture`: stage, then engage | `Captured` | `Joining` while ports are listed, then `Captured` |
//! | `Unknown` | captured, a step fails | none | `Failed` for a second | as before: never less captured than it was |
//! | `Failed` | captured | as `Unknown`, when the second is over | | |
//! | `Captured` | captured | follow probes and addresses | `Captured` | `Captured` |
//! | `Captured` | exempt | `stop_capturing` | `Releasing`, tunnels open | `Exempt`, inbound `Release` |
//! | `Releasing` | exempt, `release_wait` over | `end_tunnels` | `Releasing`, tunnels ended | the same |
//! | `Releasing` | exempt, nothing carried or the drain deadline over | `clean_namespace` | `Exempt` | forgotten |
//! | `Releasing` | captured | `capture`, over what is there | `Captured` | `Captured` |
//! | `Unknown`, `Failed` | exempt | none, or a release where the kernel holds it captured | `Exempt`, `Releasing` | `Exempt` |
//!
//! A pod whose addresses change begins again (`begin_again`): the phase is `Unknown`, the state stays `Captured`,
//! and every step is taken over what is there. `held` remembers that connections from before have been looked at.
//! "Nothing known" never takes a pod out of the mesh: only the controller's word does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::PodState;
use admin_api::PodState as Stand;
use tokio::sync::oneshot;

use super::{
    Added, Listed, Seen,
    addresses::{self, Given},
    older::Opening,
};
use crate::{
    bpf::{Kernel, listening::Suspects},
    carry::thread::PodListeners,
    host::{netns::Netns, veth::Pair},
    mesh::Wanted,
    pod::{Pod, Sandbox},
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

/// A pod that was found running without the CNI having named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// For how long it had run, as far as that can be told.
    pub(super) ran: Option<Duration>,
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
    /// The addresses that the cluster gave it, as far as that is known.
    pub(super) known: Vec<IpAddr>,
    /// What of them is its own.
    pub(super) given: Given,
    /// What the kernel half was told of its addresses.
    pub(super) flags: Option<BTreeMap<IpAddr, u32>>,
    /// What the kernel half was told of its probes.
    pub(super) probe_ports: BTreeSet<u16>,
    /// Since when its namespace is not where it was, and nobody is in it.
    pub(super) deserted: Option<Instant>,
    /// Its guarded interfaces.
    pub(super) pairs: Vec<Pair>,
    /// Why they are not guarded; said before it is known.
    pub(super) unguarded: Option<String>,
    /// When the CNI asked last.
    pub(super) asked: Instant,
    /// When its ports were looked at last because its application refused a connection.
    pub(super) looked: Option<Instant>,
    /// Listening ports for which the kernel has no room.
    pub(super) ports_left_out: usize,
    /// Ports of which the kernel half seems to have counted too many sockets.
    pub(super) suspects: Suspects,
    /// Since when the pod should be captured and is not.
    pub(super) wanted_since: Option<Instant>,
    pub(super) pod: Option<Arc<Pod>>,
    /// It was captured by us, and nobody has looked yet which of its connections are older.
    pub(super) must_find_older: bool,
    /// What the pod was opening when it was captured.
    pub(super) opening: Option<Opening>,
    /// Captured by an earlier agent, and not released since.
    pub(super) held: bool,
    /// Its owner has been told that its certificate cannot be had or renewed.
    pub(super) certificate_fails: bool,
    /// It was found running, and has not been captured since.
    pub(super) found_running: Option<Found>,
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
            known: Vec::new(),
            given: Given::default(),
            flags: None,
            probe_ports: BTreeSet::new(),
            deserted: None,
            pairs: Vec::new(),
            unguarded: Some("its guard is not attached yet".to_owned()),
            asked: Instant::now(),
            looked: None,
            ports_left_out: 0,
            suspects: Suspects::default(),
            wanted_since: None,
            pod: None,
            must_find_older: false,
            opening: None,
            held: false,
            certificate_fails: false,
            found_running: None,
            prepared: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// What is wanted of the pod, if it is meant: a name may be used again.
    pub(super) fn wish<'w>(&self, wanted: Option<&'w Wanted>) -> Option<&'w Wanted> {
        wanted.filter(|wanted| wanted.uid.is_empty() || wanted.uid == self.sandbox.uid)
    }

    /// The pod as it was made for a wish, if it is still what is wished.
    pub(super) fn pod_of(&self, wanted: &Wanted) -> Option<&Arc<Pod>> {
        self.pod.as_ref().filter(|pod| {
            pod.identity == wanted.identity
                && pod.workload == wanted.workload
                && pod.addresses == self.given.own
        })
    }

    /// The addresses that the cluster gave to the pod. A controller that says nothing takes none away.
    pub(super) fn addresses(&self, wish: Option<&Wanted>) -> Vec<IpAddr> {
        if wish.is_none() && !self.known.is_empty() {
            return self.known.clone();
        }
        addresses::given(&self.sandbox.ips, wish)
    }

    /// Its addresses are others: every step is taken again, over what is there.
    pub(super) fn begin_again(&mut self) {
        self.pod = None;
        if matches!(self.phase, Phase::Captured | Phase::Exempt) {
            self.held |= self.phase == Phase::Captured;
            self.phase = Phase::Unknown;
        }
    }

    /// The CNI names the same pod in other words.
    pub(super) fn rename(&mut self, sandbox: Sandbox) {
        if self.sandbox.ips != sandbox.ips {
            self.known.clear();
            self.begin_again();
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

    pub(super) fn seen(&self) -> Seen {
        Seen {
            listed: self.listed(),
            addresses: self.addresses(None),
            pod: self.pod.clone(),
        }
    }

    pub(super) fn listed(&self) -> Listed {
        Listed {
            namespace: self.sandbox.pod.namespace.clone(),
            name: self.sandbox.pod.name.clone(),
            uid: self.sandbox.uid.clone(),
            pod_id: self.id,
            netns_cookie: self.netns.cookie(),
            state: match self.phase {
                Phase::Unknown => Stand::Pending,
                Phase::Captured => Stand::Captured,
                Phase::Exempt => Stand::Exempt,
                Phase::Failed(_) => Stand::Failed,
                Phase::Releasing(..) => Stand::Releasing,
            },
            reason: match (&self.phase, &self.unguarded) {
                (Phase::Captured, Some(why)) => {
                    format!("{}; nothing goes directly: {why}", self.reason)
                }
                _ => self.reason.clone(),
            },
            connections: self.pod.as_ref().map_or(0, |pod| pod.open()),
        }
    }
}
