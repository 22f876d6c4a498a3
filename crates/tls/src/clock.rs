//! What time it is, for certificates: the system's clock, or one that moves with tokio's so that a test can pause it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use tokio::time::Instant;

/// A source of wall-clock time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now. It may jump, as system clocks do.
    fn now(&self) -> SystemTime;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Wall-clock time that advances with [`tokio::time`], for tests with paused time.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: SystemTime,
    since: Instant,
}

impl TokioClock {
    /// Starts at `wall`; call it inside a tokio runtime.
    #[must_use]
    pub fn starting_at(wall: SystemTime) -> Self {
        Self {
            wall,
            since: Instant::now(),
        }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.wall + self.since.elapsed()
    }
}

/// Lets rustls read our clock.
#[derive(Debug)]
pub(crate) struct RustlsTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for RustlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0
            .now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .map(UnixTime::since_unix_epoch)
    }
}

/// Waits until the wall clock reaches `when`, looking again at least every [`LOOK_AGAIN`] because wall clocks jump.
pub(crate) async fn sleep_until(clock: &dyn Clock, when: SystemTime) {
    while let Ok(left) = when.duration_since(clock.now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

/// A suspended machine wakes up with a later wall clock; a renewal is late by at most this long.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
