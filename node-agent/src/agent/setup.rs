//! The parts of the agent made from its command line.

use std::{path::Path, sync::Arc, time::Duration};

use abi::MAX_WORKERS;
use anyhow::Context;
use runtime::admin::Condition;
use tls::{RotationPolicy, SvidStore, persist::PrivateDir};
use xds_client::{CaClient, Controller};

use crate::{
    agent::{config::RunArgs, presence},
    bpf::{MapSizes, Place},
    enrol::{EnrolConfig, Notices},
};

/// A controller that is back is found again within this time.
pub(super) const RECONNECT_AT_MOST: Duration = Duration::from_secs(5);
/// One pod may have one part in so many of the room for listening ports.
const PORT_SHARES: u32 = 64;
/// Even if there is little room.
const PORTS_AT_LEAST: u32 = 16;
/// Connections need descriptors: the limit is raised to what the kernel allows.
pub(super) const DESCRIPTORS: u64 = 1 << 20;

pub(super) fn certificates(
    authority: &Controller,
    life: Duration,
    runtime_dir: &Path,
) -> anyhow::Result<SvidStore> {
    let source = CaClient::new(authority.clone(), life);
    let keys = PrivateDir::open(runtime_dir.join("keys")).context("--runtime-dir")?;
    Ok(
        SvidStore::builder(Arc::new(source), RotationPolicy::default())
            .directory(keys)
            .build(),
    )
}

/// At most as many as have beats.
pub(super) fn worker_count(args: &RunArgs) -> u32 {
    let count = match args.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    u32::try_from(count).map_or(MAX_WORKERS, |count| count.min(MAX_WORKERS))
}

pub(super) fn place(args: &RunArgs, workers: u32, beats: u32) -> Place {
    Place {
        bpf_dir: args.bpf_dir.clone(),
        version: args.abi_version,
        cgroup_root: args.cgroup_root.clone(),
        kubelet_cgroup: args.kubelet_cgroup.clone(),
        tcx: !args.no_tcx,
        log: args.ebpf_log,
        sizes: MapSizes {
            pods: args.max_pods,
            workers,
            listening: args.max_listening_ports,
            service_ports: args.max_service_ports,
            service_slots: args.max_service_slots,
            verdicts: args.max_verdicts,
            flows: args.max_direct_flows,
            walled: args.max_walled_addresses,
            older: args.max_plain_flows,
            carried: args.max_carried,
        },
        config: abi::NodeConfig {
            workers,
            // Until it is known what the mesh says, nothing goes directly.
            flags: 0,
            ports_per_pod: ports_per_pod(args),
            // Zero is that of no agent.
            generation: rand::random_range(1..=u32::MAX),
        },
        beats,
    }
}

/// Several pods have to do it together to leave others none.
fn ports_per_pod(args: &RunArgs) -> u32 {
    match args.max_listening_ports_per_pod {
        0 => (args.max_listening_ports / PORT_SHARES).max(PORTS_AT_LEAST),
        ports => ports,
    }
}

/// Where owners of pods are told: nowhere outside of a cluster.
///
/// # Errors
/// When there can be no thread.
pub(super) fn notices(args: &RunArgs) -> anyhow::Result<Notices> {
    if args.daemon_set.is_none() {
        return Ok(Notices::default());
    }
    Notices::of_node(args.node.clone(), presence::tell).context("no thread for events")
}

pub(super) fn enrol_config(args: &RunArgs, known: Condition, notices: Notices) -> EnrolConfig {
    EnrolConfig {
        runtime_dir: args.runtime_dir.clone(),
        certificate_wait: args.certificate_wait,
        release_wait: args.release_wait,
        drain_deadline: args.drain_deadline,
        audit_interval: args.audit_interval,
        known,
        notices,
    }
}
