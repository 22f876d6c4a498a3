//! How long a client may take over the head of a request, and how long its connection may be idle.
//!
//! hyper has one limit for both; a kept connection may be idle for much longer than a head may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::early::Early;

/// What a connection does, as its reads and its requests tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<State>);

#[derive(Debug)]
struct State {
    began: Instant,
    /// When the first byte came that belongs to no request yet; 0 if none has come. In milliseconds, from 1.
    head_since: AtomicU64,
    /// When the last request ended.
    idle_since: AtomicU64,
    /// Requests that are being answered.
    requests: AtomicU32,
    /// Requests whose answers the client does not take.
    abandoned: AtomicU32,
    /// One of both counts has changed.
    changed: Notify,
    early: Early,
}

impl Default for State {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(1),
            requests: AtomicU32::new(0),
            abandoned: AtomicU32::new(0),
            changed: Notify::new(),
            early: Early::default(),
        }
    }
}

impl State {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).map_or(u64::MAX, |now| now.max(1))
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering(Watch);

/// A request whose answer the client does not take.
#[derive(Debug)]
pub(crate) struct Abandoned(Watch);

impl Answering {
    /// Of the connection that the request came by.
    pub(crate) fn watch(&self) -> &Watch {
        &self.0
    }

    /// The client has not taken its answer for too long.
    pub(crate) fn abandon(self) -> Abandoned {
        self.0.0.abandoned.fetch_add(1, Ordering::Relaxed);
        Abandoned(self.0.clone())
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.0.abandoned.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// Something came.
    pub(crate) fn received(&self) {
        let state = &self.0;
        if state.requests.load(Ordering::Relaxed) == 0
            && state.head_since.load(Ordering::Relaxed) == 0
        {
            state.head_since.store(state.now(), Ordering::Relaxed);
        }
    }

    /// The head of a request is complete.
    pub(crate) fn begin(&self) -> Answering {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.head_since.store(0, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// What goes to the client before its answer.
    pub(super) fn early(&self) -> &Early {
        &self.0.early
    }

    /// For how long a head has been incomplete, and for how long nothing has been asked.
    fn waits(&self) -> (Duration, Duration) {
        let (state, now) = (&self.0, self.0.now());
        let since = |began: u64| Duration::from_millis(now.saturating_sub(began));
        let head = match state.head_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => since(began),
        };
        let idle = match state.requests.load(Ordering::Relaxed) {
            0 => since(state.idle_since.load(Ordering::Relaxed)),
            _ => Duration::ZERO,
        };
        (head, idle)
    }

    /// Resolves when there are answers that the client does not take, and no others.
    pub(crate) async fn deserted(&self) {
        let state = &self.0;
        loop {
            let changed = state.changed.notified();
            let left = state.requests.load(Ordering::Relaxed);
            if left == 0 && state.abandoned.load(Ordering::Relaxed) > 0 {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when there is no request, after such a time at least.
    pub(crate) async fn quiet(&self, time: Duration) {
        loop {
            tokio::time::sleep(time.max(SHORTEST)).await;
            if self.0.requests.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Resolves when the client has had enough time.
    pub(crate) async fn exhausted(&self, head: Duration, idle: Duration) -> Exhausted {
        let mut pause = head.min(idle);
        loop {
            tokio::time::sleep(pause.max(SHORTEST)).await;
            let (head_waits, idle_waits) = self.waits();
            if head_waits >= head {
                return Exhausted::Head;
            }
            if idle_waits >= idle {
                return Exhausted::Idle;
            }
            pause = head
                .saturating_sub(head_waits)
                .min(idle.saturating_sub(idle_waits));
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.idle_since.store(state.now(), Ordering::Relaxed);
        state.requests.fetch_sub(1, Ordering::Relaxed);
        if state.abandoned.load(Ordering::Relaxed) > 0 {
            state.changed.notify_one();
        }
    }
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    /// The head of a request has begun and is not complete.
    Head,
    /// Nothing was asked.
    Idle,
}

const SHORTEST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_counts_from_its_first_byte_and_a_request_ends_it() {
        let watch = Watch::default();
        assert_eq!(watch.waits().0, Duration::ZERO);
        watch.received();
        std::thread::sleep(Duration::from_millis(5));
        assert!(watch.waits().0 > Duration::ZERO);
        let answering = watch.begin();
        watch.received();
        assert_eq!(watch.waits(), (Duration::ZERO, Duration::ZERO));
        drop(answering);
        assert_eq!(watch.waits().0, Duration::ZERO);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_deserts_its_connection_unless_it_asks_for_more() {
        let watch = Watch::default();
        let (one, other) = (watch.begin(), watch.begin());
        let soon = Duration::from_millis(20);
        let abandoned = one.abandon();
        let waited = tokio::time::timeout(soon, watch.deserted()).await;
        assert!(waited.is_err(), "another request is being answered");
        drop(other);
        let waited = tokio::time::timeout(soon, watch.deserted()).await;
        assert!(waited.is_ok());
        drop(abandoned);
        let waited = tokio::time::timeout(soon, watch.deserted()).await;
        assert!(waited.is_err(), "it has taken it after all");
    }
}
