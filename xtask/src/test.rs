//! All tests through `cargo test`, with its lines visible and added up at the end.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, is_root};

/// Which tests to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Only tests of these packages.
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Arguments for the test programs, such as `--nocapture`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds everything that tests start, then runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the tests make network namespaces and load eBPF programs: run `cargo xtask test` as root \
             (`cargo test -p model` and the like test single crates without)"
        );
    }
    crate::setup::run(&crate::setup::Args::default())?;
    // Tests start programs of other packages, which `cargo test` does not build for them.
    crate::build::next_layout()?;
    crate::build::run(&crate::build::Args::default())?;
    let mut command = shell::cargo(&["test", "--no-fail-fast"])?;
    if args.packages.is_empty() {
        command.arg("--workspace");
    }
    for package in &args.packages {
        command.args(["--package", package]);
    }
    command.args(&args.filter).arg("--").args(&args.rest);
    let start = Instant::now();
    let (totals, success) = watch(command)?;
    println!(
        "\n{} {} passed, {} failed, {} ignored, in {} test programs, {} s",
        shell::bold("all tests:"),
        totals.passed,
        totals.failed,
        totals.ignored,
        totals.programs,
        start.elapsed().as_secs()
    );
    if totals.passed == 0 {
        bail!("no test ran");
    }
    if success {
        return Ok(());
    }
    for name in &totals.failures {
        println!("  {} {name}", shell::red("failed:"));
    }
    again(&totals)
}

/// Runs what failed once more. A test of the lab shares two processors with whatever else runs; one
/// that passes now is named as unsteady, and only a second failure fails the run.
fn again(totals: &Totals) -> Result<()> {
    if totals.failures.is_empty() || totals.failures.len() > MOST_UNSTEADY {
        bail!("`cargo test` failed");
    }
    println!("\nonce more, those that failed, as far as they are tests of the lab:");
    let mut command = shell::cargo(&["test", "--no-fail-fast", "--package", "tests-lab"])?;
    command.args(["--", "--exact"]).args(&totals.failures);
    let (second, success) = watch(command)?;
    let all = u64::try_from(totals.failures.len())?;
    if !success || second.passed != all {
        bail!("`cargo test` failed, also when repeated");
    }
    for name in &totals.failures {
        println!(
            "  {} {name} (failed once, passed when repeated)",
            shell::bold("unsteady:")
        );
    }
    Ok(())
}

/// More failures than this are no accident.
const MOST_UNSTEADY: usize = 5;

/// Runs `cargo test`, shows its lines and adds them up.
fn watch(mut command: Command) -> Result<(Totals, bool)> {
    println!("{} cargo test", shell::dim("$"));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting `cargo test`")?;
    let mut totals = Totals::default();
    let output = child.stdout.take().context("its output is a pipe")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        totals.add(&line);
        println!("{line}");
    }
    Ok((totals, child.wait()?.success()))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<String>,
}

impl Totals {
    fn add(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        self.programs += 1;
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<u64>().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => self.passed += number,
                (Some(number), Some("failed")) => self.failed += number,
                (Some(number), Some("ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_cargo_test_are_added_up() {
        let mut totals = Totals::default();
        for line in [
            "test a ... ok",
            "test b::c ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.43s",
            "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            totals.add(line);
        }
        let expected = Totals {
            programs: 2,
            passed: 13,
            failed: 1,
            ignored: 2,
            failures: vec!["b::c".to_owned()],
        };
        assert_eq!(totals, expected);
    }
}
