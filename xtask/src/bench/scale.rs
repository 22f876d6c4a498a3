//! `cargo xtask bench scale`.

use std::time::Duration;

use anyhow::Result;
use bench::scale::manifests::Cluster;
use bench::scale::{Options, outcome};

use super::place::Place;
use crate::shell;

/// How large the clusters are.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pods, one cluster for each number.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,50000")]
    pods: Vec<usize>,
    /// Services of each cluster.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Authorization policies of each cluster.
    #[arg(long, default_value_t = 500)]
    policies: usize,
    /// Agents that subscribe.
    #[arg(long, default_value_t = 100)]
    subscribers: usize,
    /// Changes of a pod.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Small: whether everything works.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut sheet = args.place.begin("scale")?;
    let pods = if args.quick {
        &[500, 2000][..]
    } else {
        &args.pods
    };
    let options = Options {
        clusters: pods
            .iter()
            .map(|pods| Cluster {
                pods: *pods,
                services: if args.quick { 100 } else { args.services },
                policies: if args.quick { 50 } else { args.policies },
            })
            .collect(),
        subscribers: if args.quick { 20 } else { args.subscribers },
        changes: if args.quick { 10 } else { args.changes },
        patience: Duration::from_secs(900),
    };
    shell::heading("Clusters, one after another");
    let outcomes = bench::scale::run(&options, |one| {
        shell::good(&format!(
            "{} pods: ready after {:.1} s, change to last ACK p99 {:.0} ms",
            one.pods, one.ready_seconds, one.report.change_p99
        ));
        sheet.keep(&serde_json::to_string(one)?)
    })?;
    let table = outcome::table(&outcomes);
    sheet.finish(&table)
}
