//! Which programs are built, and where they then lie.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::shell;

/// How to build.
#[derive(Debug, Default, clap::Args)]
#[group(id = "build")]
pub(crate) struct Args {
    /// With all optimisations, for measuring and for use.
    #[arg(long)]
    pub(crate) release: bool,
    /// Take the programs as they were built last.
    #[arg(long)]
    pub(crate) no_build: bool,
    /// With the agent's flag `--ebpf-log`: the kernel half says what it decides. For debug builds.
    #[arg(long, conflicts_with = "release")]
    pub(crate) ebpf_log: bool,
}

/// Builds, with cargo's own progress visible.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.no_build {
        return Ok(());
    }
    let mut command = shell::cargo(&["build"])?;
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    if args.release {
        command.arg("--release");
    }
    if args.ebpf_log {
        command.args(["--features", "node-agent/ebpf-log"]);
    }
    shell::run(&mut command)
}

/// Builds the agent whose maps have another layout, beside the others: a test lets it succeed the usual one. It has
/// `--ebpf-log` too, for the tests of that.
pub(crate) fn next_layout() -> Result<()> {
    let mut command = shell::cargo(&["build", "--package", "node-agent"])?;
    shell::run(command.args(["--features", "next-layout,ebpf-log"]))?;
    let programs = programs(false)?;
    let built = programs.join("keelson-node-agent");
    // Cargo has one name for both; the usual one takes its place back with the next build.
    let kept = programs.join("keelson-node-agent-next-layout");
    std::fs::copy(&built, &kept).with_context(|| format!("copying {}", built.display()))?;
    Ok(())
}

/// Where the programs of a profile lie.
pub(crate) fn programs(release: bool) -> Result<PathBuf> {
    let own = shell::this_program()?;
    let target = own
        .parent()
        .and_then(|profile| profile.parent())
        .context("this program lies in a directory of cargo's")?;
    Ok(target.join(if release { "release" } else { "debug" }))
}

const PACKAGES: [&str; 6] = [
    "node-agent",
    "waypoint",
    "controller",
    "cni",
    "keelson",
    "testkit",
];
