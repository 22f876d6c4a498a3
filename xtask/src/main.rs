//! Every command that a developer or CI types: `cargo xtask --help` lists them.

#![expect(clippy::print_stderr, reason = "and complains on standard error")]

/// As the standard library's, where a pipe that the reader has closed is no reason to panic.
macro_rules! println {
    () => { ::bench::output::line(format_args!("")) };
    ($($argument:tt)*) => { ::bench::output::line(format_args!($($argument)*)) };
}

mod bench;
mod build;
mod ci;
mod cluster_command;
mod demo;
mod fuzz;
mod images;
mod lab_command;
mod lint;
mod setup;
mod shell;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, builds, shows, tests and checks Keelson.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check what building and testing need, and install what is missing.
    ///
    /// Says what it does before it does it. Needs root on Debian or Ubuntu to install system
    /// packages; elsewhere it says what to install. Does nothing when all is there.
    Setup(setup::Args),
    /// Build the programs: agent (with its kernel half), controller, lab applications.
    Build(build::Args),
    /// Build the programs statically and make container images of them: archives for `ctr images import`, `docker load` and
    /// `cargo xtask cluster load`.
    Images(images::Args),
    /// Run the main job in the lab, step by step, with what was observed. Needs root.
    ///
    /// Two nodes and their pods as network namespaces, real programs, real packets: plain HTTP
    /// on the wire; the namespace joins the mesh and it is encrypted; strict mTLS; a policy
    /// refuses a service account and says why; the namespace leaves; a table of latencies.
    /// Exit code 0 only if every step was observed. Everything is removed at the end.
    Demo(demo::Args),
    /// Measure the same traffic without a mesh, through Keelson and through Envoy sidecars, in
    /// turns. Needs root, and a machine that nobody else uses meanwhile.
    Bench(Box<bench::Args>),
    /// The same lab, left standing for a person. Needs root.
    #[command(subcommand)]
    Lab(lab_command::Command),
    /// A real Kubernetes on this machine, left standing for a person or for tests. Needs root, and Go.
    #[command(subcommand)]
    Cluster(cluster_command::Command),
    /// Run all tests, those that need the kernel too. Needs root.
    Test(test::Args),
    /// Become a test program that tells how long its tests take; `test` has cargo start them so.
    #[command(hide = true)]
    RunTest(test::timed::Args),
    /// Check format, clippy, documentation, dependencies and the workspace's own rules.
    Lint(lint::Args),
    /// Give arbitrary bytes to everything that reads what strangers write.
    Fuzz(fuzz::Args),
    /// What CI runs: setup, lint, test, also on a cluster and on other kernels, fuzz briefly.
    Ci,
}

fn main() -> ExitCode {
    // Before anything is built.
    drop(shell::this_program());
    let result = run(Args::parse().command);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", shell::red("error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Images(args) => images::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Lab(command) => lab_command::run(command),
        Command::Cluster(command) => cluster_command::run(command),
        Command::Test(args) => test::run(&args),
        Command::RunTest(args) => test::timed::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Ci => ci::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
