//! `cargo xtask bench scale`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bench::scale::manifests::Cluster;
use bench::scale::{Options, outcome};

use crate::bench::{Build, default_out, prepare};
use crate::setup;
use crate::shell::{self, is_root};

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
    build: Build,
    /// Where results go; by default `target/bench/scale-<time>.jsonl`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the table into docs/benchmarks.md.
    #[arg(long)]
    update_docs: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the lab makes a network namespace and the agent loads eBPF programs: run it as root"
        );
    }
    shell::heading("Setup and build");
    setup::run(&setup::Args::default())?;
    let target = prepare(&args.build)?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| default_out(&target, "scale-"));
    if let Some(directory) = out.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = fs::File::create(&out).with_context(|| format!("creating {}", out.display()))?;
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
        writeln!(file, "{}", serde_json::to_string(one)?)?;
        Ok(())
    })?;
    let table = outcome::table(&outcomes);
    println!("\n{table}\nresults: {}", out.display());
    if args.update_docs {
        let page = shell::root()?.join("docs/benchmarks.md");
        bench::report::update_part(&page, "scale", &table)?;
        println!("written: {}", page.display());
    }
    Ok(())
}
