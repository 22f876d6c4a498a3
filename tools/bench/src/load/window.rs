//! When counting begins and ends, and whose resources are read at both moments.

use std::time::{Duration, Instant};

use crate::usage::Usage;

/// Processes whose resources are read.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Process ids of the mesh's data path.
    pub mesh: Vec<i32>,
    /// Process ids of the load's server; the client adds itself.
    pub load: Vec<i32>,
}

impl Watched {
    pub(crate) fn usage(&self) -> Usage {
        let mut load = self.load.clone();
        load.push(std::process::id().cast_signed());
        Usage::now(&self.mesh, &load)
    }
}

/// What a look at the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Warming up.
    Early,
    /// Counting has just begun: forget what was counted before.
    Opens,
    /// Counting.
    Open,
    /// It is over.
    Closed,
}

/// The time that counts, after a time that does not.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    watched: &'a Watched,
    opens: Instant,
    length: Duration,
    open: Option<(Instant, Usage)>,
}

impl<'a> Window<'a> {
    pub(crate) fn new(plan: &'a super::Plan) -> Self {
        Self {
            watched: &plan.watched,
            opens: Instant::now() + plan.warm_up,
            length: plan.window,
            open: None,
        }
    }

    pub(crate) fn phase(&mut self, now: Instant) -> Phase {
        match &self.open {
            None if now < self.opens => Phase::Early,
            None => {
                let usage = self.watched.usage();
                self.open = Some((Instant::now(), usage));
                Phase::Opens
            }
            Some((start, _)) if now.saturating_duration_since(*start) < self.length => Phase::Open,
            Some(_) => Phase::Closed,
        }
    }

    /// Its length in seconds and what it cost.
    pub(crate) fn close(self) -> (f64, Usage) {
        let end = Instant::now();
        let after = self.watched.usage();
        match self.open {
            Some((start, before)) => (
                end.saturating_duration_since(start).as_secs_f64(),
                after.since(&before),
            ),
            None => (0.0, Usage::default()),
        }
    }
}
