//! What an agent does that has been removed from its node: it lets its pods go while it still works, and then takes away
//! everything that it made.

use std::{sync::Arc, time::Duration};

use runtime::signals::StopSignals;
use tokio::{sync::oneshot, time::Instant};

use super::Core;
use crate::{
    agent::{
        cleanup,
        config::{CleanupArgs, RunArgs},
        plugin::Kept,
        presence::{self, Account, Presence, Witness},
    },
    enrol::Command,
    mesh::WantedPods,
};

/// What becomes of the node of an agent that is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// No agent is wanted there any more.
    Removed,
    /// Another agent is to follow.
    Followed,
    /// Nobody has said so, or there is no time to ask.
    Unknown,
}

/// What somebody who knows says. Asked until there is an answer, or for a while: who removes an installation takes its rights
/// away first and its account right after.
pub(super) async fn afterwards(
    args: &RunArgs,
    witness: &Arc<Witness>,
    signals: &mut StopSignals,
) -> Afterwards {
    let Some(daemon_set) = args.daemon_set.clone() else {
        return Afterwards::Unknown;
    };
    let deadline = Instant::now() + ASKED_FOR;
    let mut removed = None;
    loop {
        let (daemon_set, node) = (daemon_set.clone(), args.node.clone());
        let witness = Arc::clone(witness);
        let ask = move || presence::ask(&daemon_set, &node, &witness);
        let asked = tokio::task::spawn_blocking(ask);
        let answer = tokio::select! {
            answer = asked => answer,
            reason = signals.next() => {
                tracing::warn!(%reason, "asked to stop at once; captured pods stay captured");
                return Afterwards::Unknown;
            }
        };
        match answer {
            // A DaemonSet that is made anew (`helm upgrade --force`) is gone for a moment.
            Ok(Presence::Removed(_))
                if removed.get_or_insert_with(Instant::now).elapsed() < GONE_FOR => {}
            Ok(Presence::Removed(why)) => {
                tracing::info!(
                    why,
                    "this agent has been removed from its node: pods are let go"
                );
                return Afterwards::Removed;
            }
            Ok(Presence::Meant) => {
                tracing::info!("another agent is to follow; captured pods stay captured");
                return Afterwards::Followed;
            }
            Ok(Presence::Unknown(why)) if Instant::now() >= deadline => {
                tracing::warn!(
                    why,
                    "nobody says whether this agent has been removed; captured pods stay captured"
                );
                return Afterwards::Unknown;
            }
            Ok(Presence::Unknown(why)) => {
                tracing::debug!(why, "asking again whether this agent has been removed");
            }
            Err(error) => {
                tracing::error!(%error, "asking whether this agent has been removed failed; captured pods stay captured");
                return Afterwards::Unknown;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Keeps the token by which [`afterwards`] asks where the agent's own is refused.
pub(super) async fn keep_witness(witness: Arc<Witness>, account: Account) {
    let mut said = None;
    loop {
        let (kept, account) = (Arc::clone(&witness), account.clone());
        let renewed = tokio::task::spawn_blocking(move || kept.renew(&account)).await;
        let renewed = renewed.unwrap_or_else(|error| Err(error.to_string()));
        let pause = if renewed.is_ok() {
            LOOK_FOR_WITNESS
        } else {
            ASK_FOR_WITNESS
        };
        let error = renewed.err();
        if said != error
            && let Some(error) = &error
        {
            tracing::warn!(
                error,
                "no token by which to ask whether this agent has been removed; if its account is gone then, its pods stay captured"
            );
        }
        said = error;
        tokio::time::sleep(pause).await;
    }
}

impl Core {
    /// Lets every pod go as if its namespace had left the mesh. What is open goes on until the agent has drained.
    pub(super) async fn let_go(&self, plugin: Option<Kept>, args: &RunArgs) {
        // Before the pods: one that starts meanwhile is nobody's.
        if let Some(plugin) = plugin {
            let done = tokio::task::spawn_blocking(move || plugin.uninstall()).await;
            if let Err(error) = done.map_err(std::io::Error::other).and_then(|done| done) {
                tracing::error!(%error, "the CNI plugin cannot be taken away");
            }
        }
        // What the controller still says counts no more.
        self.following.abort();
        let mut pods: WantedPods = (**self.shared.mesh.wanted().borrow()).clone();
        for wanted in pods.values_mut() {
            wanted.capture = false;
            "the agent has been removed from the node".clone_into(&mut wanted.reason);
        }
        self.enrol.send(Command::Wanted(Arc::new(pods)));
        let deadline = Instant::now() + args.release_wait + RELEASED_WITHIN;
        while Instant::now() < deadline && self.holds().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether a pod is still captured.
    async fn holds(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.enrol.send(Command::List(reply));
        let pods = answer.await.unwrap_or_default();
        pods.iter()
            .any(|pod| pod.state != admin_api::PodState::Exempt)
    }
}

/// Takes away what is left, on the node and of its state.
pub(super) fn sweep(args: &RunArgs) -> anyhow::Result<()> {
    cleanup::sweep(&CleanupArgs {
        bpf_dir: args.bpf_dir.clone(),
        runtime_dir: args.runtime_dir.clone(),
    })?;
    cleanup::remove_dir(&args.state_dir)?;
    tracing::info!("nothing is left on this node");
    Ok(())
}

/// The API server answers a token for some seconds after its account is gone.
const ASKED_FOR: Duration = Duration::from_secs(30);
/// From when on what is gone does not come back.
const GONE_FOR: Duration = Duration::from_secs(5);
/// How often it is looked whether the token is old.
const LOOK_FOR_WITNESS: Duration = Duration::from_secs(600);
const ASK_FOR_WITNESS: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Beyond the time in which leaving pods still end their peers' tunnels.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
