//! An agent that has been succeeded or asked to stop: it lets its connections finish.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use runtime::{drain::Drain, signals::StopSignals};
use tokio::sync::oneshot;

use super::{Core, config::RunArgs, leave};
use crate::{
    carry::thread::{Cause, Drained, WorkerHandle},
    enrol::Command,
    succession::Lock,
};

/// Answers that are being given when an agent ends may take this long.
const ADMIN_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// What an agent that drains still has.
pub(super) struct Draining {
    pub(super) core: Core,
    pub(super) enrolling: JoinHandle<()>,
    pub(super) lock: Lock,
    pub(super) cause: Cause,
    /// It has been removed from its node and has let its pods go.
    pub(super) removed: bool,
    /// Tells the successor how the connections ended.
    pub(super) drained: oneshot::Sender<Drained>,
    pub(super) succession: tokio::task::JoinHandle<()>,
    /// The admin pages.
    pub(super) pages: Drain,
    pub(super) signals: StopSignals,
}

impl Draining {
    /// Lets connections finish until the deadline, ends the rest, and leaves the node as the agent's end asks.
    ///
    /// # Errors
    /// When the subscription had panicked, or something of a removed agent cannot be taken away.
    pub(super) async fn finish(mut self, args: &RunArgs) -> anyhow::Result<()> {
        tracing::info!(cause = ?self.cause, deadline = ?args.drain_deadline, "agent stops: draining");
        self.core.enrol.send(Command::Stop);
        self.core.direct.stop();
        self.core.native.pause();
        self.core.reporting.send_replace(false);
        // Whoever is started now need not wait: nothing is written any more but by connections.
        join(self.enrolling).await;
        drop(self.lock);
        if self.cause == Cause::Succeeded {
            // The pages are the successor's.
            tokio::task::spawn_local(self.pages.finish(ADMIN_ENDS_WITHIN));
        }
        let sum = tokio::select! {
            sum = drain(&self.core.workers, self.cause, args.drain_deadline) => sum,
            () = impatient(&mut self.signals) => drain(&self.core.workers, self.cause, Duration::ZERO).await,
        };
        tracing::info!(
            finished = sum.finished,
            cut = sum.cut,
            removed = self.removed,
            "agent drained; captured pods stay captured unless the agent has been removed"
        );
        self.core.stop.send_replace(true);
        self.core.subscription.await?;
        if self.cause == Cause::Succeeded && self.drained.send(sum).is_ok() {
            drop(tokio::time::timeout(ADMIN_ENDS_WITHIN, self.succession).await);
        }
        if self.removed {
            leave::sweep(args)?;
        }
        Ok(())
    }
}

async fn join(enrolling: JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || enrolling.join().is_ok()).await;
    if !joined.unwrap_or(false) {
        tracing::error!("the enrolment thread had panicked");
    }
}

async fn drain(workers: &[WorkerHandle], cause: Cause, within: Duration) -> Drained {
    let deadline = Instant::now() + within;
    let mut sum = Drained::default();
    let draining: Vec<_> = workers
        .iter()
        .cloned()
        .map(|worker| tokio::task::spawn_local(async move { worker.drain(cause, deadline).await }))
        .collect();
    for worker in draining {
        sum += worker.await.unwrap_or_default();
    }
    sum
}

/// A second signal while draining means now; the first that comes after a succession only says what
/// is known already.
async fn impatient(signals: &mut StopSignals) {
    signals.next().await;
    tracing::info!("asked to stop while draining: once more ends what is open");
    signals.next().await;
}
