//! Which pods of this node are captured, made so: level-triggered, on one thread.
//!
//! Sandboxes come from the CNI (or are found in `/proc`), what is wanted comes from the controller,
//! what is comes from the kernel. Every pass compares and takes the steps that are missing, in an
//! order in which traffic is never uncaptured by accident: a new pod is refused until capture is
//! complete; a running pod is captured inbound first, then outbound; a leaving pod stops dialling
//! through the agent first and ends tunnels last.

mod capture;
mod charge;
mod entry;
mod saved;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use abi::PodState;
use model::{Identity, WorkloadUid};
use serde::Serialize;
use tls::SvidStore;
use tokio::sync::{oneshot, watch};

use crate::{
    bpf::Kernel,
    cgroup,
    direct::{DirectHandle, Inherit},
    metrics::EnrolmentMetrics,
    pod::{PodName, Sandbox},
    worker::WorkerHandle,
};
use entry::{Entry, Phase};
use saved::Saved;

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
}

/// What is wanted of all pods of this node.
pub type WantedPods = BTreeMap<PodName, Wanted>;

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
}

/// Answer to the CNI.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// `captured` or `exempt`.
    pub capture: &'static str,
    /// Why.
    pub reason: String,
}

/// One line of the list of pods.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodName,
    /// `metadata.uid`.
    pub uid: String,
    /// Number in the kernel's maps.
    pub pod_id: u32,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// `captured`, `exempt`, `pending`, `failed` or `releasing`.
    pub state: &'static str,
    /// Why.
    pub reason: String,
    /// Connections that the agent carries for it now.
    pub connections: usize,
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
    /// Sends a command. A thread that has ended drops it, and with it the answer's sender.
    pub fn send(&self, command: Command) {
        // The agent is stopping; whoever waits for an answer sees the channel closed.
        drop(self.0.send(command));
    }
}

/// Whose the kernel's maps and the pods' namespaces are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Another agent's: look, and open what taking over will need.
    Preparing,
    /// Ours.
    InCharge,
    /// A successor's, unless it gives up.
    Paused,
}

/// What an agent that is not in charge still needs before it can be; none while it is not known what
/// is wanted.
pub type Awaited = Option<Vec<String>>;

/// What enrolment works with.
pub struct Parts {
    /// The kernel half.
    pub kernel: Arc<Kernel>,
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
}

/// How the rest of the agent talks to the enrolment thread and hears of it.
pub struct Ends {
    /// Takes commands.
    pub handle: EnrolHandle,
    /// The pods that the controller shall hear of; none before they are known.
    pub captured: watch::Receiver<Option<BTreeSet<String>>>,
    /// What has to be there before another agent can be succeeded.
    pub awaited: watch::Receiver<Awaited>,
}

/// The enrolment thread's state.
pub struct Enroller {
    kernel: Arc<Kernel>,
    workers: Vec<WorkerHandle>,
    certs: Arc<SvidStore>,
    config: EnrolConfig,
    metrics: EnrolmentMetrics,
    wanted: Option<Arc<WantedPods>>,
    entries: BTreeMap<PodName, Entry>,
    next_id: u32,
    captured: watch::Sender<Option<BTreeSet<String>>>,
    direct: DirectHandle,
    told: Vec<u32>,
    commands: mpsc::Receiver<Command>,
    audited: Instant,
    stored: Vec<Saved>,
    mode: Mode,
    awaited: watch::Sender<Awaited>,
    /// Requests of the CNI that came while another agent was in charge.
    deferred: Vec<Command>,
    /// Programs of another version are attached.
    others: bool,
}

impl Enroller {
    /// A new enroller, not in charge until [`Self::in_charge`] or [`Command::TakeCharge`].
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Ends) {
        let (sender, commands) = mpsc::channel();
        let (captured, captured_receiver) = watch::channel(None);
        let (awaited, awaited_receiver) = watch::channel(None);
        let enroller = Self {
            kernel: parts.kernel,
            workers: parts.workers,
            certs: parts.certs,
            config: parts.config,
            metrics: parts.metrics,
            wanted: None,
            entries: BTreeMap::new(),
            next_id: 1,
            captured,
            direct: parts.direct,
            told: Vec::new(),
            commands,
            audited: Instant::now(),
            stored: Vec::new(),
            mode: Mode::Preparing,
            awaited,
            deferred: Vec::new(),
            others: false,
        };
        let ends = Ends {
            handle: EnrolHandle(sender),
            captured: captured_receiver,
            awaited: awaited_receiver,
        };
        (enroller, ends)
    }

    /// Takes charge of a node that no agent is in charge of. Pods of an earlier agent are adopted:
    /// its programs refuse until somebody listens.
    #[must_use]
    pub fn in_charge(mut self) -> Self {
        self.mode = Mode::InCharge;
        self.others = self.kernel.others_attached();
        self.direct.charge(Inherit::Nothing);
        if self.load_saved() && saved::exists(&self.config.runtime_dir) {
            self.drop_unknown_to_us();
        } else if !self.kernel.pods().is_empty() {
            tracing::warn!(runtime_dir = %self.config.runtime_dir.display(), "which pods an earlier agent knew is lost; those that the kernel holds captured stay refused until the CNI names them or they are found running");
        }
        self
    }

    /// Runs until [`Command::Stop`].
    pub fn run(mut self) {
        loop {
            match self.mode {
                Mode::InCharge => self.pass(),
                Mode::Preparing => self.prepare(),
                Mode::Paused => {}
            }
            let settled = self.mode == Mode::InCharge && self.is_settled();
            let wait = Duration::from_millis(if settled { 1000 } else { 20 });
            match self.commands.recv_timeout(wait) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => self.on(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.on(command);
            }
        }
    }

    fn on(&mut self, command: Command) {
        match command {
            Command::Add(..) | Command::Delete(..) if self.mode != Mode::InCharge => {
                self.deferred.push(command);
            }
            Command::Add(sandbox, reply) => self.add(sandbox, reply),
            Command::Delete(pod, uid, reply) => {
                if self
                    .entries
                    .get(&pod)
                    .is_some_and(|entry| entry.sandbox.uid == uid || uid.is_empty())
                {
                    self.forget(&pod);
                }
                // The CNI may have given up waiting; the pod is forgotten all the same.
                let _given_up = reply.send(()).is_err();
            }
            Command::Wanted(wanted) => self.wanted = Some(wanted),
            Command::List(reply) => {
                let pods = self.entries.values().map(Entry::listed).collect();
                drop(reply.send(pods));
            }
            Command::Relisten(id) if self.mode == Mode::InCharge => self.relisten(id),
            Command::Relisten(_) => {}
            Command::TakeCharge(reply) => {
                let taken = self.take_charge();
                // Whoever asked gives up only by ending the agent.
                drop(reply.send(taken));
            }
            Command::Pause(reply) => {
                self.pause();
                let _nobody_waits = reply.send(()).is_err();
            }
            Command::Resume => self.resume(),
            Command::Stop => {}
        }
    }

    fn add(&mut self, sandbox: Sandbox, reply: oneshot::Sender<Result<Added, String>>) {
        let name = sandbox.pod.clone();
        let known = self
            .entries
            .get(&name)
            .is_some_and(|entry| entry.sandbox == sandbox && entry.is_alive());
        if !known {
            self.forget(&name);
            if let Err(error) = self.insert(sandbox, true) {
                drop(reply.send(Err(error)));
                return;
            }
        }
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.asked = Instant::now();
            entry.waiting.push(reply);
        }
    }

    /// Takes a sandbox on. `fresh`: its containers have not started, so it is refused until decided.
    fn insert(&mut self, sandbox: Sandbox, fresh: bool) -> Result<(), String> {
        let open = crate::netns::Netns::open(&sandbox.netns);
        let netns = open.map_err(|e| {
            format!(
                "cannot open the network namespace {} of pod {}: {e}",
                sandbox.netns.display(),
                sandbox.pod
            )
        })?;
        let known = self.kernel.pods();
        let id = known
            .get(&netns.cookie())
            .map_or(self.next_id, |(id, _)| *id);
        self.next_id = known
            .values()
            .map(|(id, _)| *id)
            .chain([id, self.next_id - 1])
            .max()
            .unwrap_or(0)
            + 1;
        if self.mode == Mode::InCharge && !known.contains_key(&netns.cookie()) {
            let state = if fresh {
                PodState::Pending
            } else {
                PodState::Exempt
            };
            self.kernel
                .set_pod(netns.cookie(), id, state, congestion(&netns))
                .map_err(|e| describe(&e))?;
        }
        let name = sandbox.pod.clone();
        self.entries.insert(name, Entry::new(id, sandbox, netns));
        Ok(())
    }

    /// Reads which sandboxes an earlier agent knew, and takes on those that are new. False if that
    /// cannot be known: then nothing may be taken for gone.
    fn load_saved(&mut self) -> bool {
        let Some(saved) = saved::load(&self.config.runtime_dir) else {
            return false;
        };
        let known: BTreeMap<&PodName, &Sandbox> = saved
            .iter()
            .map(|saved| (&saved.sandbox.pod, &saved.sandbox))
            .collect();
        self.entries
            .retain(|name, entry| known.get(name) == Some(&&entry.sandbox));
        for Saved { sandbox, captured } in saved {
            let name = sandbox.pod.clone();
            if !self.entries.contains_key(&name)
                && let Err(error) = self.insert(sandbox, false)
            {
                tracing::debug!(pod = %name, error, "a pod of the earlier agent is gone");
            }
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.held = captured;
            }
        }
        true
    }

    /// Removes kernel entries of namespaces that no sandbox is known for: their pods are gone.
    fn drop_unknown_to_us(&self) {
        let ours: BTreeSet<u64> = self
            .entries
            .values()
            .map(|entry| entry.netns.cookie())
            .collect();
        for (cookie, (id, _)) in self.kernel.pods() {
            if !ours.contains(&cookie) {
                capture::detach(&self.kernel, id);
                self.kernel.forget_pod(id);
                self.kernel.remove_pod(cookie);
            }
        }
    }

    /// One comparison of wanted and real, and the steps that follow.
    fn pass(&mut self) {
        self.find_running();
        let audit = self.audited.elapsed() >= self.config.audit_interval;
        if audit {
            self.audited = Instant::now();
        }
        let wanted = self.wanted.clone();
        let mut loaded = false;
        for (name, entry) in &mut self.entries {
            let wish = wanted
                .as_ref()
                .and_then(|pods| pods.get(name))
                .filter(|w| w.uid.is_empty() || w.uid == entry.sandbox.uid);
            let context = capture::Context {
                kernel: &self.kernel,
                workers: &self.workers,
                certs: &self.certs,
                config: &self.config,
            };
            if audit && entry.phase == Phase::Captured && !capture::is_intact(&context, entry) {
                tracing::warn!(pod = %name, "capture had been undone in the kernel or in the pod's namespace; capturing again");
                self.metrics.repaired.inc();
                entry.phase = Phase::Unknown;
            }
            let before = matches!(entry.phase, Phase::Captured);
            capture::step(&context, entry, wish);
            loaded |= !before && matches!(entry.phase, Phase::Captured);
        }
        // Before anybody hears of a pod: a successor would take one that it does not find for gone.
        self.store();
        self.entries.values_mut().for_each(Entry::answer);
        if loaded {
            runtime::memory::give_back();
        }
        self.replace_others();
        self.publish();
    }

    /// Finds pods that run without our having been told, by the pod's uid in a process' cgroup path.
    fn find_running(&mut self) {
        let Some(wanted) = self.wanted.clone() else {
            return;
        };
        for (name, wish) in wanted
            .iter()
            .filter(|(_, wish)| wish.capture && !wish.uid.is_empty())
        {
            if self.entries.contains_key(name) {
                continue;
            }
            let Some(netns) = cgroup::netns_of_pod(&wish.uid) else {
                continue;
            };
            let sandbox = Sandbox {
                pod: name.clone(),
                uid: wish.uid.clone(),
                netns,
                ips: Vec::new(),
            };
            if let Err(error) = self.insert(sandbox, false) {
                tracing::debug!(pod = %name, error, "a running pod cannot be entered");
            }
        }
    }

    fn publish(&mut self) {
        self.tell_captured();
        self.tell_direct();
        let unknown = self.unknown();
        self.config.known.set(unknown == 0);
        let missing = self.wanted.as_ref().map_or(0, |wanted| {
            wanted
                .iter()
                .filter(|(name, wish)| {
                    wish.capture
                        && self
                            .entries
                            .get(*name)
                            .is_none_or(|e| e.phase != Phase::Captured)
                })
                .count()
        });
        self.metrics
            .missing
            .set(i64::try_from(missing + unknown).unwrap_or(i64::MAX));
        let captured = self
            .entries
            .values()
            .filter(|entry| entry.phase == Phase::Captured);
        self.metrics
            .captured
            .set(i64::try_from(captured.count()).unwrap_or(i64::MAX));
        let unguarded = self
            .entries
            .values()
            .filter(|entry| entry.phase == Phase::Captured && !entry.guarded)
            .count();
        self.metrics
            .unguarded
            .set(i64::try_from(unguarded).unwrap_or(i64::MAX));
        self.store();
    }

    /// Keeps which pods there are for a successor.
    fn store(&mut self) {
        let now: Vec<Saved> = self
            .entries
            .values()
            .map(|entry| Saved {
                sandbox: entry.sandbox.clone(),
                captured: entry.phase == Phase::Captured || entry.held,
            })
            .collect();
        if self.stored != now {
            saved::store(&self.config.runtime_dir, &now);
            self.stored = now;
        }
    }

    /// How many pods an earlier agent had captured of which the configuration knows nothing: the kernel
    /// refuses them, and nobody carries their connections.
    fn unknown(&self) -> usize {
        let wanted = self.wanted.as_ref();
        let is_known = |name: &PodName| wanted.is_some_and(|pods| pods.contains_key(name));
        let mut left = self
            .entries
            .iter()
            .filter(|(name, entry)| entry.phase == Phase::Unknown && !is_known(name))
            .peekable();
        if left.peek().is_none() {
            return 0;
        }
        let kernel = self.kernel.pods();
        let state = |entry: &Entry| kernel.get(&entry.netns.cookie()).map(|(_, state)| *state);
        left.filter(|(_, entry)| state(entry) == Some(PodState::Captured))
            .count()
    }

    /// What the controller hears: pods whose capture is complete, and those of an earlier agent that
    /// the kernel holds captured while this one adopts them. Nothing is said before it is known what
    /// is wanted: peers of a pod that is not named speak to it in the clear.
    fn tell_captured(&self) {
        let Some(wanted) = &self.wanted else { return };
        let kernel = self.kernel.pods();
        let is_captured = |entry: &Entry| match entry.phase {
            Phase::Captured => true,
            Phase::Unknown | Phase::Failed(_) => {
                let state = kernel.get(&entry.netns.cookie()).map(|(_, state)| *state);
                entry.held || state == Some(PodState::Captured)
            }
            Phase::Exempt | Phase::Releasing(..) => false,
        };
        let captured: BTreeSet<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_captured(entry))
            .filter_map(|(name, entry)| {
                let own = entry.pod.as_ref().map(|pod| &pod.workload);
                let workload = own.or_else(|| wanted.get(name).map(|wish| &wish.workload));
                workload.map(ToString::to_string)
            })
            .collect();
        self.captured.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&captured);
            if changed {
                *current = Some(captured);
            }
            changed
        });
    }

    fn tell_direct(&mut self) {
        let (captured, others): (Vec<&Entry>, Vec<&Entry>) = self
            .entries
            .values()
            .partition(|entry| entry.phase == Phase::Captured);
        let ids = captured.iter().chain(&others).map(|entry| entry.id);
        let told: Vec<u32> = ids
            .chain([u32::try_from(captured.len()).unwrap_or(u32::MAX)])
            .collect();
        if self.told == told {
            return;
        }
        let pods = captured.iter().filter_map(|entry| entry.pod.clone());
        let addresses = others
            .iter()
            .flat_map(|entry| entry.sandbox.ips.iter().copied());
        self.direct.pods(pods.collect(), addresses.collect());
        self.told = told;
    }

    fn relisten(&self, id: u32) {
        if let Some(entry) = self.entries.values().find(|entry| entry.id == id)
            && let Err(error) = capture::seed_listening(&self.kernel, entry)
        {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot list the pod's listening ports");
        }
    }

    fn forget(&mut self, name: &PodName) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        self.kernel.remove_pod(entry.netns.cookie());
        capture::detach(&self.kernel, entry.id);
        self.kernel.forget_pod(entry.id);
        for worker in &self.workers {
            worker.remove_pod(entry.id, true);
        }
        if let Some(pod) = &entry.pod {
            let last = !self.entries.values().any(|other| {
                other
                    .pod
                    .as_ref()
                    .is_some_and(|p| p.identity == pod.identity)
            });
            if last {
                self.certs.forget(&pod.identity);
            }
        }
        tracing::info!(pod = %name, "pod forgotten");
    }

    fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| {
            matches!(entry.phase, Phase::Captured | Phase::Exempt) && entry.waiting.is_empty()
        })
    }
}

/// The default congestion control of a namespace, as crate `abi` writes it; zeros if unknown.
fn congestion(netns: &crate::netns::Netns) -> [u8; 8] {
    let read = netns.run(|| std::fs::read("/proc/sys/net/ipv4/tcp_congestion_control"));
    let name = read.and_then(|name| name).unwrap_or_default();
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(name.trim_ascii_end()) {
        *to = *from;
    }
    first
}

/// An error and its causes on one line.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
