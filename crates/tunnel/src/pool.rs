//! Which tunnel a connection takes: the tunnels of one worker, shared by all connections between
//! the same identities and the same address.
//!
//! A pool belongs to one thread. It never decides how to connect or when to try again: callers
//! bring the connecting, and get each failure once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared, WeakShared};
use model::Identity;
use thiserror::Error;

use crate::client::{ConnectError, ConnectRequest, OpenError, Reservation, Tunnel};
use crate::settings::MAX_STREAMS_PER_TUNNEL;
use crate::stream::TunnelStream;

/// What connections must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// As whom we connect.
    pub source: Identity,
    /// Where to.
    pub dial: SocketAddr,
    /// Whom we accept there.
    pub expected: Arc<[Identity]>,
}

/// The tunnels of one worker. Clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

/// How long and how much a pool keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// After this long without a stream a tunnel is closed. Less saves memory, more saves
    /// handshakes.
    pub idle_timeout: Duration,
    /// Connections that may wait for one tunnel that is being made. More make another at the same
    /// time, because it could not carry them.
    pub waiters_per_tunnel: usize,
}

/// What a pool holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tunnels that take or carry streams. Those that only finish their streams are not counted.
    pub tunnels: usize,
    /// Streams in them.
    pub streams: usize,
    /// Tunnels being made.
    pub connecting: usize,
}

/// Why a pool has no stream to give.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// No tunnel could be made. Everyone who waited for it gets the same error.
    #[error("cannot open a tunnel")]
    Connect(#[source] Arc<ConnectError>),
    /// There was a tunnel and it did not give a stream.
    #[error(transparent)]
    Open(OpenError),
    /// The pool is drained.
    #[error("the agent is stopping and opens no new connections")]
    Draining,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
            waiters_per_tunnel: MAX_STREAMS_PER_TUNNEL,
        }
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(config: Config) -> Self {
        Self {
            inner: Rc::new(Inner {
                config,
                entries: RefCell::new(HashMap::new()),
                draining: Cell::new(false),
            }),
        }
    }

    /// Opens a stream on a tunnel of `key`, making one with `connect` if none has room.
    ///
    /// `generation` counts the renewals of our certificate: a tunnel made with an older one takes
    /// no new streams, and lives until its streams end.
    ///
    /// A request that the peer did not process, or that found a pooled tunnel dead, is tried once
    /// more on another tunnel.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub async fn open<C, F>(
        &self,
        key: &Key,
        generation: u64,
        request: &ConnectRequest,
        connect: C,
    ) -> Result<TunnelStream, PoolError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Tunnel, ConnectError>> + 'static,
    {
        let (reservation, origin) = self.reserve(key, generation, &connect).await?;
        match reservation.open(request).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.is_unprocessed() => {}
            Err(error) if error.is_lost() && origin == Origin::Pooled => {}
            Err(error) => return Err(PoolError::Open(error)),
        }
        let (reservation, _) = self.reserve(key, generation, &connect).await?;
        reservation.open(request).await.map_err(PoolError::Open)
    }

    /// Makes a tunnel of `key` unless there is one, so that the next connection need not wait.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub async fn warm<C, F>(&self, key: &Key, generation: u64, connect: C) -> Result<(), PoolError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Tunnel, ConnectError>> + 'static,
    {
        self.reserve(key, generation, &connect).await.map(drop)
    }

    /// Closes the tunnels that have had no stream for the idle timeout, and forgets dead ones.
    pub fn evict_idle(&self) {
        let limit = self.inner.config.idle_timeout;
        let mut evicted = Vec::new();
        let mut entries = self.inner.entries.borrow_mut();
        entries.retain(|_, entry| {
            let keep = |tunnel: &mut Tunnel| {
                !tunnel.is_closed() && tunnel.idle_for().is_none_or(|idle| idle < limit)
            };
            evicted.extend(entry.tunnels.extract_if(.., |tunnel| !keep(tunnel)));
            entry.connecting.retain(Connecting::is_alive);
            !(entry.tunnels.is_empty() && entry.connecting.is_empty())
        });
        // Closing a tunnel wakes its driver: not while the entries are borrowed.
        drop(entries);
    }

    /// Calls [`Pool::evict_idle`] from time to time, for ever. Spawn it beside the pool's users.
    pub async fn maintain(self) {
        let period = (self.inner.config.idle_timeout / 4).max(Duration::from_millis(100));
        let weak = Rc::downgrade(&self.inner);
        drop(self);
        loop {
            tokio::time::sleep(period).await;
            let Some(inner) = weak.upgrade() else { return };
            Self { inner }.evict_idle();
        }
    }

    /// Opens no more streams and closes each tunnel (GOAWAY) as soon as it has none.
    pub fn drain(&self) {
        self.inner.draining.set(true);
        drop(self.inner.entries.take());
    }

    /// What the pool holds now.
    pub fn stats(&self) -> Stats {
        let entries = self.inner.entries.borrow();
        let tunnels = || entries.values().flat_map(|entry| &entry.tunnels);
        let connecting = entries.values().flat_map(|entry| &entry.connecting);
        Stats {
            tunnels: tunnels().count(),
            streams: tunnels().map(Tunnel::open_streams).sum(),
            connecting: connecting
                .filter(|connecting| connecting.is_alive())
                .count(),
        }
    }

    async fn reserve<C, F>(
        &self,
        key: &Key,
        generation: u64,
        connect: &C,
    ) -> Result<(Reservation, Origin), PoolError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Tunnel, ConnectError>> + 'static,
    {
        let mut away = false;
        for _ in 0..ATTEMPTS {
            let connecting = match self.find(key, generation, connect)? {
                Found::Room(reservation) => return Ok((reservation, Origin::Pooled)),
                Found::Connecting(connecting) => connecting,
            };
            let tunnel = connecting.await.map_err(PoolError::Connect)?;
            match tunnel.reserve() {
                Ok(reservation) => return Ok((reservation, Origin::Fresh)),
                Err(OpenError::Full) => {}
                // The peer's agent was about to leave; its successor takes the next one.
                Err(error) if error.is_unprocessed() && !away => away = true,
                // Making yet another would end the same way.
                Err(error) => return Err(PoolError::Open(error)),
            }
        }
        Err(PoolError::Open(OpenError::Full))
    }

    fn find<C, F>(&self, key: &Key, generation: u64, connect: &C) -> Result<Found, PoolError>
    where
        C: Fn() -> F,
        F: Future<Output = Result<Tunnel, ConnectError>> + 'static,
    {
        if self.inner.draining.get() {
            return Err(PoolError::Draining);
        }
        let mut entries = self.inner.entries.borrow_mut();
        let entry = match entries.get_mut(key) {
            Some(entry) => entry,
            None => entries.entry(key.clone()).or_default(),
        };
        let retired = entry.renew(generation);
        let dead = entry.forget_dead();
        let found = match entry
            .tunnels
            .iter()
            .find_map(|tunnel| tunnel.reserve().ok())
        {
            Some(reservation) => Found::Room(reservation),
            None => {
                let room = self.inner.config.waiters_per_tunnel;
                Found::Connecting(entry.join(room).unwrap_or_else(|| {
                    let connecting = self.connect(key.clone(), generation, connect());
                    entry.connecting.extend(Connecting::new(&connecting));
                    connecting
                }))
            }
        };
        // Closing a tunnel wakes its driver: not while the entries are borrowed.
        drop(entries);
        drop((retired, dead));
        Ok(found)
    }

    /// A connect that any number of callers may wait for. It goes on as long as one of them does.
    fn connect(
        &self,
        key: Key,
        generation: u64,
        connect: impl Future<Output = Result<Tunnel, ConnectError>> + 'static,
    ) -> SharedConnect {
        let pool = Rc::downgrade(&self.inner);
        async move {
            let tunnel = connect.await.map_err(Arc::new)?;
            Inner::keep(&pool, &key, generation, &tunnel);
            Ok(tunnel)
        }
        .boxed_local()
        .shared()
    }
}

type SharedConnect = Shared<LocalBoxFuture<'static, Result<Tunnel, Arc<ConnectError>>>>;

/// Tunnels that one caller waits for before it gives up. Others take the places on each of them
/// only when very many open at once.
const ATTEMPTS: usize = 32;

struct Inner {
    config: Config,
    entries: RefCell<HashMap<Key, Entry>>,
    draining: Cell<bool>,
}

/// The tunnels of one key.
#[derive(Default)]
struct Entry {
    generation: u64,
    tunnels: Vec<Tunnel>,
    connecting: Vec<Connecting>,
}

/// A tunnel that is being made and how many wait for it.
struct Connecting {
    future: WeakShared<LocalBoxFuture<'static, Result<Tunnel, Arc<ConnectError>>>>,
    waiters: usize,
}

enum Found {
    Room(Reservation),
    Connecting(SharedConnect),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It may have died without our noticing.
    Pooled,
    /// It has just been made.
    Fresh,
}

impl Inner {
    /// Lets others use a new tunnel, unless the pool or the certificate has changed meanwhile.
    fn keep(pool: &Weak<Self>, key: &Key, generation: u64, tunnel: &Tunnel) {
        let Some(inner) = pool.upgrade() else { return };
        if inner.draining.get() {
            return;
        }
        let mut entries = inner.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(key)
            && entry.generation == generation
        {
            entry.tunnels.push(tunnel.clone());
        }
    }
}

impl Entry {
    /// Gives up the tunnels of an older certificate. A caller that has not heard of the newest yet
    /// uses what is there.
    fn renew(&mut self, generation: u64) -> Vec<Tunnel> {
        if generation <= self.generation {
            return Vec::new();
        }
        self.generation = generation;
        self.connecting.clear();
        std::mem::take(&mut self.tunnels)
    }

    fn forget_dead(&mut self) -> Vec<Tunnel> {
        self.tunnels
            .extract_if(.., |tunnel| tunnel.is_closed())
            .collect()
    }

    /// Waits for a tunnel that is being made, if it will have room.
    fn join(&mut self, room: usize) -> Option<SharedConnect> {
        self.connecting.retain(Connecting::is_alive);
        let connecting = self
            .connecting
            .iter_mut()
            .find(|connecting| connecting.waiters < room)?;
        connecting.waiters += 1;
        connecting.future.upgrade()
    }
}

impl Connecting {
    fn new(future: &SharedConnect) -> Option<Self> {
        Some(Self {
            future: future.downgrade()?,
            waiters: 1,
        })
    }

    /// Whether somebody waits for it and it is not done.
    fn is_alive(&self) -> bool {
        self.future
            .upgrade()
            .is_some_and(|future| future.peek().is_none())
    }
}
