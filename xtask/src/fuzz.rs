//! Arbitrary bytes for everything that reads what strangers write: libFuzzer on the targets in `fuzz/`.
//!
//! The targets are compiled by stable Rust for their own directory, with LLVM's coverage in everything but
//! build scripts and macros. What was found interesting is kept below `fuzz/target`; what makes a target fail is
//! written to `fuzz/artifacts` and belongs into `fuzz/corpus` and a test, once mended.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// What to fuzz and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One of the targets; all of them, one after the other, if none is named.
    target: Option<String>,
    /// How long each is fuzzed; a fraction is allowed.
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
}

impl Args {
    /// Every target for some seconds, as CI does.
    pub(crate) fn briefly() -> Self {
        Self {
            target: None,
            minutes: BRIEFLY,
        }
    }
}

/// Builds the targets and runs them; fails at the first that finds something.
pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen: Vec<&str> = match &args.target {
        None => TARGETS.to_vec(),
        Some(name) if TARGETS.contains(&name.as_str()) => vec![name],
        Some(name) => bail!(
            "there is no target {name}; there are {}",
            TARGETS.join(", ")
        ),
    };
    let host = shell::host()?;
    shell::run(&mut build(&host, &chosen)?)?;
    for target in chosen {
        shell::heading(target);
        shell::run(&mut fuzz(&host, target, args.minutes)?)
            .with_context(|| format!("{target} failed: what it was given is in {ARTIFACTS}"))?;
    }
    Ok(())
}

/// The flags go to code for the host as a target, not to build scripts and macros.
fn build(host: &str, targets: &[&str]) -> Result<Command> {
    let mut command = shell::cargo(&["build", "--manifest-path", "fuzz/Cargo.toml"])?;
    command.args(["--target", host, "--target-dir", "fuzz/target"]);
    for target in targets {
        command.args(["--bin", target]);
    }
    command.env("RUSTFLAGS", FLAGS.join(" "));
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

fn fuzz(host: &str, target: &str, minutes: f64) -> Result<Command> {
    let root = shell::root()?;
    let found = root.join("fuzz/target/corpus").join(target);
    let artifacts = root.join(ARTIFACTS).join(target);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let built = Path::new("fuzz/target").join(host).join("debug");
    let mut command = Command::new(root.join(built).join(target));
    command
        .current_dir(&root)
        .arg(&found)
        .arg(root.join("fuzz/corpus").join(target))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", seconds(minutes)))
        .args(LIMITS);
    Ok(command)
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && minutes < 1e6 => Ok(minutes),
        _ => Err("a number of minutes above 0".to_owned()),
    }
}

/// 0 would be for ever.
fn seconds(minutes: f64) -> u64 {
    std::time::Duration::from_secs_f64(minutes * 60.0)
        .as_secs()
        .max(1)
}

const TARGETS: [&str; 11] = [
    "framing",
    "records",
    "headers",
    "manifests",
    "configuration",
    "requests",
    "subscriptions",
    "cni",
    "proxy_header",
    "doors",
    "policies",
];

const ARTIFACTS: &str = "fuzz/artifacts";

/// Minutes for each target in CI.
const BRIEFLY: f64 = 0.1;

/// As cargo-fuzz has them, but for the sanitizers, which need a nightly toolchain: there is little unsafe code here.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Memory, time for one input, and length of inputs: beyond is a finding, or a waste. What is new is not told.
const LIMITS: [&str; 5] = [
    "-rss_limit_mb=1024",
    "-timeout=10",
    "-max_len=4096",
    "-print_final_stats=1",
    "-verbosity=0",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_exists_and_has_a_corpus_and_no_other_does() {
        let root = shell::root().unwrap();
        let names = |place: &str| {
            let mut names: Vec<String> = fs::read_dir(root.join(place))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            names.sort();
            names
        };
        let mut targets = TARGETS.to_vec();
        targets.sort_unstable();
        assert_eq!(names("fuzz/fuzz_targets"), targets);
        assert_eq!(names("fuzz/corpus"), targets);
    }

    #[test]
    fn no_time_is_for_ever() {
        assert_eq!(seconds(0.001), 1);
        assert_eq!(seconds(0.1), 6);
        assert_eq!(seconds(2.5), 150);
        assert!(minutes("0").is_err() && minutes("-1").is_err() && minutes("NaN").is_err());
    }
}
