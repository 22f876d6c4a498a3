//! Every command that a developer or CI types: `cargo xtask --help` lists them.

#![expect(
    clippy::print_stdout,
    reason = "a command line program speaks on standard output"
)]
#![expect(clippy::print_stderr, reason = "and complains on standard error")]

mod bench;
mod build;
mod ci;
mod demo;
mod lab_command;
mod lint;
mod setup;
mod shell;
mod test;

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
    /// Run all tests, those that need the kernel too. Needs root.
    Test(test::Args),
    /// Check format, clippy, documentation, dependencies and the workspace's own rules.
    Lint(lint::Args),
    /// What CI runs: setup, lint, test.
    Ci,
}

fn main() -> ExitCode {
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
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Lab(command) => lab_command::run(command),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
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
