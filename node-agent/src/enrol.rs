//! Which pods of this node are captured, made so: level-triggered, on one thread.
//!
//! Sandboxes come from the CNI (or are found in `/proc`), what is wanted comes from the controller,
//! what is comes from the kernel. Every pass compares and takes the steps that are missing, in an
//! order in which traffic is never uncaptured by accident: a new pod is refused until capture is
//! complete; a running pod is captured inbound first, then outbound; a leaving pod stops dialling
//! through the agent first and ends tunnels last.

mod addresses;
mod age;
mod audit;
mod capture;
mod charge;
mod desertion;
mod earlier;
mod entry;
mod namespace;
mod notices;
mod older;
mod release;
mod saved;
mod step;
mod tell;
mod terms;

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
use runtime::threads::Told;
use tls::SvidStore;
use tokio::sync::{oneshot, watch};

use crate::{
    bpf::Kernel,
    carry::thread::WorkerHandle,
    direct::{DirectHandle, Inherit},
    host::{cgroup, describe, netns::Netns},
    mesh::{Mesh, WantedPods},
    pod::{PodName, Sandbox},
    telemetry::metrics::EnrolmentMetrics,
};
use earlier::Earlier;
use entry::{Entry, Found, Phase};
pub use notices::Notices;
use saved::Saved;
pub use terms::{
    Added, Awaited, Command, Ends, EnrolConfig, EnrolHandle, Holding, Listed, Parts, Seen,
};

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

/// Between two looks at the ports of a pod whose application refused a connection.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks for pods that are wanted and that the CNI has not named.
const SEARCH_EVERY: Duration = Duration::from_millis(500);

/// The enrolment thread's state.
pub struct Enroller {
    kernel: Arc<Kernel>,
    mesh: Arc<Mesh>,
    workers: Vec<WorkerHandle>,
    certs: Arc<SvidStore>,
    config: EnrolConfig,
    metrics: EnrolmentMetrics,
    wanted: Option<Arc<WantedPods>>,
    entries: BTreeMap<PodName, Entry>,
    next_id: u32,
    captured: watch::Sender<Option<Arc<Holding>>>,
    direct: DirectHandle,
    told: Option<tell::Told>,
    commands: mpsc::Receiver<Command>,
    audited: Instant,
    stored: Vec<Saved>,
    /// Why what is now could not be stored.
    unkept: Option<String>,
    earlier: Earlier,
    /// When to look again for pods that run without our having been told.
    search_at: Instant,
    mode: Mode,
    awaited: watch::Sender<Awaited>,
    /// Requests of the CNI that came while another agent was in charge.
    deferred: Vec<Command>,
    /// Programs of another version are attached.
    others: bool,
    /// Running pods of which it cannot be said which namespace is theirs.
    undecided: BTreeSet<PodName>,
}

impl Enroller {
    /// A new enroller, not in charge until [`Self::in_charge`] or [`Command::TakeCharge`].
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Ends) {
        let (captured, captured_receiver) = watch::channel(None);
        let (awaited, awaited_receiver) = watch::channel(None);
        let enroller = Self {
            kernel: parts.kernel,
            mesh: parts.mesh,
            workers: parts.workers,
            certs: parts.certs,
            config: parts.config,
            metrics: parts.metrics,
            wanted: None,
            entries: BTreeMap::new(),
            next_id: 1,
            captured,
            direct: parts.direct,
            told: None,
            commands: parts.commands,
            audited: Instant::now(),
            stored: Vec::new(),
            unkept: None,
            earlier: Earlier::new(),
            search_at: Instant::now(),
            mode: Mode::Preparing,
            awaited,
            deferred: Vec::new(),
            others: false,
            undecided: BTreeSet::new(),
        };
        let ends = Ends {
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
        let known = self.load_saved() && self.earlier.is_whole();
        self.let_gone_go();
        if !known && !self.kernel.pods().is_empty() {
            tracing::warn!(runtime_dir = %self.config.runtime_dir.display(), "which pods an earlier agent knew is lost; those that the kernel holds captured stay refused until the CNI names them or they are found running");
        }
        self
    }

    /// Runs until [`Command::Stop`].
    pub fn run(mut self) -> Told {
        loop {
            match self.mode {
                Mode::InCharge => self.pass(),
                Mode::Preparing => self.prepare(),
                Mode::Paused => {}
            }
            let settled = self.mode == Mode::InCharge && self.is_settled();
            let wait = Duration::from_millis(if settled { 1000 } else { 20 });
            match self.commands.recv_timeout(wait) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return Told,
                Ok(command) => self.on(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::Stop) {
                    return Told;
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
                self.forget_absent(&pod, &uid);
                // The CNI may have given up waiting; the pod is forgotten all the same.
                let _given_up = reply.send(()).is_err();
            }
            Command::Wanted(wanted) => {
                self.wanted = Some(wanted);
                self.search_at = Instant::now();
            }
            Command::List(reply) => {
                let pods = self.entries.values().map(Entry::listed).collect();
                drop(reply.send(pods));
            }
            Command::Look(reply) => {
                let pods = self.entries.values().map(Entry::seen).collect();
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
        // Before anything is forgotten: that it fails is no news of the pod that we know.
        let netns = match open(&sandbox) {
            Ok(netns) => netns,
            Err(error) => {
                drop(reply.send(Err(error)));
                return;
            }
        };
        // A path may be used again.
        let known = self.entries.get(&name).is_some_and(|entry| {
            entry.sandbox == sandbox && entry.netns.cookie() == netns.cookie()
        });
        // To forget it and to take it on anew would let it go in between.
        let renamed = self.entries.get_mut(&name).filter(|entry| {
            entry.sandbox.uid == sandbox.uid && entry.netns.cookie() == netns.cookie()
        });
        if let Some(entry) = renamed.filter(|_| !known) {
            entry.rename(sandbox);
            self.told = None;
        } else if !known {
            let held = self.found_again(&sandbox, &netns);
            self.forget(&name);
            self.forget_absent(&name, "");
            if let Err(error) = self.insert(sandbox, netns, true) {
                drop(reply.send(Err(error)));
                return;
            }
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.held = held;
            }
        }
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.asked = Instant::now();
            entry.waiting.push(reply);
        }
    }

    /// Takes a sandbox on. `fresh`: its containers have not started, so it is refused until decided.
    fn insert(&mut self, sandbox: Sandbox, netns: Netns, fresh: bool) -> Result<(), String> {
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
                .set_pod(
                    netns.cookie(),
                    id,
                    state,
                    congestion(&netns),
                    capture::families(&sandbox.ips),
                )
                .map_err(|e| describe(&e))?;
        }
        let name = sandbox.pod.clone();
        self.entries.insert(name, Entry::new(id, sandbox, netns));
        Ok(())
    }

    /// One comparison of wanted and real, and the steps that follow.
    fn pass(&mut self) {
        self.retry_earlier();
        self.find_running();
        if self.audited.elapsed() >= self.config.audit_interval {
            self.audited = Instant::now();
            self.let_deserted_go();
            self.let_gone_go();
            self.audit();
        }
        let wanted = self.wanted.clone();
        let (context, entries) = self.parts();
        for (name, entry) in entries {
            let wish = wanted.as_ref().and_then(|pods| pods.get(name));
            step::step(&context, entry, entry.wish(wish));
            if entry.phase == Phase::Captured {
                capture::look_for_ports(context.kernel, entry);
            }
            if entry.opening.as_ref().is_some_and(older::Opening::is_due) {
                older::look_again(&context, entry);
            }
        }
        // Before anybody hears of a pod: a successor would take one that it does not find for gone.
        self.store();
        for entry in self.entries.values_mut() {
            entry.answer(self.unkept.as_deref());
        }
        self.replace_others();
        self.publish();
    }

    /// Finds pods that run without our having been told, by the pod's uid in a process' cgroup path.
    fn find_running(&mut self) {
        let Some(wanted) = self.wanted.clone() else {
            return;
        };
        if Instant::now() < self.search_at {
            return;
        }
        self.search_at = Instant::now() + SEARCH_EVERY;
        let missing = || {
            wanted.iter().filter(|(name, wish)| {
                let known = self.entries.contains_key(name) || self.earlier.has(name);
                wish.capture && !wish.uid.is_empty() && !known
            })
        };
        let running = cgroup::netns_of_pods(missing().map(|(_, wish)| wish.uid.as_str()));
        let found: Vec<(Sandbox, Vec<PathBuf>)> = missing()
            .filter_map(|(name, wish)| {
                let sandbox = Sandbox {
                    pod: name.clone(),
                    uid: wish.uid.clone(),
                    netns: PathBuf::new(),
                    ips: Vec::new(),
                };
                Some((sandbox, running.get(wish.uid.as_str())?.clone()))
            })
            .collect();
        self.undecided
            .retain(|name| found.iter().any(|(sandbox, _)| sandbox.pod == *name));
        for (sandbox, paths) in found {
            self.take_running(sandbox, &paths);
        }
    }

    /// Takes on a pod that runs, if its processes leave no doubt which namespace is its own.
    fn take_running(&mut self, mut sandbox: Sandbox, paths: &[PathBuf]) {
        let name = sandbox.pod.clone();
        let entered = match namespace::choose(paths) {
            Ok((path, netns)) => {
                let found = Found {
                    ran: age::of_process(&path),
                };
                sandbox.netns = path;
                self.undecided.remove(&name);
                let inserted = self.insert(sandbox, netns, false);
                // What the kernel holds captured an earlier agent had been told of.
                if let Some(entry) = self.entries.get_mut(&name)
                    && !entry.is_captured_by(&self.kernel)
                {
                    entry.found_running = Some(found);
                }
                inserted
            }
            Err(refusal) => {
                if let Some(reason) = refusal.reason()
                    && self.undecided.insert(name.clone())
                {
                    self.metrics.refused(reason);
                    tracing::error!(pod = %name, reason, error = %refusal, "a running pod is not captured although it should be; trying again");
                }
                Err(refusal.to_string())
            }
        };
        if let Err(error) = entered {
            tracing::debug!(pod = %name, error, "a running pod cannot be entered");
        }
    }

    fn relisten(&mut self, id: u32) {
        let Some(entry) = self.entries.values_mut().find(|entry| entry.id == id) else {
            return;
        };
        // Looking is slow, and whoever dials the pod can make us look.
        if entry.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        if let Err(error) = capture::seed_listening(&self.kernel, entry) {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot list the pod's listening ports");
        }
        entry.looked = Some(Instant::now());
    }

    fn forget(&mut self, name: &PodName) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        self.kernel.remove_pod(entry.netns.cookie());
        release::detach(&self.kernel, entry.id, None);
        self.kernel.forget_pod(entry.id);
        self.end_carrying(&entry);
        tracing::info!(pod = %name, "pod forgotten");
    }

    /// Ends what is carried for a pod that is no entry any more.
    fn end_carrying(&self, entry: &Entry) {
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
    }

    fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| {
            matches!(entry.phase, Phase::Captured | Phase::Exempt)
                && entry.waiting.is_empty()
                && entry.opening.is_none()
        })
    }
}

fn open(sandbox: &Sandbox) -> Result<Netns, String> {
    Netns::open(&sandbox.netns).map_err(|e| {
        format!(
            "cannot open the network namespace {} of pod {}: {e}",
            sandbox.netns.display(),
            sandbox.pod
        )
    })
}

/// The default congestion control of a namespace, as crate `abi` writes it; zeros if unknown.
fn congestion(netns: &Netns) -> [u8; 8] {
    let read = netns.run(|| std::fs::read("/proc/sys/net/ipv4/tcp_congestion_control"));
    let name = read.and_then(|name| name).unwrap_or_default();
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(name.trim_ascii_end()) {
        *to = *from;
    }
    first
}
