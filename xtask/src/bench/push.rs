//! `cargo xtask bench push`.

use anyhow::Result;
use bench::modes::Setup;
use bench::push::{Options, outcome};
use bench::scale::manifests::Cluster;
use bench::scenario::Sizes;
use bench::site::Timing;

use super::place::Place;
use super::seconds;
use crate::shell;

/// How much traffic and how many changes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Changed objects per second.
    #[arg(long, default_value_t = 1000)]
    changes: u32,
    /// Pods of the mesh besides client and servers, behind a tenth as many services.
    #[arg(long, default_value_t = 2000)]
    pods: usize,
    /// How often.
    #[arg(long)]
    repetitions: Option<u32>,
    /// Seconds of counting per measurement.
    #[arg(long)]
    window: Option<f64>,
    /// Requests per second, over 16 connections.
    #[arg(long)]
    rate: Option<u32>,
    /// Processors that other programs may use during a run before it is left out.
    #[arg(long, default_value_t = 0.1)]
    others: f64,
    /// Short: whether everything works.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut sheet = args.place.begin("push")?;
    let options = Options {
        cluster: Cluster {
            pods: args.pods,
            services: args.pods.div_ceil(10),
            policies: args.pods.div_ceil(20),
        },
        changes: args.changes,
        rate: args.rate.unwrap_or(Sizes::default().rate),
        repetitions: args.repetitions.unwrap_or(if args.quick { 2 } else { 9 }),
        timing: Timing {
            warm_up: seconds(None, if args.quick { 0.5 } else { 1.0 })?,
            window: seconds(args.window, if args.quick { 1.0 } else { 4.0 })?,
            pinned: false,
        },
        others_allowed: args.others,
        setup: Setup::default(),
    };
    shell::heading("The same traffic without and with changes, in turns");
    let turns = bench::push::run(&options, |turn| {
        let ratio = turn.ratio(|latency| latency.p99).unwrap_or(f64::NAN);
        let beyond = turn
            .beyond_elsewhere(|latency| latency.p99)
            .unwrap_or(f64::NAN);
        let note = if turn.disturbed {
            ", left out: others had the machine".to_owned()
        } else {
            String::new()
        };
        shell::good(&format!(
            "{}: p99 {ratio:.2} times as long with {} changes, {beyond:.2} times as long as with changes of another mesh; they took {:.2} processors{note}",
            turn.placement.title(),
            turn.pushed.changes,
            turn.work(),
        ));
        sheet.keep(&serde_json::to_string(turn)?)
    })?;
    let table = outcome::table(&turns);
    sheet.finish(&table)
}
