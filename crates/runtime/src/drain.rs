//! How a program stops: it says so once, its tasks finish what they have, and after a deadline the rest is cut.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Owns the tasks of a program and tells them when to end.
#[derive(Debug, Default)]
pub struct Drain {
    signal: DrainSignal,
}

/// What a task sees of the drain; clones are cheap.
#[derive(Clone, Debug, Default)]
pub struct DrainSignal {
    draining: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DrainEnd {
    /// Every task finished by itself.
    Complete,
    /// The deadline came first; this many tasks were told to cut.
    Cut {
        /// Tasks that were still running.
        remaining: usize,
    },
}

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A view for a task.
    #[must_use]
    pub fn signal(&self) -> DrainSignal {
        self.signal.clone()
    }

    /// Says "finish", waits for the tracked tasks up to `deadline`, then says "cut" and returns.
    pub async fn finish(self, deadline: Duration) -> DrainEnd {
        let DrainSignal {
            draining,
            cut,
            tasks,
        } = self.signal;
        draining.cancel();
        tasks.close();
        if tokio::time::timeout(deadline, tasks.wait()).await.is_ok() {
            return DrainEnd::Complete;
        }
        let remaining = tasks.len();
        cut.cancel();
        DrainEnd::Cut { remaining }
    }
}

impl DrainSignal {
    /// Resolves when the drain begins: accept nothing new, finish what is open.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the deadline has passed: close what is still open, with a reason.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Runs `future` as a task that the drain waits for, inside a span with this name.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(future.instrument(task_span(name)))
    }

    /// [`DrainSignal::spawn`] on the current `LocalSet`, for futures that stay on their thread.
    pub fn spawn_local<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.tasks.spawn_local(future.instrument(task_span(name)))
    }

    /// Makes the drain wait for a future that somebody else runs.
    pub fn track<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(future)
    }

    /// Tasks that are running now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tasks.len()
    }
}

fn task_span(name: &'static str) -> tracing::Span {
    tracing::debug_span!("task", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_its_tasks() {
        let drain = Drain::new();
        let signal = drain.signal();
        let work = signal.clone();
        let task = signal.spawn("work", async move {
            work.draining().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        assert!(!signal.is_draining());
        assert_eq!(
            drain.finish(Duration::from_secs(25)).await,
            DrainEnd::Complete
        );
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlives_the_deadline_is_cut_and_counted() {
        let drain = Drain::new();
        let signal = drain.signal();
        let work = signal.clone();
        let task = signal.spawn("work", async move { work.cut().await });
        assert_eq!(
            drain.finish(Duration::from_secs(25)).await,
            DrainEnd::Cut { remaining: 1 }
        );
        task.await.unwrap();
    }
}
