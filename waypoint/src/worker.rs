//! The threads that serve: one current-thread runtime each, with its own listener and its own connections to endpoints.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::drain::DrainSignal;
use runtime::threads::{self, Told};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::accept;
use crate::active::{Clusters, Newest};
use crate::balance::state::Registry;
use crate::doors::{self, Doors, KnownCallers};
use crate::edge::{self, Secured};
use crate::forward::answers::Answers;
use crate::forward::pool::Pool;
use crate::telemetry::Telemetry;
use crate::trace::MayTrace;

/// Bounds of what a client may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Header lines of a request.
    pub header_count: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Time for the head of a request, from its first byte.
    pub head_timeout: Duration,
    /// Time without a request on a connection.
    pub idle_timeout: Duration,
    /// Time in which a client does not go on with a request or its answer; zero is without end.
    pub stream_idle: Duration,
    /// Time for the first bytes on a port whose protocol is not declared.
    pub detect_timeout: Duration,
    /// Streams at once on one HTTP/2 connection of a client.
    pub streams: u32,
    /// After which time an HTTP/2 client is asked to connect anew.
    pub http2_age: Duration,
    /// Bytes of a request's body that are kept to send it again.
    pub replay_bytes: usize,
    /// For how long a worker stays awake for what it expects at once; see [`runtime::busy`].
    pub busy_poll: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_count: 128,
            head_bytes: 64 << 10,
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_hours(1),
            stream_idle: Duration::from_mins(5),
            detect_timeout: Duration::from_secs(1),
            streams: 100,
            http2_age: Duration::from_secs(50),
            replay_bytes: 64 << 10,
            busy_poll: Duration::ZERO,
        }
    }
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) newest: Arc<Newest>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    /// This pod, `namespace/name`.
    pub(crate) pod: Arc<str>,
    pub(crate) tracer: MayTrace,
    pub(crate) limits: Limits,
    pub(crate) doors: Arc<Doors>,
    pub(crate) drain: DrainSignal,
    pub(crate) stage: watch::Receiver<Stage>,
}

/// How far the program is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Connections are taken.
    Open,
    /// No connection is taken any more; those that are open go on.
    Closed,
    /// Nothing goes on.
    Over,
}

impl Shared {
    /// Resolves when no connection is taken any more.
    pub(crate) async fn closed(&self) {
        self.reached(Stage::Closed).await;
    }

    async fn reached(&self, wanted: Stage) {
        let mut stage = self.stage.clone();
        // A sender that is gone means the same.
        drop(stage.wait_for(|stage| *stage >= wanted).await);
    }
}

/// What one worker has.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) clusters: Clusters,
    pub(crate) secured: Secured,
    /// Answers that clients have not taken to their end.
    pub(crate) answers: Rc<Answers>,
    /// Who has which address of this node, as this worker goes by it.
    pub(crate) callers: RefCell<KnownCallers>,
}

/// Starts so many workers on as many listeners.
///
/// # Errors
/// A thread cannot be started.
pub(crate) fn start(
    shared: &Arc<Shared>,
    listeners: Vec<std::net::TcpListener>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        listeners.iter().map(|_| unbounded_channel()).unzip();
    let mut threads = Vec::new();
    for (index, (listener, orders)) in listeners.into_iter().zip(receivers).enumerate() {
        let others: Vec<UnboundedSender<u32>> = senders
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .map(|(_, sender)| sender.clone())
            .collect();
        let shared = Arc::clone(shared);
        let body = move || {
            if let Err(error) = run(shared, listener, others, orders) {
                tracing::error!(%error, "a worker cannot serve");
            }
            Told
        };
        threads.push(threads::spawn(&format!("worker-{index}"), body)?);
    }
    Ok(threads)
}

fn run(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    others: Vec<UnboundedSender<u32>>,
    mut orders: UnboundedReceiver<u32>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async move {
        let worker = Rc::new(Worker {
            shared: Arc::clone(&shared),
            pool: Pool::new(others),
            clusters: Clusters::default(),
            secured: Secured::default(),
            answers: Rc::default(),
            callers: RefCell::default(),
        });
        let listener = TcpListener::from_std(listener)?;
        let accepting = tokio::task::spawn_local(accept::accept(Rc::clone(&worker), listener));
        tokio::task::spawn_local(edge::keep(Rc::clone(&worker)));
        tokio::task::spawn_local(doors::keep(Rc::clone(&worker)));
        let answers = Rc::clone(&worker.answers);
        tokio::task::spawn_local(answers.keep(shared.limits.stream_idle));
        tokio::task::spawn_local(runtime::busy::stay_awake(shared.limits.busy_poll));
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                // A worker without others gets none: nobody holds a sender, which must not count as news.
                Some(cluster) = orders.recv() => worker.pool.release(cluster),
                _ = sweep.tick() => {
                    worker.pool.sweep();
                    let active = shared.newest.load();
                    shared.registry.forget(|key| active.l7.cluster(key, key.port).is_some());
                    shared.telemetry.recorder.settle();
                }
                () = shared.closed() => break,
            }
        }
        drop(accepting.await);
        // What is open goes on until the drain has ended; the process ends then.
        shared.reached(Stage::Over).await;
        Ok(())
    })
}

const SWEEP_EVERY: Duration = Duration::from_secs(5);
