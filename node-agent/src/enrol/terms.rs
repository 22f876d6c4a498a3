//! What enrolment is told and asked, and what it says.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::Duration,
};

pub use admin_api::Pod as Listed;
use serde::Serialize;
use tls::SvidStore;
use tokio::sync::{oneshot, watch};

use super::notices::Notices;
use crate::{
    bpf::Kernel,
    carry::thread::WorkerHandle,
    direct::DirectHandle,
    mesh::{Mesh, WantedPods},
    pod::{Pod, PodName, Sandbox},
    telemetry::metrics::EnrolmentMetrics,
};

/// How long enrolment waits, how often it looks.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// Where sandboxes are kept over a restart of the agent; a tmpfs, so that a reboot forgets them.
    pub runtime_dir: PathBuf,
    /// A running pod is captured without certificate after this long: it is then refused by peers
    /// instead of left out.
    pub certificate_wait: Duration,
    /// Between the moment a leaving pod's peers are told and the moment its tunnels end.
    pub release_wait: Duration,
    /// How long captured connections of a leaving pod may go on.
    pub drain_deadline: Duration,
    /// How often the kernel is compared with what should be.
    pub audit_interval: Duration,
    /// Whether the configuration knows every pod that the kernel holds captured.
    pub known: runtime::admin::Condition,
    /// What owners of pods are told.
    pub notices: Notices,
}

/// Answer to the CNI.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// `captured` or `exempt`.
    pub capture: &'static str,
    /// Why.
    pub reason: String,
}

/// A pod of the node as it is now.
#[derive(Clone, Debug)]
pub struct Seen {
    /// As the list of pods has it.
    pub listed: Listed,
    /// Its addresses, as far as the cluster has said.
    pub addresses: Vec<IpAddr>,
    /// What carries its connections, while it is captured.
    pub pod: Option<Arc<Pod>>,
}

/// What the enrolment thread is asked.
pub enum Command {
    /// A sandbox exists; answer when the pod may start.
    Add(Sandbox, oneshot::Sender<Result<Added, String>>),
    /// A sandbox goes away.
    Delete(PodName, String, oneshot::Sender<()>),
    /// What is wanted has changed.
    Wanted(Arc<WantedPods>),
    /// Which pods there are.
    List(oneshot::Sender<Vec<Listed>>),
    /// The same, with what a connection is asked about.
    Look(oneshot::Sender<Vec<Seen>>),
    /// The application refused a connection on a port that was said to listen.
    Relisten(u32),
    /// The predecessor writes no more: take its pods over. Answered when all of them are ours, or
    /// with what is in the way.
    TakeCharge(oneshot::Sender<Result<(), String>>),
    /// Write nothing more until told otherwise; answered when that holds.
    Pause(oneshot::Sender<()>),
    /// The successor has given up: make everything ours again.
    Resume,
    /// End the thread; captured pods stay captured.
    Stop,
}

/// Talks to the enrolment thread.
#[derive(Clone)]
pub struct EnrolHandle(mpsc::Sender<Command>);

impl EnrolHandle {
    /// A handle, and where the enrolment thread finds what is sent by it.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (sender, commands) = mpsc::channel();
        (Self(sender), commands)
    }

    /// Sends a command. A thread that has ended drops it, and with it the answer's sender.
    pub fn send(&self, command: Command) {
        // The agent is stopping; whoever waits for an answer sees the channel closed.
        drop(self.0.send(command));
    }
}

/// What an agent that is not in charge still needs before it can be; none while it is not known what
/// is wanted.
pub type Awaited = Option<Vec<String>>;

/// What enrolment works with.
pub struct Parts {
    /// The kernel half.
    pub kernel: Arc<Kernel>,
    /// The mesh, which knows whose addresses are.
    pub mesh: Arc<Mesh>,
    /// Who carries connections.
    pub workers: Vec<WorkerHandle>,
    /// Certificates of the pods.
    pub certs: Arc<SvidStore>,
    /// Times and places.
    pub config: EnrolConfig,
    /// What is counted.
    pub metrics: EnrolmentMetrics,
    /// The same-node path.
    pub direct: DirectHandle,
    /// What [`EnrolHandle`] sends.
    pub commands: mpsc::Receiver<Command>,
}

/// What this node holds captured, for the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Names of workloads.
    pub workloads: BTreeSet<String>,
    /// The pods themselves, workloads or not.
    pub pods: Vec<Sandbox>,
    /// There may be more.
    pub partial: bool,
}

/// How the rest of the agent hears of the enrolment thread.
pub struct Ends {
    /// The pods that the controller shall hear of; none before they are known.
    pub captured: watch::Receiver<Option<Arc<Holding>>>,
    /// What has to be there before another agent can be succeeded.
    pub awaited: watch::Receiver<Awaited>,
}
