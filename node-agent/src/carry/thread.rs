//! The thread of one worker: what it is told, how it listens for its pods, and how it drains.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use model::policy::{Connection, Verdict};
use runtime::threads::{self, Told};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::LocalSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tunnel::{copy::Abort, pool};

use super::{
    accept::{Accepted, Acceptor, Arrival},
    hold::Opener,
    inbound,
    lobby::Lobby,
    silence::{self, Silence},
    worker::{PodTasks, Shared, TURN, Worker},
};
use crate::{
    bpf::{Heartbeat, SynBuffer},
    pod::{Pod, sock::RawSockets},
    telemetry::record::{Direction, LiveView},
};

/// How often byte counters of live connections reach the metrics, and idle tunnels are looked for.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long an agent that was succeeded goes on accepting. Connections whose SYN it got are its own
/// although they are established later: a SYN-ACK that was lost is sent again after 1 and 3 s.
const ACCEPT_LINGER: Duration = Duration::from_secs(4);
/// How long tunnels without streams may take to end after GOAWAY.
const TUNNELS_END_WITHIN: Duration = Duration::from_secs(5);
/// How often a worker says that it is alive; the kernel half takes it for hung after [`abi::BEAT_WINDOW_NS`].
const BEAT: Duration = Duration::from_millis(500);
/// How often a draining worker looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// The sockets of one worker inside one pod.
pub struct PodListeners {
    /// Takes what the pod opens.
    pub outbound: std::net::TcpListener,
    /// Takes plaintext from outside.
    pub inbound: std::net::TcpListener,
    /// Takes tunnels.
    pub hbone: std::net::TcpListener,
}

enum Command {
    AddPod(Arc<Pod>, PodListeners),
    Receive(SynBuffer),
    RemovePod {
        id: u32,
        connections: bool,
    },
    Reauthorize,
    Connections(oneshot::Sender<Vec<LiveView>>),
    Drain {
        cause: Cause,
        deadline: Instant,
        done: oneshot::Sender<Drained>,
    },
}

/// Why an agent drains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Another agent has taken over: new connections are its business.
    Succeeded,
    /// It was asked to stop: new connections are refused until there is another agent.
    Stopped,
}

/// How the connections of a draining agent ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// By themselves.
    pub finished: u64,
    /// At the deadline.
    pub cut: u64,
}

impl std::ops::AddAssign for Drained {
    fn add_assign(&mut self, other: Self) {
        self.finished += other.finished;
        self.cut += other.cut;
    }
}

/// Talks to a worker.
#[derive(Clone)]
pub struct WorkerHandle(mpsc::UnboundedSender<Command>);

impl WorkerHandle {
    /// Starts a worker thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(index: u32, shared: Arc<Shared>) -> io::Result<Self> {
        let (sender, commands) = mpsc::unbounded_channel();
        threads::spawn(&format!("worker-{index}"), move || {
            run(index, shared, commands);
            Told
        })?;
        Ok(Self(sender))
    }

    /// Accepts a pod's connections. A pod that is known already gets its new sockets.
    pub fn add_pod(&self, pod: Arc<Pod>, listeners: PodListeners) {
        self.send(Command::AddPod(pod, listeners));
    }

    /// Opens the connections whose SYNs come there.
    pub(crate) fn receive(&self, syns: SynBuffer) {
        self.send(Command::Receive(syns));
    }

    /// Stops accepting for a pod; with `connections`, ends what it has open too.
    pub fn remove_pod(&self, id: u32, connections: bool) {
        self.send(Command::RemovePod { id, connections });
    }

    /// Asks policy again about every live inbound connection.
    pub fn reauthorize(&self) {
        self.send(Command::Reauthorize);
    }

    /// The live connections.
    pub async fn connections(&self) -> Vec<LiveView> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Connections(reply));
        answer.await.unwrap_or_default()
    }

    /// Stops accepting, lets live connections finish until the deadline, ends the rest.
    pub async fn drain(&self, cause: Cause, deadline: Instant) -> Drained {
        let (done, drained) = oneshot::channel();
        self.send(Command::Drain {
            cause,
            deadline,
            done,
        });
        // A worker that is gone has nothing left to drain.
        drained.await.unwrap_or_default()
    }

    fn send(&self, command: Command) {
        // Workers end with the process.
        drop(self.0.send(command));
    }
}

fn run(index: u32, shared: Arc<Shared>, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker cannot start; stopping");
            std::process::abort();
        }
    };
    LocalSet::new().block_on(&runtime, async move {
        let worker = Rc::new(Worker {
            lobby: RefCell::new(Lobby::new(shared.lobby)),
            opener: Opener::new(Arc::clone(&shared.held)),
            shared,
            pools: RefCell::default(),
            pods: RefCell::default(),
            live: RefCell::default(),
            next: std::cell::Cell::new(0),
            serving: TaskTracker::new(),
            serving_tunnels: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            ended: std::cell::Cell::new(0),
            beating: CancellationToken::new(),
        });
        tokio::task::spawn_local(beat(
            index,
            Arc::clone(&worker.shared.heartbeat),
            worker.beating.clone(),
        ));
        tokio::task::spawn_local(runtime::busy::stay_awake(worker.shared.busy_poll));
        worker.serve(commands).await;
    });
}

/// Says that the worker is alive for as long as its runtime gets to this.
async fn beat(index: u32, heartbeat: Arc<Heartbeat>, over: CancellationToken) {
    let mut ticks = tokio::time::interval(BEAT);
    // After a standstill one is as good as many.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return,
            _ = ticks.tick() => heartbeat.beat(index),
        }
    }
}

impl Worker {
    async fn serve(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        let mut looks = tokio::time::interval(silence::LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut silence = Silence::new();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on(command),
                    None => return,
                },
                _ = ticks.tick() => {
                    self.live.borrow().values().for_each(|tracked| tracked.live.report());
                    self.pools.borrow().values().for_each(pool::Pool::evict_idle);
                    self.opener.tidy();
                }
                _ = looks.tick() => self.end_silent(&mut silence),
            }
        }
    }

    /// Ends what has been silent for longer than its application waits.
    fn end_silent(&self, silence: &mut Silence) {
        let kernel = &self.shared.kernel;
        let changes = kernel.counter(abi::Reason::WaitsNoted);
        let live = self.live.borrow();
        let connections = live.values();
        let watched = connections.map(|tracked| (&tracked.watched, tracked.live.counters.sent()));
        let over = silence.look(watched, changes, |flow| kernel.waits(flow));
        let mut over = over.into_iter().peekable();
        for (place, tracked) in live.values().enumerate() {
            if let Some((_, quiet)) = over.next_if(|(silent, _)| *silent == place) {
                let cause = format!(
                    "nothing has come from the far side for {:.1} s, longer than the application waits",
                    quiet.as_secs_f64()
                );
                tracked.live.end(Abort::Silence, cause);
            }
        }
    }

    fn on(self: &Rc<Self>, command: Command) {
        match command {
            Command::AddPod(pod, listeners) => {
                if let Err(error) = self.add_pod(&pod, listeners) {
                    tracing::error!(pod = %pod.name, %error, "a worker cannot accept for the pod");
                }
            }
            Command::Receive(syns) => self.receive(syns),
            Command::RemovePod { id, connections } => self.remove_pod(id, connections),
            Command::Reauthorize => self.reauthorize(),
            Command::Connections(reply) => {
                let views = self
                    .live
                    .borrow()
                    .values()
                    .map(|tracked| tracked.live.view())
                    .collect();
                // Whoever asked may have gone.
                drop(reply.send(views));
            }
            Command::Drain {
                cause,
                deadline,
                done,
            } => {
                let worker = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    let drained = worker.drain(cause, deadline).await;
                    let _nobody_waits = done.send(drained).is_err();
                });
            }
        }
    }

    fn add_pod(self: &Rc<Self>, pod: &Arc<Pod>, listeners: PodListeners) -> io::Result<()> {
        let tasks = PodTasks {
            pod: Arc::clone(pod),
            raw: Rc::new(RawSockets::new(&pod.netns)?),
            accept: CancellationToken::new(),
            tunnels: CancellationToken::new(),
        };
        let outbound = TcpListener::from_std(listeners.outbound)?;
        let inbound = TcpListener::from_std(listeners.inbound)?;
        let hbone = TcpListener::from_std(listeners.hbone)?;
        self.accept(
            outbound,
            pod,
            Direction::Outbound,
            &tasks.accept,
            Arrival::serve_outbound,
        );
        self.accept(inbound, pod, Direction::Inbound, &tasks.accept, |arrival| {
            arrival.serve(inbound::serve_plaintext);
        });
        let tunnels = tasks.tunnels.clone();
        self.accept(
            hbone,
            pod,
            Direction::Inbound,
            &tasks.accept,
            move |arrival| {
                arrival.serve_tunnel(&tunnels);
            },
        );
        if let Some(before) = self.pods.borrow_mut().insert(pod.id, tasks) {
            before.accept.cancel();
        }
        Ok(())
    }

    fn remove_pod(&self, id: u32, connections: bool) {
        if let Some(tasks) = self.pods.borrow_mut().remove(&id) {
            tasks.accept.cancel();
            tasks.tunnels.cancel();
        }
        if connections {
            if let Some(pool) = self.pools.borrow_mut().remove(&id) {
                pool.drain();
            }
            for tracked in self
                .live
                .borrow()
                .values()
                .filter(|tracked| tracked.pod.id == id)
            {
                tracked.live.end(
                    Abort::Drain,
                    "the pod has left the mesh or is gone".to_owned(),
                );
            }
        }
    }

    /// Accepts until cancelled, then takes what the kernel had completed before closing.
    ///
    /// Listeners take turns: each takes a few connections and then waits until the others, and what they have
    /// taken, have had theirs. A pod that opens connections without end waits for itself.
    fn accept(
        self: &Rc<Self>,
        listener: TcpListener,
        pod: &Arc<Pod>,
        direction: Direction,
        stop: &CancellationToken,
        start: impl Fn(Arrival) + 'static,
    ) {
        let (worker, pod, stop) = (Rc::clone(self), Arc::clone(pod), stop.clone());
        let accepting = async move {
            let arrival = |stream, peer| Arrival {
                worker: Rc::clone(&worker),
                pod: Arc::clone(&pod),
                direction,
                stream,
                peer,
            };
            let mut acceptor = Acceptor::new(listener);
            let mut turn = 0;
            loop {
                let accepted = tokio::select! {
                    biased;
                    accepted = acceptor.next(&pod.name) => accepted,
                    () = stop.cancelled() => break,
                };
                match accepted {
                    Accepted::Connection(stream, peer) => start(arrival(stream, peer)),
                    Accepted::OutOfDescriptors(stream, peer) => {
                        arrival(stream, peer).out_of_descriptors()
                    }
                    Accepted::Failed => worker.shared.recorder.metrics.accept_failed(),
                }
                turn = (turn + 1) % TURN;
                if turn == 0 {
                    tokio::task::yield_now().await;
                }
            }
            // The runtime may not have heard yet of what waits.
            let Ok(listener) = acceptor.into_listener().into_std() else {
                return;
            };
            while let Ok((stream, peer)) = listener.accept() {
                let stream = stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream));
                match stream {
                    Ok(stream) => start(arrival(stream, peer)),
                    Err(error) => tracing::warn!(%error, "an accepted connection is lost"),
                }
            }
        };
        tokio::task::spawn_local(threads::task("accept", accepting));
    }

    fn reauthorize(&self) {
        let state = self.shared.mesh.state();
        for tracked in self.live.borrow().values() {
            let Some(authority) = &tracked.live.authority else {
                continue;
            };
            let connection = Connection {
                source: authority.source.as_ref(),
                source_ip: authority.source_ip,
                destination_ip: authority.destination.ip(),
                destination_port: authority.destination.port(),
            };
            // A pod whose workload is not known any more is about to be removed, and its
            // connections with it.
            let verdict = state
                .workload(tracked.pod.workload.as_ref())
                .map(|workload| state.authorize(workload, &connection));
            if let Some(Verdict::Deny(reason)) = verdict {
                tracked
                    .live
                    .end(Abort::Policy, format!("policy changed: {reason}"));
            }
        }
    }

    async fn drain(&self, cause: Cause, deadline: Instant) -> Drained {
        let ended = self.ended.get();
        self.beating.cancel();
        for tasks in self.pods.borrow().values() {
            tasks.tunnels.cancel();
        }
        if cause == Cause::Succeeded {
            let linger = (Instant::now() + ACCEPT_LINGER).min(deadline);
            tokio::time::sleep_until(linger.into()).await;
        }
        for tasks in self.pods.borrow().values() {
            tasks.accept.cancel();
        }
        // What was accepted may open streams in our tunnels; those that are open need none.
        while self.opening() > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        self.pools.borrow().values().for_each(pool::Pool::drain);
        while !self.live.borrow().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let cut = self.live.borrow().len() as u64;
        for tracked in self.live.borrow().values() {
            tracked.live.end(
                Abort::Drain,
                "the agent stops and the connection outlived the drain deadline".to_owned(),
            );
        }
        // For the resets to leave, the log lines to be written and the tunnels to end. What our own
        // tunnels have said last may still be in them.
        let last = Instant::now() + TUNNELS_END_WITHIN;
        tokio::time::sleep(DRAIN_LOOK).await;
        let are_over = || self.serving_tunnels.is_empty() && self.tunnels.is_empty();
        while !are_over() && Instant::now() < last {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        Drained {
            finished: (self.ended.get() - ended).saturating_sub(cut),
            cut,
        }
    }

    /// Accepted connections that are not established to the other side yet.
    fn opening(&self) -> usize {
        let live = self.live.borrow();
        let accepted = live.values().filter(|tracked| !tracked.live.in_tunnel());
        self.serving.len().saturating_sub(accepted.count())
    }
}
