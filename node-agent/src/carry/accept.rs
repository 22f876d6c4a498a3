//! Accepting connections, also when the agent has run out of descriptors.
//!
//! A connection that cannot be accepted for want of a descriptor would stay in the kernel's queue and
//! its client would hang. One descriptor is kept in reserve for it: let go, it makes room to accept the
//! connection and to reset it.

use std::{
    fs::File,
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    carry::{inbound, outbound, worker::Worker},
    host::is_exhausted,
    pod::{
        Pod,
        budget::{Full, Permit},
        sock,
    },
    telemetry::record::Direction,
};

/// Wait after an accept that failed, so that a failure that lasts does not keep a processor busy.
const BACKOFF: Duration = Duration::from_millis(20);
/// A failure that lasts is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// The descriptor that is kept in reserve, one for the agent.
static RESERVE: Mutex<Option<File>> = Mutex::new(None);
/// Whether there is none, so that nobody needs the lock who only wants to know.
static IS_EMPTY: AtomicBool = AtomicBool::new(true);

/// Takes a listener's connections.
pub(crate) struct Acceptor {
    listener: TcpListener,
    logged: Option<Instant>,
}

/// What became of an attempt.
pub(crate) enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// A connection that came while there were no descriptors: to be reset at once.
    OutOfDescriptors(TcpStream, SocketAddr),
    /// None; the kernel said why.
    Failed,
}

/// A connection that a worker has accepted and has not looked at.
pub(crate) struct Arrival {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) direction: Direction,
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
}

impl Arrival {
    /// Serves a connection of the pod, if it has room for one more.
    pub(crate) fn serve<F>(
        self,
        serve: impl FnOnce(Rc<Worker>, Arc<Pod>, TcpStream, SocketAddr, Permit) -> F,
    ) where
        F: Future<Output = ()> + 'static,
    {
        let ends = self.ends();
        let Ok(permit) = self.worker.admit(&self.pod, self.direction, ends) else {
            return tunnel::copy::reset(self.stream);
        };
        self.set_up();
        let worker = Rc::clone(&self.worker);
        let served = serve(self.worker, self.pod, self.stream, self.peer, permit);
        worker.serving.spawn_local(served);
    }

    /// Serves a connection that the pod opens, whose other half is open already where its SYN was held.
    pub(crate) fn serve_outbound(self) {
        let target = self.stream.local_addr();
        let opened = target.map(|target| self.worker.opener.take(self.pod.id, self.peer, target));
        let Ok(Some(opened)) = opened else {
            return self.serve(outbound::serve);
        };
        self.set_up();
        let worker = Rc::clone(&self.worker);
        let carried = outbound::carry(self.worker, self.pod, self.stream, opened);
        worker.serving.spawn_local(carried);
    }

    /// Serves a tunnel. It takes room of the pod once the peer has shown who it is.
    pub(crate) fn serve_tunnel(self, stop: &CancellationToken) {
        self.set_up();
        let worker = Rc::clone(&self.worker);
        let stop = stop.clone();
        let served = inbound::serve_tunnel(self.worker, self.pod, self.stream, self.peer, stop);
        worker.serving_tunnels.spawn_local(served);
    }

    /// Resets a connection that came while there were no descriptors.
    pub(crate) fn out_of_descriptors(self) {
        let ends = self.ends();
        let (worker, pod) = (&self.worker, &self.pod);
        worker.shared.recorder.metrics.accept_failed();
        tunnel::copy::reset(self.stream);
        worker.refuse_full(pod, self.direction, ends, Full::Descriptors);
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.peer, self.stream.local_addr().unwrap_or(self.peer))
    }

    fn set_up(&self) {
        if let Err(error) = sock::set_up(&self.stream) {
            // The peer is gone already.
            tracing::debug!(%error, "an accepted connection cannot be set up");
        }
    }
}

impl Acceptor {
    pub(crate) fn new(listener: TcpListener) -> Self {
        let _ready = has_reserve();
        Self {
            listener,
            logged: None,
        }
    }

    /// Waits for the next connection, or for a failure, which is logged as the pod's.
    pub(crate) async fn next(&mut self, pod: &impl std::fmt::Display) -> Accepted {
        // Before a descriptor that has become free goes to a connection.
        let _ready = has_reserve();
        match self.listener.accept().await {
            Ok((stream, peer)) if has_reserve() => Accepted::Connection(stream, peer),
            // It has the last one: kept, it would let those after it hang.
            Ok((stream, peer)) => Accepted::OutOfDescriptors(stream, peer),
            Err(error) => {
                if self.logged.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
                    self.logged = Some(Instant::now());
                    tracing::warn!(%pod, %error, "cannot accept a connection");
                }
                if is_exhausted(&error)
                    && let Some((stream, peer)) = self.accept_with_reserve().await
                {
                    return Accepted::OutOfDescriptors(stream, peer);
                }
                tokio::time::sleep(BACKOFF).await;
                Accepted::Failed
            }
        }
    }

    /// The listener, for who accepts without waiting.
    pub(crate) fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// The caller drops the connection before it comes back here, which makes room for the reserve.
    async fn accept_with_reserve(&mut self) -> Option<(TcpStream, SocketAddr)> {
        let reserve = RESERVE.lock().take()?;
        IS_EMPTY.store(true, Ordering::Relaxed);
        drop(reserve);
        let at_once = poll_fn(|context| {
            Poll::Ready(match self.listener.poll_accept(context) {
                Poll::Ready(accepted) => accepted.ok(),
                Poll::Pending => None,
            })
        });
        let accepted = at_once.await;
        if accepted.is_none() {
            // Nobody waited: the kernel asks for a descriptor before it looks at its queue. A connection
            // that is being made would take this one before the next look here.
            let _ready = has_reserve();
        }
        accepted
    }
}

/// Whether there is a descriptor in reserve, or could be; takes one if there is not.
fn has_reserve() -> bool {
    // A machine without the file is no reason to refuse.
    !IS_EMPTY.load(Ordering::Relaxed)
        || refill().map_or_else(|error| !is_exhausted(&error), |()| true)
}

fn refill() -> io::Result<()> {
    let mut reserve = RESERVE.lock();
    if reserve.is_none() {
        *reserve = Some(File::open("/dev/null")?);
    }
    IS_EMPTY.store(false, Ordering::Relaxed);
    Ok(())
}
