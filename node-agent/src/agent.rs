//! Wires the agent together: the control thread (configuration, certificates, CNI, admin pages), the
//! enrolment thread and the workers.
//!
//! An agent's life is three types, each made of the one before: `Prepared` has everything that it needs and writes
//! nothing that another agent would notice, `InCharge` works, `Draining` lets connections finish.

pub mod admin;
pub mod cleanup;
pub mod cni;
pub mod config;
mod draining;
mod explain;
mod follow;
mod in_charge;
mod known;
mod leave;
mod planes;
pub mod plugin;
mod prepared;
pub mod presence;
pub mod probe;
mod setup;
pub mod started;
mod unservable;
mod waypoints;

use std::{future::Future, sync::Arc};

use anyhow::Context;
use runtime::{
    admin::Readiness,
    metrics::Metrics,
    signals::{Stop, StopSignals},
    threads,
};
use tls::SvidStore;
use tokio::{sync::watch, task::LocalSet};
use xds_client::Status;

use crate::{
    bpf::{Kernel, check_log},
    carry::{thread::WorkerHandle, worker::Shared},
    direct::DirectHandle,
    enrol::EnrolHandle,
    host::{cgroup, netns, pod_net, readers},
    mesh::native::Native,
    succession::{self, Predecessor, Who},
};
use config::RunArgs;
use prepared::Prepared;
use setup::DESCRIPTORS;
use unservable::Unservable;

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What keeps the agent from starting. Nothing that happens later ends it.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let log = runtime::log::init(args.log_format, &args.log).context("--log")?;
    check_log(args.ebpf_log)?;
    netns::remember_home().context("/proc must be mounted")?;
    pod_net::write_settings_in(args.net_settings.clone());
    readers::hurry_by(&args.rcu_expedited, &args.runtime_dir);
    let descriptors = runtime::descriptors::raise(DESCRIPTORS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, control(args, log, descriptors))
}

async fn control(
    args: RunArgs,
    log: runtime::log::LogHandle,
    descriptors: u64,
) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    if let Err(reason) = unservable::look() {
        return unservable::stay(&args, log, signals, reason).await;
    }
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    std::fs::create_dir_all(&args.runtime_dir)
        .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
    let cgroup = match cgroup::enter_own(&args.cgroup_root) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let reason = Unservable(error.to_string());
            return unservable::stay(&args, log, signals, reason).await;
        }
    };
    let mut own = Who::new(args.abi_version, cgroup, args.instance.clone());
    let predecessor = tokio::select! {
        predecessor = succession::apply(&args.runtime_dir, &own, args.takeover_timeout) => predecessor?,
        reason = signals.next() => return not_in_charge(reason),
    };
    if let Predecessor::Running(running) = &predecessor {
        own.beats = running.who.beats.wrapping_add(1);
    }
    let is_alone = matches!(predecessor, Predecessor::Nobody(_));
    let prepared = match Prepared::assemble(&args, own, descriptors) {
        Ok(prepared) => prepared,
        Err(error) => match error.downcast::<Unservable>() {
            Ok(reason) if is_alone => {
                // Who comes next is to find nobody in charge.
                drop(predecessor);
                return unservable::stay(&args, log, signals, reason).await;
            }
            Ok(reason) => return Err(reason.into()),
            Err(error) => return Err(error),
        },
    };
    let taken = tokio::select! {
        taken = prepared.take_charge(&args, predecessor) => taken,
        reason = signals.next() => return not_in_charge(reason),
    };
    let in_charge = taken.context("cannot take charge")?;
    let draining = in_charge.work(&args, log, signals).await?;
    draining.finish(&args).await
}

fn not_in_charge(reason: Stop) -> anyhow::Result<()> {
    tracing::info!(%reason, "stopped before this agent was in charge; nothing has changed");
    Ok(())
}

/// What works in an agent from its start to its end.
struct Core {
    own: Who,
    metrics: Metrics,
    readiness: Readiness,
    certs: SvidStore,
    kernel: Arc<Kernel>,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    direct: DirectHandle,
    native: Arc<Native>,
    enrol: EnrolHandle,
    status: watch::Receiver<Status>,
    /// Whether the controller is told what is captured.
    reporting: watch::Sender<bool>,
    /// Ends the subscription.
    stop: watch::Sender<bool>,
    subscription: tokio::task::JoinHandle<()>,
    following: tokio::task::JoinHandle<()>,
}

/// Runs a task of the control thread whose end by a panic ends the agent.
fn vital<F: Future + 'static>(name: &'static str, body: F) -> tokio::task::JoinHandle<F::Output> {
    tokio::task::spawn_local(threads::task(name, body))
}
