//! How long each test takes. Stable test programs tell it only where unstable options are allowed, so cargo is told to
//! start them through this program, which allows them. What is built stays the same.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::shell;

/// A test program and its arguments, as cargo gives them to a runner.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The program, then its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Becomes the test program.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (program, rest) = args.program.split_first().context("a program is named")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .args(["-Z", "unstable-options", "--report-time"])
        .env("RUSTC_BOOTSTRAP", "1");
    Err(command.exec()).with_context(|| format!("starting {}", program.display()))
}

/// Makes `cargo test` start test programs through this one.
///
/// # Errors
/// This program's own path cannot be read, or rustc does not say what it compiles for.
pub(super) fn through_this_program(cargo: &mut Command) -> Result<()> {
    let target = shell::host()?.to_uppercase().replace('-', "_");
    let this = shell::this_program()?;
    let runner = format!("{} run-test", this.display());
    cargo.env(format!("CARGO_TARGET_{target}_RUNNER"), runner);
    Ok(())
}

/// A test program that is started through this one.
///
/// # Errors
/// This program's own path cannot be read.
pub(super) fn command(program: &Path) -> Result<Command> {
    let mut command = Command::new(shell::this_program()?);
    command.arg("run-test").arg(program);
    Ok(command)
}

/// Name and time of a test, if the line tells of one that has ended: `test a::b ... ok <0.123s>`.
pub(super) fn read(line: &str) -> Option<(&str, Duration)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (_, time) = rest.rsplit_once(" <")?;
    let seconds: f64 = time.strip_suffix("s>")?.parse().ok()?;
    Some((name, Duration::try_from_secs_f64(seconds).ok()?))
}

/// The line without its time, as test programs write it otherwise.
pub(super) fn without_time(line: &str) -> &str {
    match read(line) {
        Some(_) => line.rsplit_once(" <").map_or(line, |(line, _)| line),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_where_a_line_has_one() {
        let line = "test a::b ... FAILED <12.250s>";
        assert_eq!(read(line), Some(("a::b", Duration::from_millis(12_250))));
        assert_eq!(without_time(line), "test a::b ... FAILED");
        for line in [
            "test a::b ... ok",
            "test a::b ... ignored",
            "test result: ok. 3 passed; 0 failed; 0 ignored; finished in 0.43s",
            "test src/lib.rs - x (line 3) ... ok",
            "a <1.0s>",
        ] {
            assert_eq!((read(line), without_time(line)), (None, line));
        }
    }
}
