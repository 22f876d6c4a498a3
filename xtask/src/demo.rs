//! The main job, shown: each step does something and then says what it observed.

mod steps;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{AgentOptions, Capture, ControllerOptions, Lab};

use crate::build;
use crate::setup;
use crate::shell::{self, is_root};

/// How to run the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    build: build::Args,
    /// Samples per row of the table.
    #[arg(long, default_value_t = 3000)]
    samples: usize,
    /// Keep what was captured on the link between the nodes, as a pcap file.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

/// Sets up, builds, shows every step; removes everything, however it ends.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo makes network namespaces and loads eBPF programs: run `cargo xtask demo` as root"
        );
    }
    shell::heading("Setup: what is needed");
    setup::run(&setup::Args::default())?;
    shell::heading("Build");
    build::run(&args.build)?;
    lab::use_programs_directory(&build::programs(args.build.release)?)?;
    let start = Instant::now();
    let demo = Demo::start()?;
    let shown = demo.show(args);
    if lab::interrupted() {
        println!("\ninterrupted; removing the lab");
    } else if shown.is_err() {
        demo.save_logs()?;
    }
    drop(demo);
    shown?;
    println!(
        "\n{} every step was observed, in {} s; the lab is removed",
        shell::green("done:"),
        start.elapsed().as_secs()
    );
    Ok(())
}

/// The lab with what the steps look at.
struct Demo {
    lab: Lab,
    link: Capture,
}

impl Demo {
    fn start() -> Result<Self> {
        shell::heading("Lab: two nodes, pods, controller, a node agent each");
        let lab = Lab::builder(lab::unique_id())
            .manifests(shell::root()?.join("deploy/lab"))
            .build()?;
        for pod in lab.pods() {
            let ips: Vec<String> = pod.ips().iter().map(ToString::to_string).collect();
            shell::detail(&format!(
                "{}  {:<16} {}",
                pod.node().name(),
                pod.key(),
                ips.join("  ")
            ));
        }
        lab.start_controller(&ControllerOptions::default())?;
        shell::good("the controller is ready; it reads the manifests of deploy/lab");
        for node in lab.nodes() {
            lab.start_agent(node.name(), &AgentOptions::default())?;
            shell::good(&format!("the agent of node {} is ready", node.name()));
        }
        let link = lab.node("n1")?.capture_uplink()?;
        Ok(Self { lab, link })
    }

    fn show(&self, args: &Args) -> Result<()> {
        let before = self.container_pids();
        let kept = steps::plain(self).context("step (a)")?;
        steps::joins(self, kept).context("step (b)")?;
        if let Some(file) = &args.pcap {
            self.link.write_pcap(file)?;
        }
        steps::strict(self).context("step (c)")?;
        steps::denied(self).context("step (d)")?;
        let table = table::measure(&self.lab, args.samples).context("measuring")?;
        steps::leaves(self).context("step (e)")?;
        if self.container_pids() != before {
            bail!(
                "a container was restarted: {before:?} became {:?}",
                self.container_pids()
            );
        }
        shell::good("no container was restarted during all this");
        table.print(args.build.release);
        Ok(())
    }

    fn container_pids(&self) -> Vec<i32> {
        let pods = self.lab.pods();
        pods.iter()
            .flat_map(|pod| {
                self.lab.containers(&pod.key(), |containers| {
                    containers.iter().map(lab::Process::pid).collect::<Vec<_>>()
                })
            })
            .collect()
    }

    /// The logs go with the lab; after a failure somebody will want them.
    fn save_logs(&self) -> Result<()> {
        let target = build::programs(false)?.with_file_name("demo-logs");
        fs::create_dir_all(&target)?;
        for entry in fs::read_dir(self.lab.run_dir().join("logs"))? {
            let entry = entry?;
            fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
        for node in self.lab.nodes() {
            shell::heading(&format!("the last lines of the agent of {}", node.name()));
            let log = self.lab.agent_log(node.name());
            let skip = log.lines().count().saturating_sub(12);
            let tail: Vec<&str> = log.lines().skip(skip).collect();
            shell::detail(&tail.join("\n"));
        }
        println!("\nall logs: {}", target.display());
        Ok(())
    }
}

/// How long a change may take to arrive everywhere.
const CHANGE: Duration = Duration::from_secs(10);
