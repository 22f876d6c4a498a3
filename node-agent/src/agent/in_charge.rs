//! The agent in charge of its node.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use anyhow::Context;
use runtime::{
    admin::{Exposure, Server},
    drain::Drain,
    signals::StopSignals,
};
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
};

use super::{
    Core, admin, cni,
    config::RunArgs,
    draining::Draining,
    follow::follow_readiness,
    leave::{self, Afterwards},
    plugin::Plugin,
    presence::Witness,
    vital, waypoints,
};
use crate::{
    carry::thread::Cause,
    succession::{self, Incumbent, Lock, Stage},
};

/// Where others reach the agent in charge.
pub(super) struct Doors {
    pub(super) cni: UnixListener,
    pub(super) admin: Server,
}

impl Doors {
    /// Listens for the CNI and for whoever reads the pages.
    ///
    /// # Errors
    /// When an address or a path cannot be used.
    pub(super) fn open(args: &RunArgs) -> anyhow::Result<Self> {
        let cni = cni::bind(&args.cni_socket)
            .with_context(|| format!("--cni-socket {}", args.cni_socket.display()))?;
        let admin = Server::bind_beside(args.admin, Exposure::Loopback)?;
        Ok(Self { cni, admin })
    }
}

/// What an agent in charge holds.
pub(super) struct InCharge {
    pub(super) core: Core,
    pub(super) enrolling: JoinHandle<()>,
    pub(super) lock: Lock,
    pub(super) doors: Doors,
}

impl InCharge {
    /// Works until SIGTERM, SIGINT or a successor.
    ///
    /// # Errors
    /// When what only an agent in charge needs cannot be made.
    pub(super) async fn work(
        self,
        args: &RunArgs,
        log: runtime::log::LogHandle,
        mut signals: StopSignals,
    ) -> anyhow::Result<Draining> {
        let Self {
            core,
            enrolling,
            lock,
            doors: Doors { cni, admin },
        } = self;
        let readiness = core.readiness.clone();
        let configured = readiness.condition("configuration");
        vital(
            "readiness",
            follow_readiness(core.status.clone(), configured),
        );
        let (stage, mut stages) = watch::channel(Stage::Alone);
        let service = cni::CniService {
            enrol: core.enrol.clone(),
            stage: stages.clone(),
            path: args.cni_socket.clone(),
        };
        vital("cni", cni::serve(cni, service.clone()));
        let incumbent = Incumbent {
            own: core.own.clone(),
            kernel: Arc::clone(&core.kernel),
            enrol: core.enrol.clone(),
            direct: core.direct.clone(),
            reporting: core.reporting.clone(),
            patience: args.takeover_timeout,
            restore: Box::new(move || rebind_cni(&service)),
        };
        vital("allocator", runtime::memory::keep_small());
        vital("waypoints", waypoints::converse(core.direct.clone()));
        let (drained, wait) = oneshot::channel();
        let listener = succession::bind(&args.runtime_dir)
            .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
        let served = succession::serve(listener, incumbent, stage, wait);
        let succession = vital("succession", served);
        let drain = Drain::new();
        let server = admin
            .with_readiness(readiness)
            .with_metrics(core.metrics.clone())
            .with_log(log);
        let sources = admin::Sources {
            node: args.node.clone(),
            abi_version: args.abi_version,
            cgroup_root: args.cgroup_root.clone(),
            shared: Arc::clone(&core.shared),
            workers: core.workers.clone().into(),
            certs: core.certs.clone(),
            enrol: core.enrol.clone(),
            direct: core.direct.clone(),
            status: core.status.clone(),
        };
        let server = admin::pages(server, &Arc::new(sources));
        vital("admin", server.run(drain.signal()));
        tracing::info!(node = args.node, admin = %args.admin, workers = core.workers.len(), abi = args.abi_version, "agent started");
        let plugin = Plugin::of(args).map(Plugin::keep).transpose();
        let plugin = plugin.context("cannot keep the CNI plugin installed")?;

        let witness = Arc::<Witness>::default();
        if let Some(account) = args.presence_account.clone() {
            vital(
                "witness",
                leave::keep_witness(Arc::clone(&witness), account),
            );
        }

        let patience = args.takeover_timeout;
        let mut cause = until_over(&mut signals, &mut stages, patience).await;
        let mut removed = false;
        if cause == Cause::Stopped {
            match leave::afterwards(args, &witness, &mut signals).await {
                Afterwards::Removed => removed = true,
                Afterwards::Followed => {
                    cause = tokio::select! {
                        cause = until_followed(&mut stages, patience) => cause,
                        _again = signals.next() => Cause::Stopped,
                    };
                }
                Afterwards::Unknown => {}
            }
        }
        if removed {
            core.let_go(plugin, args).await;
        } else {
            drop(plugin);
        }
        Ok(Draining {
            core,
            enrolling,
            lock,
            cause,
            removed,
            drained,
            succession,
            pages: drain,
            signals,
        })
    }
}

/// Waits for the reason to end. While a successor gets ready it is waited for: its start is usually
/// why this agent is asked to stop.
async fn until_over(
    signals: &mut StopSignals,
    stages: &mut watch::Receiver<Stage>,
    patience: Duration,
) -> Cause {
    let succeeded = |stage: &Stage| *stage == Stage::Succeeded;
    tokio::select! {
        reason = signals.next() => tracing::info!(%reason, "asked to stop"),
        _ = stages.wait_for(succeeded) => return Cause::Succeeded,
    }
    tokio::select! {
        cause = until_succeeded(stages, patience) => cause,
        _again = signals.next() => Cause::Stopped,
    }
}

/// Waits for a successor that is on its way and has not said so. The kubelet asks a pod that shares the node's network whether it
/// is ready at an address of the node, where the agent in charge answers: so a new pod can count as ready, and its predecessor
/// be asked to stop, before the new agent has come to say anything.
async fn until_followed(stages: &mut watch::Receiver<Stage>, patience: Duration) -> Cause {
    let has_come = stages.wait_for(|stage| *stage != Stage::Alone);
    let has_come = tokio::time::timeout(COMES_WITHIN, has_come).await;
    if matches!(has_come, Ok(Ok(_))) {
        drop(has_come);
        until_succeeded(stages, patience).await
    } else {
        Cause::Stopped
    }
}

/// Waits until a successor that gets ready has taken over, or does not any more.
async fn until_succeeded(stages: &mut watch::Receiver<Stage>, patience: Duration) -> Cause {
    let over = |stage: &Stage| matches!(stage, Stage::Succeeded | Stage::Alone);
    match tokio::time::timeout(patience, stages.wait_for(over)).await {
        Ok(Ok(stage)) if *stage == Stage::Succeeded => Cause::Succeeded,
        _ => Cause::Stopped,
    }
}

fn rebind_cni(service: &cni::CniService) {
    match cni::bind(&service.path) {
        Ok(listener) => drop(vital("cni", cni::serve(listener, service.clone()))),
        Err(error) => {
            tracing::error!(%error, path = %service.path.display(), "cannot listen for the CNI again");
        }
    }
}

/// A successor whose pod counts as ready is a process that starts, on a node that may have much to do.
const COMES_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// What an agent that was asked to stop does when these stages follow after these milliseconds.
    async fn ends(stages: &[(u64, Stage)]) -> (Cause, Duration) {
        let (stage, mut seen) = watch::channel(Stage::Alone);
        let began = tokio::time::Instant::now();
        let told = async {
            for (after, next) in stages {
                tokio::time::sleep(Duration::from_millis(*after)).await;
                stage.send_replace(next.clone());
            }
            std::future::pending::<()>().await;
        };
        let cause = tokio::select! {
            cause = until_followed(&mut seen, Duration::from_secs(30)) => cause,
            () = told => unreachable!("it waits for ever"),
        };
        (cause, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_that_says_hello_after_the_signal_is_waited_for() {
        let comes = [
            (31, Stage::Awaited),
            (2000, Stage::Paused),
            (300, Stage::Succeeded),
        ];
        let (cause, after) = ends(&comes).await;
        assert_eq!(cause, Cause::Succeeded);
        assert_eq!(after.as_millis(), 2331);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_or_gives_up_holds_nobody_up() {
        assert_eq!(ends(&[]).await, (Cause::Stopped, COMES_WITHIN));
        let (cause, after) = ends(&[(100, Stage::Awaited), (900, Stage::Alone)]).await;
        assert_eq!((cause, after.as_millis()), (Cause::Stopped, 1000));
        let (cause, _) = ends(&[(100, Stage::Awaited)]).await;
        assert_eq!(cause, Cause::Stopped);
    }
}
