//! New connections without end, of many pods at once, and what became of each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Pod;

use crate::support::{Ended, attempt_here};

/// How long a load may take to reach a number of connections.
const REACHES: Duration = Duration::from_secs(240);

/// A client of a load.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) pod: Pod,
    pub(crate) to: SocketAddr,
    /// What it sends.
    pub(crate) bytes: Vec<u8>,
    /// Whether a number of connections to wait for includes its own.
    pub(crate) counts: bool,
}

/// Clients that connect, send, read and close, one connection after another.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<(String, JoinHandle<Result<Outcomes>>)>,
}

#[derive(Default)]
struct Outcomes {
    echoed: u64,
    failed: Vec<(Ended, Duration, Instant)>,
    slowest: Duration,
}

/// What became of a load.
pub(crate) struct Served {
    /// Connections that were answered, by client.
    pub(crate) echoed: BTreeMap<String, u64>,
    /// The others, for people.
    pub(crate) failed: Vec<String>,
    /// The longest that one took.
    pub(crate) slowest: Duration,
}

impl Load {
    /// Starts these clients.
    pub(crate) fn start(clients: &[Client]) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |client: &Client| {
            let Client {
                pod,
                to,
                bytes,
                counts,
            } = client.clone();
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let name = format!("{} to {to}", pod.key());
            let thread = thread::spawn(move || {
                pod.enter()?;
                let mut outcomes = Outcomes::default();
                while !stop.load(Ordering::Relaxed) {
                    let (ended, took) = attempt_here(to, &bytes);
                    outcomes.slowest = outcomes.slowest.max(took);
                    if ended == Ended::Answered {
                        outcomes.echoed += 1;
                    } else {
                        outcomes.failed.push((ended, took, Instant::now()));
                    }
                    done.fetch_add(u64::from(counts), Ordering::Relaxed);
                }
                Ok(outcomes)
            });
            (name, thread)
        };
        let clients = clients.iter().map(client).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    /// Waits until this many connections of clients that count have ended, well or not.
    pub(crate) fn wait_for(&self, count: u64) -> Result<()> {
        let deadline = Instant::now() + REACHES;
        while self.done.load(Ordering::Relaxed) < count {
            let done = self.done.load(Ordering::Relaxed);
            ensure!(
                Instant::now() < deadline,
                "{done} of {count} connections within {REACHES:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop(self, started: Instant) -> Result<Served> {
        self.stop.store(true, Ordering::Relaxed);
        let mut served = Served {
            echoed: BTreeMap::new(),
            failed: Vec::new(),
            slowest: Duration::ZERO,
        };
        for (name, thread) in self.clients {
            let outcomes = thread.join().unwrap()?;
            served.slowest = served.slowest.max(outcomes.slowest);
            let failed = outcomes.failed.iter().map(|(ended, took, at)| {
                format!(
                    "{name}: {ended:?} after {took:?}, {:?} into the load",
                    at.duration_since(started)
                )
            });
            served.failed.extend(failed);
            *served.echoed.entry(name).or_default() += outcomes.echoed;
        }
        Ok(served)
    }
}

impl Served {
    /// All connections that were answered.
    pub(crate) fn total(&self) -> u64 {
        self.echoed.values().sum()
    }
}
