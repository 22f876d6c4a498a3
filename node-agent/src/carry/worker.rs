//! What one worker holds, as its own tasks see it. Both halves of a connection live on the worker that
//! accepted it, and nothing on the data path is locked.

use std::{
    cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration,
};

use abi::{Addr, FLOW_WINDOW_NS, Flow};
use model::Identity;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tunnel::{copy::Abort, pool};

use super::{
    hold::Opener,
    lobby::{self, Lobby},
    session::now,
    silence::Watched,
};
use crate::{
    bpf::{Heartbeat, HeldSyns, Kernel},
    direct::Reached,
    mesh::Mesh,
    pod::{
        Carried, Pod,
        budget::Budget,
        sock::RawSockets,
        translation::{Translations, Walks},
    },
    telemetry::record::{Live, Recorder},
};

/// Connections that a listener, or a peer's tunnel, takes in one turn.
pub(crate) const TURN: u32 = 4;

/// What all workers share.
pub struct Shared {
    /// The mesh as the controller tells it.
    pub mesh: Arc<Mesh>,
    /// Where connections are told of.
    pub recorder: Arc<Recorder>,
    /// Which workloads the kernel reaches itself.
    pub reached: Arc<Reached>,
    /// The kernel half, which remembers what endpoints clients keep.
    pub kernel: Arc<Kernel>,
    /// What ports of pods become that translate addresses.
    pub(crate) translations: Translations,
    pub(crate) walks: Walks,
    /// How much is carried for each pod.
    pub budget: Arc<Budget>,
    /// How many peers may wait at each worker that have not shown who they are.
    pub lobby: lobby::Bounds,
    /// Limits and times of tunnels.
    pub tunnel: tunnel::Settings,
    /// How long a worker may stay awake for bytes that it expects at once.
    pub busy_poll: Duration,
    /// How long a TCP connection may take to be established.
    pub connect_timeout: Duration,
    /// SYNs that wait for us.
    pub held: Arc<HeldSyns>,
    /// Where workers say that they are alive.
    pub heartbeat: Arc<Heartbeat>,
    /// Told of a pod, by its number, whose application refused a connection on a port that was said to listen.
    pub not_listening: Box<dyn Fn(u32) + Send + Sync>,
}

/// One worker, as its own tasks see it.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The tunnels of each pod: their sockets live and end with the pod's network namespace, so pods
    /// never share one, not even of the same identity.
    pub(super) pools: RefCell<HashMap<u32, pool::Pool>>,
    pub(super) pods: RefCell<HashMap<u32, PodTasks>>,
    pub(super) live: RefCell<HashMap<u64, Rc<Tracked>>>,
    pub(super) next: std::cell::Cell<u64>,
    /// Accepted connections that are being served, tunnels apart.
    pub(crate) serving: TaskTracker,
    /// Tunnels that peers have open.
    pub(crate) serving_tunnels: TaskTracker,
    /// Tunnels that we have open.
    pub(crate) tunnels: TaskTracker,
    /// Peers that have not shown who they are.
    pub(crate) lobby: RefCell<Lobby>,
    /// Connections of pods that wait to be opened, and their other halves.
    pub(crate) opener: Opener,
    /// Connections that have ended.
    pub(super) ended: std::cell::Cell<u64>,
    /// Cancelled when it drains: from then on its beats would speak for whoever has its part of them next.
    pub(super) beating: CancellationToken,
}

pub(super) struct PodTasks {
    pub(super) pod: Arc<Pod>,
    /// They keep the pod's namespace alive, as its listeners do.
    pub(super) raw: Rc<RawSockets>,
    pub(super) accept: CancellationToken,
    pub(super) tunnels: CancellationToken,
}

pub(super) struct Tracked {
    pub(super) pod: Arc<Pod>,
    pub(super) live: Live,
    pub(super) watched: Watched,
}

/// A connection on a worker's list.
pub(crate) struct Track {
    worker: Rc<Worker>,
    key: u64,
    tracked: Rc<Tracked>,
    _carried: Carried,
}

impl Track {
    /// Where the bytes of the connection are counted.
    pub(crate) fn counters(&self) -> &Arc<tunnel::copy::Counters> {
        &self.tracked.live.counters
    }

    /// Tells how it ended.
    pub(crate) fn close(self, end: &tunnel::copy::CopyEnd) {
        self.tracked.live.close(end);
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        let worker = &self.worker;
        if let Some(noted) = self.tracked.watched.noted() {
            worker.shared.kernel.forget_waits(noted);
        }
        worker.live.borrow_mut().remove(&self.key);
        worker.ended.set(worker.ended.get() + 1);
    }
}

impl Worker {
    /// Who opened a connection to a pod directly, by the kernel's note of the socket that sent its SYN; nobody where
    /// there is none.
    pub(crate) fn caller(
        &self,
        pod: &Pod,
        client: SocketAddr,
        dialled: SocketAddr,
    ) -> Option<Identity> {
        let note = self.shared.kernel.noted(Flow {
            source: Addr::from(client.ip()),
            destination: Addr::from(dialled.ip()),
            source_port: client.port(),
            destination_port: dialled.port(),
        })?;
        // Another processor's clock may be a little ahead.
        let is_fresh = now()? < note.time.saturating_add(FLOW_WINDOW_NS);
        if note.destination != pod.id || !is_fresh {
            return None;
        }
        let pods = self.pods.borrow();
        pods.get(&note.source)
            .map(|tasks| tasks.pod.identity.clone())
    }

    /// What ends the tunnels that peers have to a pod.
    pub(crate) fn tunnels_of(&self, pod: &Pod) -> CancellationToken {
        let pods = self.pods.borrow();
        pods.get(&pod.id).map_or_else(
            || {
                let over = CancellationToken::new();
                over.cancel();
                over
            },
            |tasks| tasks.tunnels.clone(),
        )
    }

    /// A pod that the worker accepts for.
    pub(crate) fn pod(&self, id: u32) -> Option<Arc<Pod>> {
        let pods = self.pods.borrow();
        pods.get(&id).map(|tasks| Arc::clone(&tasks.pod))
    }

    /// By which a pod is sent packets that are made here.
    pub(crate) fn raw_sockets(&self, id: u32) -> Option<Rc<RawSockets>> {
        let pods = self.pods.borrow();
        pods.get(&id).map(|tasks| Rc::clone(&tasks.raw))
    }

    /// The tunnels of a pod.
    pub(crate) fn pool(&self, pod: &Pod) -> pool::Pool {
        let mut pools = self.pools.borrow_mut();
        let new = || pool::Pool::new(pool::Config::default());
        // What opens while the pod is removed shares with nobody.
        if !self.pods.borrow().contains_key(&pod.id) {
            return new();
        }
        pools.entry(pod.id).or_insert_with(new).clone()
    }

    /// Keeps a connection on the list until it is told how it ended.
    pub(crate) fn track(self: &Rc<Self>, pod: &Arc<Pod>, live: Live, watched: Watched) -> Track {
        let carried = pod.carry();
        let key = self.next.replace(self.next.get() + 1);
        let tracked = Rc::new(Tracked {
            pod: Arc::clone(pod),
            live,
            watched,
        });
        self.live.borrow_mut().insert(key, Rc::clone(&tracked));
        Track {
            worker: Rc::clone(self),
            key,
            tracked,
            _carried: carried,
        }
    }
}

/// Waits for the word to end a connection; never, if nobody can say it any more.
pub(crate) async fn aborted(receiver: oneshot::Receiver<Abort>) -> Abort {
    match receiver.await {
        Ok(abort) => abort,
        Err(_) => std::future::pending().await,
    }
}
