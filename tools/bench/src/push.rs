//! Whether configuration that changes all the time is felt by traffic: the same paced load with and
//! without a thousand changes per second, in turns, through the real controller and real agents.
//!
//! Controller and writer of manifests run in the scheduler's idle class. In a cluster they are on other
//! machines; here they would take the processors that the traffic is measured on. What they cost traffic
//! all the same is no cost of a push, so there is a third side: the same traffic while the same changes go to
//! another mesh on this machine, all of which is in the idle class.

pub mod changes;
pub mod outcome;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::load::Load;
use crate::machine::Setting;
use crate::modes::{Mode as _, Setup, ambient::Ambient};
use crate::scale::manifests::{self, Cluster};
use crate::site::{Placement, Site, Timing};
use changes::Changes;
use outcome::{Side, Turn};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the mesh holds besides client and servers.
    pub cluster: Cluster,
    /// Changed objects per second.
    pub changes: u32,
    /// Requests per second, over 16 connections.
    pub rate: u32,
    /// How often.
    pub repetitions: u32,
    /// How long each time.
    pub timing: Timing,
    /// Processors that others may use before a turn is left out.
    pub others_allowed: f64,
    /// What agents are started with.
    pub setup: Setup,
}

/// Measures turn after turn, and tells `each` what came out as soon as it is known.
///
/// # Errors
/// The mesh could not be started, changes did not reach the agents, or a client failed.
pub fn run(options: &Options, mut each: impl FnMut(&Turn) -> Result<()>) -> Result<Vec<Turn>> {
    let _cubic = Setting::allow_cubic()?;
    let meshes = Meshes {
        here: mesh(options)?,
        elsewhere: mesh(options)?,
    };
    for pid in meshes.elsewhere.mesh_pids(Placement::TwoNodes) {
        stand_back(pid)?;
    }
    let mut turns: Vec<Turn> = Vec::new();
    for repetition in 0..options.repetitions {
        for placement in Placement::ALL {
            let turn = turn(&meshes, options, placement, repetition)?;
            each(&turn)?;
            turns.push(turn);
        }
    }
    Ok(turns)
}

/// The one that carries the traffic, and another of the same size.
struct Meshes {
    here: Site,
    elsewhere: Site,
}

fn mesh(options: &Options) -> Result<Site> {
    let site = Ambient.start(&options.setup)?;
    manifests::write(&options.cluster, &site.lab().manifests_dir())?;
    stand_back(site.lab().controller_pid().context("a controller")?)?;
    lab::wait_until("the agents know the whole mesh", PATIENCE, || {
        knows(&site, options.cluster.addresses())
    })?;
    Ok(site)
}

/// The three sides, one right after the other. Who is first alternates, so that what drifts is no
/// difference.
fn turn(meshes: &Meshes, options: &Options, placement: Placement, repetition: u32) -> Result<Turn> {
    let side = |besides| side(meshes, options, placement, besides);
    let (still, pushed, elsewhere);
    if repetition.is_multiple_of(2) {
        still = side(Besides::Nothing)?;
        pushed = side(Besides::Changes)?;
        elsewhere = side(Besides::ChangesElsewhere)?;
    } else {
        elsewhere = side(Besides::ChangesElsewhere)?;
        pushed = side(Besides::Changes)?;
        still = side(Besides::Nothing)?;
    }
    let sides = [&still, &pushed, &elsewhere];
    let others = sides.iter().map(|side| side.others).fold(0.0, f64::max);
    Ok(Turn {
        placement,
        repetition,
        disturbed: others > options.others_allowed,
        still,
        pushed,
        elsewhere,
    })
}

/// What goes on besides traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Besides {
    Nothing,
    /// Configuration changes of this mesh.
    Changes,
    /// Configuration changes of the other one.
    ChangesElsewhere,
}

fn side(
    meshes: &Meshes,
    options: &Options,
    placement: Placement,
    besides: Besides,
) -> Result<Side> {
    if lab::interrupted() {
        bail!("interrupted");
    }
    let load = Load::Paced {
        connections: CONNECTIONS,
        rate: options.rate,
    };
    let changed = match besides {
        Besides::Nothing => None,
        Besides::Changes => Some(&meshes.here),
        Besides::ChangesElsewhere => Some(&meshes.elsewhere),
    };
    let counted = changed.unwrap_or(&meshes.here);
    let changes = changed
        .map(|site| Changes::start(&site.lab().manifests_dir(), options.changes))
        .transpose()?;
    let before = acks(counted)?;
    let pids = participants(meshes)?;
    let report = meshes
        .here
        .run_watching(placement, load, options.timing, &pids)?;
    let acks = acks(counted)?.saturating_sub(before);
    let written = changes.map(Changes::stop).transpose()?;
    if written.is_some() {
        settled(counted)?;
        if acks == 0 {
            bail!("no agent took any change while traffic ran");
        }
    }
    let written = written.unwrap_or_default();
    let others = report.usage.others() / report.seconds.max(f64::MIN_POSITIVE);
    Ok(Side {
        report,
        others,
        changes: written.objects,
        seconds: written.seconds,
        acks,
    })
}

/// Whoever works for a push, and this process, which writes the changes: not somebody else.
fn participants(meshes: &Meshes) -> Result<Vec<i32>> {
    let mut pids = vec![std::process::id().cast_signed()];
    for site in [&meshes.here, &meshes.elsewhere] {
        pids.extend(site.mesh_pids(Placement::TwoNodes));
        pids.push(site.lab().controller_pid().context("a controller")?);
    }
    Ok(pids)
}

/// Waits until the agents have answered everything that was sent to them.
fn settled(site: &Site) -> Result<()> {
    lab::wait_until("the agents have taken every change", PATIENCE, || {
        in_step(site)
    })
}

/// Whether there are agents and each has accepted the newest response of each type.
fn in_step(site: &Site) -> Result<bool> {
    let page = site.lab().controller_get("/debug/synz")?;
    let streams: serde_json::Value = serde_json::from_str(&page)?;
    let streams = streams.as_object().context("streams by number")?;
    let types = streams
        .values()
        .filter_map(|stream| stream.get("types")?.as_object())
        .flat_map(serde_json::Map::values);
    let read =
        |one: &serde_json::Value, name: &str| one.get(name).and_then(serde_json::Value::as_u64);
    let mut answered = types.map(|one| read(one, "acked") == read(one, "sent"));
    Ok(!streams.is_empty() && answered.all(|answered| answered))
}

fn knows(site: &Site, addresses: usize) -> Result<bool> {
    let page = site.lab().controller_get("/stats/prometheus")?;
    let served = value(&page, "keelson_controller_resources", "Address");
    let expected = u64::try_from(addresses)?;
    Ok(served >= expected && in_step(site)?)
}

/// Answers that the agents have accepted.
fn acks(site: &Site) -> Result<u64> {
    let page = site.lab().controller_get("/stats/prometheus")?;
    Ok(value(&page, "keelson_controller_xds_acks_total", ""))
}

/// The sum of a metric's series whose labels contain a text.
fn value(page: &str, name: &str, label: &str) -> u64 {
    let series = page
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    series
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Lets a process run only where nobody else wants to.
fn stand_back(pid: i32) -> Result<()> {
    idle_class(&["--all-tasks"], pid)
}

/// Lets the calling thread run only where nobody else wants to. Not its process: who is started by another
/// thread, as the traffic is, would inherit it.
fn stand_back_here() -> Result<()> {
    idle_class(&[], nix::unistd::gettid().as_raw())
}

fn idle_class(options: &[&str], pid: i32) -> Result<()> {
    let status = Command::new("chrt")
        .args(options)
        .args(["--idle", "--pid", "0", &pid.to_string()])
        .status()
        .context("starting chrt, of util-linux")?;
    if !status.success() {
        bail!("chrt could not put process {pid} into the idle class: {status}");
    }
    Ok(())
}

const CONNECTIONS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_stands_back_alone() {
        let class = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Field 41, of those after the name in parentheses.
            let rest = stat.rsplit_once(')').unwrap().1.to_owned();
            rest.split_whitespace().nth(38).unwrap().to_owned()
        };
        let back = std::thread::spawn(move || {
            stand_back_here().unwrap();
            class()
        });
        assert_eq!(back.join().unwrap(), "5", "SCHED_IDLE");
        assert_eq!(class(), "0", "SCHED_OTHER");
    }

    #[test]
    fn series_are_summed_by_name_and_label() {
        let page = "# HELP a_total x\na_total{t=\"Address\"} 3\na_total{t=\"Other\"} 4\nb 9\n";
        assert_eq!(value(page, "a_total", ""), 7);
        assert_eq!(value(page, "a_total", "Address"), 3);
    }
}
