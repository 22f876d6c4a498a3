//! The same-node path, kept in step with configuration: compiled tables go to the kernel, events
//! come back, and connections that policy has come to refuse are ended.
//!
//! One thread does all of it. Until it has written a table the agent carries the connections that
//! the table would send directly, so being late costs speed, not safety.
//!
//! The life of one direct connection, map by map (`K` is the kernel half, `A` this thread):
//!
//! 1. `A` writes `LOCAL_PODS`, `VERDICTS`, `SERVICES`, `SLOTS` for the mesh as it is (`compile`). A verdict is
//!    written in an order in which the kernel never says yes where policy does not (`verdicts`).
//! 2. The client calls `connect`. `K` (`hook::connect`) draws an endpoint of the service from `SLOTS`, finds its pod
//!    in `LOCAL_PODS`, and asks `VERDICTS`. No entry: the agent carries it. Deny: `ECONNREFUSED`, counted in
//!    `DENIALS` and told of in `DENIED`. Allow: the address becomes the endpoint's, and who calls whom is kept with the
//!    socket (`SOCKETS`).
//! 3. The source port is chosen. `K` (`hook::direct_socket`) notes ports and pods in `FLOWS` before the SYN leaves.
//! 4. The SYN arrives at the server's namespace. `K` (`hook::lookup`) takes it only where `FLOWS` has it and asks
//!    `VERDICTS` again: policy may have changed since step 2. What is not noted is judged as a connection of a client without identity.
//! 5. The server's socket is established: the note goes. The client's is: `EVENTS` has "opened", with time and ports.
//! 6. `A` reads `EVENTS` (`events`) and has the connection on its list. Bytes are read from the kernel every 5 s.
//! 7. Policy changes. `A` writes `VERDICTS`, then ends what is listed and refused (`revoke`), then what is told of
//!    later although it was opened before, and where the list may miss some, what the namespace's sockets show.
//! 8. The client's socket closes: `EVENTS` has "closed", with the bytes, and the connection is logged.
//!
//! A succession leaves all maps as they are; whoever is in charge writes them and reads `EVENTS`.

mod alias;
mod apply;
mod compile;
mod denials;
mod events;
mod handle;
mod older;
mod revoke;
mod verdicts;
pub(crate) mod wall;
mod waypoints;

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use abi::{
    ANY_PORT, Addr, DirectVerdict, Endpoint, Event, EventKind, Flow, LED, Reason, VerdictKey,
    is_waypoint_port,
};
use model::{Ending, MeshState};
use runtime::threads::{self, Told};
use tokio::sync::watch;

use crate::{
    bpf::Kernel,
    direct::wall::Walls,
    host::{describe, turns},
    mesh::{Mesh, SameNode, native::Native},
    pod::{Pod, budget::Budget, older::Older},
    telemetry::record::Recorder,
};
pub(crate) use compile::session_seconds;
pub use compile::{LocalPod, ServiceTable, Tables, compile};
use denials::{Denials, Sink};
use events::Ledger;
use handle::Message;
pub use handle::{DirectHandle, Inherit, Reached};
use older::Elders;
use revoke::{Left, Policy, Sweep};
pub(crate) use waypoints::loopback_port;
pub use waypoints::{AllSaid, Callers, Said, Wanted};

/// How often the ring of events is emptied.
const LOOK: Duration = Duration::from_millis(100);
/// Changes that come within this time of the last one are compiled together; the first is compiled
/// at once.
const SETTLE: Duration = Duration::from_millis(5);
/// What opens is told of within this time, also where packets are lost.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// How often the bytes of open connections are read from the kernel.
const SAMPLE: Duration = Duration::from_secs(5);

/// The thread's state.
pub struct Direct {
    kernel: Arc<Kernel>,
    mesh: Arc<Mesh>,
    recorder: Arc<Recorder>,
    reached: Arc<Reached>,
    native: Arc<Native>,
    /// Divided among the captured pods, whose number this thread is told.
    budget: Arc<Budget>,
    /// How pods of this node talk to each other where the mesh does not say.
    same_node: SameNode,
    messages: mpsc::Receiver<Message>,
    pods: Vec<Arc<Pod>>,
    others: Vec<IpAddr>,
    /// What waypoints of this node are told, and what they have said.
    waypoints: watch::Sender<Wanted>,
    said: AllSaid,
    tables: Tables,
    ledger: Ledger,
    denials: Denials,
    elders: Elders,
    /// Clients that have left the mesh and have connections open.
    left: Arc<[Left]>,
    /// What captured pods reach by tunnel only.
    walls: Walls,
    /// Pods to which something is refused since a policy, and not all connections were looked at.
    sweep: Sweep,
    /// Connections may be open that are not listed: an earlier agent's, or their beginning was not told.
    unlisted: bool,
    /// Events that the kernel had no room for, as of the last look.
    lost: u64,
    /// Refused connections that the kernel could not tell of, likewise.
    untold: u64,
    updated: Instant,
    sampled: Instant,
    in_charge: bool,
}

impl Direct {
    /// Starts the thread. It writes nothing before [`DirectHandle::charge`].
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        kernel: Arc<Kernel>,
        mesh: Arc<Mesh>,
        recorder: Arc<Recorder>,
        reached: Arc<Reached>,
        native: Arc<Native>,
        budget: Arc<Budget>,
        same_node: SameNode,
    ) -> std::io::Result<DirectHandle> {
        // Whoever starts this is the control thread, after its workers: neither it nor what it starts from
        // now on carries traffic.
        if let Err(error) = turns::after_traffic() {
            tracing::warn!(%error, "cannot schedule the agent's own work after traffic");
        }
        let (sender, messages) = mpsc::channel();
        let (waypoints, wanted) = watch::channel(Wanted::default());
        let walls = Walls::new(Arc::clone(&kernel), Arc::clone(&mesh));
        let direct = Self {
            walls,
            kernel,
            mesh,
            recorder,
            reached,
            native,
            budget,
            same_node,
            messages,
            pods: Vec::new(),
            others: Vec::new(),
            waypoints,
            said: AllSaid::default(),
            tables: Tables::default(),
            ledger: Ledger::default(),
            denials: Denials::default(),
            elders: Elders::default(),
            left: Arc::default(),
            sweep: Sweep::default(),
            unlisted: false,
            lost: 0,
            untold: 0,
            updated: Instant::now(),
            sampled: Instant::now(),
            in_charge: false,
        };
        threads::spawn("direct", move || direct.run())?;
        Ok(DirectHandle { sender, wanted })
    }

    fn run(mut self) -> Told {
        loop {
            let mut changed = false;
            let waits = [self.sweep.wait(), self.walls.wait()].into_iter().flatten();
            let wait = waits.fold(LOOK, Duration::min);
            match self.messages.recv_timeout(wait) {
                Ok(message) => {
                    let Some(change) = self.on(message) else {
                        return Told;
                    };
                    changed |= change;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Told,
            }
            if changed {
                std::thread::sleep(SETTLE.saturating_sub(self.updated.elapsed()));
            }
            while let Ok(message) = self.messages.try_recv() {
                let Some(change) = self.on(message) else {
                    return Told;
                };
                changed |= change;
            }
            // A connection that is to be ended waits; who reads of others does not.
            if changed {
                self.update();
                self.updated = Instant::now();
            }
            self.sweep_one();
            if self.in_charge {
                self.walls.turn();
            }
            self.take_events();
            if self.sampled.elapsed() >= SAMPLE {
                self.sample();
            }
        }
    }

    fn sample(&mut self) {
        self.ledger.sample(&self.pods, &self.recorder);
        self.recorder.settle();
        let ended = self.elders.sample(&self.recorder);
        self.unlist(ended);
        self.sampled = Instant::now();
    }

    /// Takes a message; says whether tables have to be compiled, nothing when it is time to end.
    fn on(&mut self, message: Message) -> Option<bool> {
        match message {
            Message::Mesh => Some(true),
            Message::Pods(pods, others) => {
                self.budget.set_pods(pods.len());
                self.note_left(&pods);
                self.end_orphans(&pods);
                let gone = self.elders.retain(&pods);
                self.unlist(gone);
                self.walls.set_pods(&pods);
                self.pods = pods;
                self.others = others;
                Some(true)
            }
            Message::Older(pod, open, ended) => {
                self.take_older(&pod, open, &ended);
                Some(false)
            }
            Message::Connections(reply) => {
                self.take_events();
                self.sample();
                // Whoever asked may have gone.
                let mut views = self.ledger.views();
                views.extend(self.elders.views());
                drop(reply.send(views));
                Some(false)
            }
            Message::Verdict(key, reply) => {
                let _gone = reply.send(self.verdict(key)).is_err();
                Some(false)
            }
            Message::Waypoint(pod, said) => {
                let before = match said {
                    Some(said) => self.said.insert(pod, said),
                    None => self.said.remove(&pod),
                };
                Some(before.as_ref() != self.said.get(&pod))
            }
            Message::Leads(source, dialled, reply) => {
                let _gone = reply.send(self.leads(source, dialled)).is_err();
                Some(false)
            }
            Message::Charge(inherit, done) => {
                self.charge(inherit);
                let _nobody_waits = done.send(()).is_err();
                Some(false)
            }
            Message::Pause(done) => {
                self.take_events();
                self.native.pause();
                self.in_charge = false;
                // A successor talks to them.
                self.waypoints.send_replace(Wanted::default());
                let _nobody_waits = done.send(()).is_err();
                Some(false)
            }
            Message::Stop => None,
        }
    }

    /// As the kernel does it, but for whether the waypoint listens.
    fn leads(&self, source: u32, dialled: SocketAddr) -> bool {
        let dialled = Endpoint::new(Addr::from(dialled.ip().to_canonical()), dialled.port());
        let Some(service) = self.tables.services.get(&dialled) else {
            return false;
        };
        let led = |destination| {
            let key = VerdictKey {
                source,
                destination,
                port: ANY_PORT,
                way: LED,
            };
            self.verdict(key) == Some(DirectVerdict::Allow)
        };
        let mut doors = service.targets.iter().map(|(target, _)| target);
        doors.any(|door| is_waypoint_port(door.endpoint.port) && led(door.pod))
    }

    /// As the kernel looks it up: by the port, else by what stands for all of them.
    fn verdict(&self, key: VerdictKey) -> Option<DirectVerdict> {
        let same_node = self.mesh.same_node().unwrap_or(self.same_node);
        if !self.in_charge || same_node != SameNode::Direct {
            return None;
        }
        let any = VerdictKey {
            port: ANY_PORT,
            ..key
        };
        let verdicts = &self.tables.verdicts;
        verdicts.get(&key).or_else(|| verdicts.get(&any)).copied()
    }

    /// Removing tables that are in use would refuse a connection that was let through by one of them
    /// and is asked about again a moment later, at its SYN: they are compared instead.
    fn charge(&mut self, inherit: Inherit) {
        self.in_charge = true;
        self.walls.charge();
        self.native.charge();
        self.lost = self.kernel.counter(Reason::EventLost);
        self.untold = self.kernel.counter(Reason::DenialLost);
        self.unlisted |= !self.kernel.direct().local_pods().is_empty();
        if inherit == Inherit::Nothing {
            self.kernel.direct().clear();
            self.tables = Tables::default();
            self.denials = Denials::default();
            return;
        }
        self.tables = {
            let mut kernel = self.kernel.direct();
            kernel.recount();
            let verdicts = kernel.verdicts();
            Tables {
                verdicts: verdicts
                    .into_iter()
                    .map(|(key, raw)| (key, DirectVerdict::from_raw(Some(raw))))
                    .collect(),
                local_pods: kernel.local_pods(),
                // Without endpoints: each is written anew, in one step.
                services: kernel
                    .services()
                    .into_iter()
                    .map(|key| (key, ServiceTable::default()))
                    .collect(),
                ..Tables::default()
            }
        };
        let counts = self.kernel.direct().all_denials();
        self.denials.inherit(counts, &self.tables.verdicts);
        self.update();
    }

    fn take_events(&mut self) {
        if !self.in_charge {
            return;
        }
        let state = self.mesh.state();
        let mut events = Vec::new();
        self.kernel.direct().events(|event| events.push(event));
        let (refused, events): (Vec<_>, Vec<_>) = events
            .into_iter()
            .partition(|event| event.kind == EventKind::Denied as u32);
        self.take_denials(refused, &state);
        let mut opened: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for event in events {
            if let Some((server, ends)) =
                self.ledger.take(&event, &state, &self.pods, &self.recorder)
            {
                opened.entry(server).or_default().push(ends);
            }
        }
        // Policy may have changed between a connection's SYN and what is told of it.
        if self.updated.elapsed() > TOLD_WITHIN {
            return;
        }
        let policy = Policy {
            since: self.mesh.since().unwrap_or_else(Instant::now),
            state,
            left: Arc::clone(&self.left),
        };
        for (server, listed) in opened {
            policy.end_listed(&self.pods, &self.recorder, server, &listed);
        }
    }

    fn take_denials(&mut self, events: Vec<Event>, state: &MeshState) {
        let untold = self.kernel.counter(Reason::DenialLost);
        let mut kernel = self.kernel.direct();
        let to = Sink {
            state,
            pods: &self.pods,
            recorder: &self.recorder,
        };
        self.denials.take(&mut kernel, events, &to);
        if std::mem::replace(&mut self.untold, untold) != untold {
            self.denials.has_untold();
        }
        self.denials.take_untold(&kernel, &to);
        self.denials
            .forget_gone(&mut kernel, &self.tables.verdicts, &to);
    }

    /// Lists older connections and asks policy about them.
    fn take_older(
        &mut self,
        pod: &Arc<Pod>,
        mut open: Vec<Older>,
        ended: &[(SocketAddr, SocketAddr)],
    ) {
        self.recorder.metrics.cut(Ending::Older, ended.len() as u64);
        for (client, server) in ended {
            tracing::info!(target: "access", direction = "outbound", pod = %pod.name, src.addr = %client, dst.addr = %server,
                end = Ending::Older.as_str(), "connection ended: its pod was captured while it was being opened");
        }
        // A pod that is captured again may have direct connections.
        open.retain(|older| !self.ledger.has(&older.flow()));
        let state = self.mesh.state();
        self.elders.add(pod, open, &state, &self.recorder);
        self.elders.judge(&state, &self.recorder);
    }

    /// Lets the kernel forget older connections.
    fn unlist(&self, flows: Vec<Flow>) {
        if flows.is_empty() || !self.in_charge {
            return;
        }
        let mut kernel = self.kernel.older();
        for flow in flows {
            kernel.remove(flow);
        }
    }

    /// Ends what was led to a waypoint that is not among the pods any more.
    fn end_orphans(&self, pods: &[Arc<Pod>]) {
        let before = self.pods.iter().map(|pod| pod.id);
        let is_gone = |id: &u32| !pods.iter().any(|pod| pod.id == *id);
        let gone: HashSet<u32> = before.filter(is_gone).collect();
        if gone.is_empty() {
            return;
        }
        let open = self.ledger.to(&gone).into_values().flatten();
        let led = open.filter(|(_, waypoint)| is_waypoint_port(waypoint.port()));
        revoke::end_orphans(pods, &self.recorder, led);
    }

    /// Notes who is not among the pods any more and has connections open.
    fn note_left(&mut self, pods: &[Arc<Pod>]) {
        self.take_events();
        let before = self.pods.iter().map(|pod| Left::of(pod));
        let gone = self.left.iter().cloned().chain(before);
        let gone = gone.filter(|left| !pods.iter().any(|pod| pod.id == left.id));
        self.keep_left(gone.collect());
    }

    fn keep_left(&mut self, mut left: Vec<Left>) {
        if !left.is_empty() {
            let ids = left.iter().map(|left| left.id).collect();
            let open = self.ledger.of_clients(&ids);
            left.retain(|left| open.contains(&left.id));
        }
        self.left = left.into();
    }

    fn update(&mut self) {
        if !self.in_charge {
            return;
        }
        self.walls.update();
        // Read before the state: a newer state makes the time longer, never shorter.
        let since = self.mesh.since().unwrap_or_else(Instant::now);
        self.follow_same_node();
        let state = self.mesh.state();
        self.elders.judge(&state, &self.recorder);
        let local: Vec<LocalPod> = self.pods.iter().map(|pod| LocalPod::of(pod)).collect();
        self.tell_waypoints(&state);
        let mut tables = compile(&state, &local, &self.said);
        // Nobody else may use them: the source guard looks here.
        for other in &self.others {
            tables
                .local_pods
                .entry(Addr::from(other.to_canonical()))
                .or_insert(0);
        }
        self.ledger.changed();
        let withdrawn = self.apply(&mut tables);
        self.denials
            .changed(&self.tables.verdicts, &tables.verdicts);
        self.reached.0.store(Arc::new(tables.reached.clone()));
        self.tables = tables;
        tracing::debug!(
            after_us = microseconds(since),
            "the kernel goes by the new configuration"
        );
        if withdrawn.is_empty() && self.left.is_empty() {
            return;
        }
        // Whatever was opened before the kernel knew better is listed now.
        self.take_events();
        self.keep_left(self.left.to_vec());
        let policy = Policy {
            state,
            since,
            left: Arc::clone(&self.left),
        };
        // Verdicts say nothing of clients that have left: policy is asked about each connection.
        let left = self.left.iter().map(|left| left.id).collect();
        let mut servers = self.ledger.servers_of(&left);
        servers.extend(&withdrawn);
        for (server, listed) in self.ledger.to(&servers) {
            policy.end_listed(&self.pods, &self.recorder, server, &listed);
        }
        let lost = self.kernel.counter(Reason::EventLost);
        self.unlisted |= lost != self.lost || self.ledger.has_missed();
        self.lost = lost;
        if self.unlisted {
            self.sweep.add(withdrawn, &policy);
        }
    }

    /// Waypoints hear who calls them; until they have heard nobody is led to them.
    fn tell_waypoints(&mut self, state: &MeshState) {
        let direct = self.mesh.same_node().unwrap_or(self.same_node) == SameNode::Direct;
        let wanted = if direct {
            waypoints::wanted(state, &self.pods)
        } else {
            Wanted::default()
        };
        let is_there = |pod: &u32| wanted.waypoints.iter().any(|(one, _)| one.id == *pod);
        self.said.retain(|pod, _| is_there(pod));
        self.waypoints.send_if_modified(|told| {
            let changed = *told != wanted;
            *told = wanted;
            changed
        });
    }

    /// Does as the mesh says, or else as this agent is told. Connections that are open stay as they are.
    fn follow_same_node(&self) {
        // Without a word about pods there is nothing to lead anywhere.
        if self.pods.is_empty() {
            return;
        }
        let same_node = self.mesh.same_node().unwrap_or(self.same_node);
        match self.kernel.set_direct(same_node == SameNode::Direct) {
            Ok(true) => {
                tracing::info!(
                    ?same_node,
                    "how captured pods of this node talk to each other"
                );
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(
                    error = describe(&error),
                    "cannot set how pods of this node talk to each other"
                );
            }
        }
    }

    /// Looks at all connections to one of the pods to which something is refused now; the others
    /// wait for their turn, so that no change of policy waits for more than one.
    fn sweep_one(&mut self) {
        let (pods, recorder) = (&self.pods, &self.recorder);
        self.sweep
            .one(|server, policy| policy.end_all(pods, recorder, server));
    }
}

/// The time since then, in microseconds.
fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
