//! Which programs are built, and where they then lie.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

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

/// Builds all programs that tests start, with the features that `cargo test --workspace` gives to what they are made of: so
/// neither compiles anew what the other has compiled.
pub(crate) fn for_tests() -> Result<()> {
    shell::run(shell::cargo(&WITH_FEATURES_OF_TESTS)?.arg("--bins"))
}

/// Builds with all optimisations what is measured, and the agents that are simulated for that: at once, so that what both are
/// made of is compiled once.
pub(crate) fn for_figures() -> Result<()> {
    let mut command = shell::cargo(&["build", "--release"])?;
    for package in PACKAGES.iter().chain(&["subscribers"]) {
        command.args(["--package", package]);
    }
    shell::run(&mut command)
}

/// Builds the agent whose maps have another layout, beside the usual one, which a test lets it succeed. It has `--ebpf-log`
/// too, for the tests of that. The usual one is to be built after it.
pub(crate) fn next_layout_for_tests() -> Result<()> {
    let mut command = shell::cargo(&WITH_FEATURES_OF_TESTS)?;
    command.args(["--bin", "keelson-node-agent"]);
    shell::run(command.args(["--features", "node-agent/next-layout,node-agent/ebpf-log"]))?;
    keep_next_layout()
}

/// Builds the agent whose maps have another layout.
pub(crate) fn next_layout() -> Result<()> {
    let mut command = shell::cargo(&["build", "--package", "node-agent"])?;
    shell::run(command.args(["--features", "next-layout,ebpf-log"]))?;
    keep_next_layout()
}

fn keep_next_layout() -> Result<()> {
    let programs = programs(false)?;
    let built = programs.join("keelson-node-agent");
    // Cargo has one name for both; the usual one takes its place back with the next build.
    let kept = programs.join("keelson-node-agent-next-layout");
    std::fs::copy(&built, &kept).with_context(|| format!("copying {}", built.display()))?;
    Ok(())
}

/// Builds test programs of these packages, by the names of their targets, with the features of the whole workspace, as they
/// are built to be run together: nothing is compiled twice. Returns where they lie.
pub(crate) fn test_programs(packages: &[&str], targets: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = shell::cargo(&[
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ])?;
    for program in targets {
        command.args(["--test", program]);
    }
    // Test programs of both have the same names.
    for other in ["tests-lab", "tests-cluster"] {
        if !packages.contains(&other) {
            command.args(["--exclude", other]);
        }
    }
    command.stderr(Stdio::inherit());
    let output = command.output().context("building the tests")?;
    if !output.status.success() {
        bail!("building the tests failed");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut programs = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line)
            .with_context(|| format!("cargo printed what is no JSON: {line}"))?;
        let id = message["package_id"].as_str().unwrap_or_default();
        let is_wanted = packages
            .iter()
            .any(|name| id.contains(&format!("#{name}@")));
        let is_test = is_wanted && message["profile"]["test"].as_bool() == Some(true);
        if let Some(path) = message["executable"].as_str().filter(|_| is_test) {
            programs.push(PathBuf::from(path));
        }
    }
    if programs.is_empty() {
        bail!("cargo named no test program");
    }
    Ok(programs)
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

/// Examples take the features of what only tests need. The kernel half has its own target.
pub(crate) const WITH_FEATURES_OF_TESTS: [&str; 5] =
    ["build", "--workspace", "--exclude", "ebpf", "--examples"];

const PACKAGES: [&str; 6] = [
    "node-agent",
    "waypoint",
    "controller",
    "cni",
    "keelson",
    "testkit",
];
