//! Which faults there are, how often, and how many there were.

use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;

/// How often what happens: probabilities from 0 to 1. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    /// A list or another request is refused by 500 or 503.
    pub broken: f64,
    /// A list is refused by 429.
    pub busy: f64,
    /// A list is answered late, by `delay`.
    pub slow: f64,
    /// A watch is told that its resource version is gone (410), as an answer or as an event.
    pub gone: f64,
    /// An event is the last of its watch, and half of it is missing.
    pub cut: f64,
    /// An event comes twice.
    pub repeat: f64,
    /// An event comes late, by up to `delay`, and those behind it too.
    pub late: f64,
    /// How late.
    pub delay: Duration,
}

/// How often it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were answered by 500 or 503.
    pub broken: u64,
    /// Lists that were answered by 429.
    pub busy: u64,
    /// Lists that were late.
    pub slow: u64,
    /// Watches that were told 410.
    pub gone: u64,
    /// Watches that were cut.
    pub cut: u64,
    /// Events that came twice.
    pub repeated: u64,
    /// Events that were late.
    pub late: u64,
    /// Events that passed, of all watches.
    pub events: u64,
}

/// What connections ask before each answer.
#[derive(Debug)]
pub(crate) struct Faults {
    state: Mutex<State>,
    cuts: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    counts: Counts,
    random: StdRng,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                plan: Plan::default(),
                counts: Counts::default(),
                random: StdRng::seed_from_u64(seed),
            }),
            cuts: watch::Sender::new(0),
        }
    }

    pub(crate) fn set(&self, plan: Plan) {
        self.state.lock().plan = plan;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Changes when all watches are to end.
    pub(crate) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Counts something.
    pub(crate) fn count(&self, what: impl FnOnce(&mut Counts) -> &mut u64) {
        *what(&mut self.state.lock().counts) += 1;
    }

    /// Whether it happens now, and is counted.
    pub(crate) fn strikes(
        &self,
        how_often: impl FnOnce(&Plan) -> f64,
        what: impl FnOnce(&mut Counts) -> &mut u64,
    ) -> bool {
        let mut state = self.state.lock();
        let probability = how_often(&state.plan).clamp(0.0, 1.0);
        let strikes = state.random.random_bool(probability);
        if strikes {
            *what(&mut state.counts) += 1;
        }
        strikes
    }

    /// One of two.
    pub(crate) fn either(&self) -> bool {
        self.state.lock().random.random_bool(0.5)
    }

    /// How long an answer waits that is late.
    pub(crate) fn delay(&self) -> Duration {
        let mut state = self.state.lock();
        let part = state.random.random_range(0.25..=1.0);
        state.plan.delay.mul_f64(part)
    }
}
