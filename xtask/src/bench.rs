//! The benchmark as a command: builds, installs what is compared with, measures, reports.

mod cluster;
mod place;
mod push;
mod routes;
mod scale;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use bench::Options;
use bench::machine::Machine;
use bench::modes::{self, Mode, Setup, envoy};
use bench::report;
use bench::results::Results;
use bench::scenario::{Scenario, Sizes};
use bench::site::Timing;

use crate::setup;
use crate::shell::{self, is_root};

/// What to measure and how.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    further: Option<Further>,
    /// Short runs: whether everything works, with figures that are only hints.
    #[arg(long)]
    quick: bool,
    /// Which modes, separated by commas; `direct` always takes part.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "direct,ambient,ambient-mtls,sidecar,sidecar-tcp"
    )]
    modes: Vec<String>,
    /// Which kinds of traffic: one, pinned, paced, many, connect, bulk, idle.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "one,pinned,paced,many,connect,bulk,idle"
    )]
    scenarios: Vec<String>,
    /// How often each measurement is repeated.
    #[arg(long)]
    repetitions: Option<u32>,
    /// Seconds of counting per measurement.
    #[arg(long)]
    window: Option<f64>,
    /// Seconds of traffic before counting.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Requests per second of the scenario `paced`, over its 16 connections.
    #[arg(long)]
    rate: Option<u32>,
    /// Connections of the scenario `idle`.
    #[arg(long)]
    idle: Option<usize>,
    /// Processors that other programs may use during a run before it is left out.
    #[arg(long)]
    others: Option<f64>,
    /// How often what others disturbed is measured again.
    #[arg(long)]
    retries: Option<u32>,
    /// Threads of an agent that carry traffic; 0 is one per core.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    #[command(flatten)]
    build: Build,
    /// Where results go; by default `target/bench/<time>.jsonl`. The chart lies beside it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure nothing; report what this file of an earlier run holds.
    #[arg(long, value_name = "FILE")]
    read: Option<PathBuf>,
    /// Write table and chart into docs/benchmarks.md.
    #[arg(long)]
    update_docs: bool,
    /// All figures, not only those that were promised.
    #[arg(long)]
    details: bool,
}

/// Which programs are measured.
#[derive(Debug, clap::Args)]
struct Build {
    /// The profile that is built and measured.
    #[arg(long, default_value = "release", value_parser = ["release", "dev"])]
    profile: String,
    /// With all optimisations; this is the default.
    #[arg(long, conflicts_with = "profile")]
    release: bool,
    /// Take the programs as they were built last.
    #[arg(long)]
    no_build: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Further {
    /// Measure the mesh on a real Kubernetes that is put up for it. Needs root and Go.
    Cluster(cluster::Args),
    /// Measure the control plane with large synthetic clusters. Needs root.
    Scale(scale::Args),
    /// Measure whether traffic feels configuration that changes all the time. Needs root.
    Push(push::Args),
    /// Measure how long a route takes from its manifest to the first request that goes by it. Needs root.
    Routes(routes::Args),
}

/// Measures unless `--read`, then reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.further {
        Some(Further::Cluster(args)) => return cluster::run(args),
        Some(Further::Scale(args)) => return scale::run(args),
        Some(Further::Push(args)) => return push::run(args),
        Some(Further::Routes(args)) => return routes::run(args),
        None => {}
    }
    let (results, file) = match &args.read {
        Some(file) => (Results::read(file)?, file.clone()),
        None => measure(args)?,
    };
    if args.details {
        shell::heading("All figures");
        println!("{}", report::details(&results));
        println!("{}", report::programs(&results));
        println!("{}", report::syscalls(&results));
    }
    shell::heading("What was promised and what was measured");
    println!("{}", report::budget(&results));
    let chart = file.with_extension("svg");
    fs::write(&chart, report::chart(&results))
        .with_context(|| format!("writing {}", chart.display()))?;
    println!("results: {}\nchart:   {}", file.display(), chart.display());
    if args.update_docs {
        let page = shell::root()?.join("docs/benchmarks.md");
        report::update(&page, &results)?;
        println!("written: {}", page.display());
    }
    if !results.failed.is_empty() {
        bail!(
            "{} measurements failed; they are in the results",
            results.failed.len()
        );
    }
    Ok(())
}

fn measure(args: &Args) -> Result<(Results, PathBuf)> {
    if !is_root() {
        bail!("the benchmark makes network namespaces and loads eBPF programs: run it as root");
    }
    let modes = choose_modes(&args.modes)?;
    let scenarios = choose_scenarios(&args.scenarios)?;
    shell::heading("Setup and build");
    setup::run(&setup::Args::default())?;
    let target = prepare(&args.build)?;
    let mut setup = Setup {
        workers: args.workers,
        ..Setup::default()
    };
    let mut machine = Machine::read(&args.build.profile, &shell::root()?);
    if modes.iter().any(|mode| mode.needs_envoy()) {
        let program = install_envoy(&target)?;
        machine.envoy = Some(envoy::install::version(&program)?);
        setup.envoy = Some(program);
    }
    let out = args.out.clone().unwrap_or_else(|| default_out(&target, ""));
    let options = Options {
        modes,
        scenarios,
        repetitions: args.repetitions.unwrap_or(if args.quick { 2 } else { 9 }),
        timing: Timing {
            warm_up: seconds(args.warm_up, if args.quick { 0.2 } else { 1.0 })?,
            window: seconds(args.window, if args.quick { 0.5 } else { 3.0 })?,
            pinned: false,
        },
        sizes: sizes(args),
        // The shorter a run, the less exactly is known who had the processors.
        others_allowed: args.others.unwrap_or(if args.quick { 0.25 } else { 0.1 }),
        retries: args.retries.unwrap_or(if args.quick { 0 } else { 1 }),
        setup,
        out: out.clone(),
        machine,
    };
    shell::heading("Labs: one for each mode, all standing at once, used in turns");
    Ok((bench::run(&options)?, out))
}

/// A file that no earlier run has written.
fn default_out(target: &Path, kind: &str) -> PathBuf {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    target.join(format!(
        "bench/{kind}{}.jsonl",
        since.unwrap_or_default().as_secs()
    ))
}

fn sizes(args: &Args) -> Sizes {
    let usual = Sizes::default();
    Sizes {
        rate: args.rate.unwrap_or(usual.rate),
        idle: args.idle.unwrap_or(if args.quick {
            usual.idle / 10
        } else {
            usual.idle
        }),
    }
}

fn seconds(given: Option<f64>, usual: f64) -> Result<Duration> {
    let seconds = given.unwrap_or(usual);
    Duration::try_from_secs_f64(seconds)
        .with_context(|| format!("{seconds} s is no length of time"))
}

/// Builds the programs of the profile and returns cargo's target directory.
fn prepare(args: &Build) -> Result<PathBuf> {
    let profile = &*args.profile;
    let mut command = shell::cargo(&["build", "--profile", profile])?;
    for package in [
        "node-agent",
        "waypoint",
        "controller",
        "cni",
        "bench",
        "subscribers",
    ] {
        command.args(["--package", package]);
    }
    if !args.no_build {
        shell::run(&mut command)?;
    }
    let own = shell::this_program()?;
    let target = own.parent().and_then(Path::parent);
    let target = target.context("this program lies in a directory of cargo's")?;
    let directory = if profile == "dev" { "debug" } else { profile };
    lab::use_programs_directory(&target.join(directory))?;
    Ok(target.to_owned())
}

fn install_envoy(target: &Path) -> Result<PathBuf> {
    if shell::which("iptables").is_none() {
        setup::install_packages(&["iptables"])?;
    }
    let program = envoy::install::envoy(&target.join("bench/envoy"))?;
    shell::good(&format!("Envoy: {}", program.display()));
    Ok(program)
}

fn choose_modes(names: &[String]) -> Result<Vec<&'static dyn Mode>> {
    let known: Vec<&str> = modes::ALL.iter().map(|mode| mode.name()).collect();
    let choose = |name: &String| {
        let found = modes::ALL.iter().copied().find(|mode| mode.name() == *name);
        found.with_context(|| format!("{name:?} is no mode: there are {}", known.join(", ")))
    };
    names.iter().map(choose).collect()
}

fn choose_scenarios(names: &[String]) -> Result<Vec<Scenario>> {
    let known = Scenario::ALL.map(Scenario::name).join(", ");
    let choose = |name: &String| {
        Scenario::named(name).with_context(|| format!("{name:?} is no scenario: there are {known}"))
    };
    names.iter().map(choose).collect()
}
