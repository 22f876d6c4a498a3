//! All tests through `cargo test`, with its lines visible and added up at the end.

pub(crate) mod cluster;
mod earlier;
mod needs;
pub(crate) mod timed;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::needs::Needs;
use crate::shell::{self, is_root};
use crate::vm::{self, Kernel, Selection};

/// Which tests to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains one of these.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Only tests of these packages.
    #[arg(short, long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Run the tests that need a kernel on this series of Debian's kernels, in a virtual machine with cgroup v2
    /// alone. Installs qemu and what else that takes.
    #[arg(long, value_name = "SERIES", conflicts_with = "packages")]
    kernel: Option<Kernel>,
    /// Run the tests of a real Kubernetes: on a cluster that is put up for them and taken down, or on the one that
    /// KUBECONFIG names. The first time Kubernetes is compiled, which takes some minutes and needs Go.
    #[arg(long, conflicts_with_all = ["packages", "kernel", "keep"])]
    cluster: bool,
    /// With `--cluster`: also the tests that take long, those of Helm and of a network that enforces NetworkPolicy.
    #[arg(long, requires = "cluster")]
    nightly: bool,
    /// With `--nightly`: the version that a mesh of two versions has beside this one.
    #[arg(long, value_name = "COMMIT", default_value = "HEAD~30")]
    earlier: String,
    /// With `--cluster`: only the Gateway API's own tests, on a cluster `conformance`. Their report is in
    /// `target/conformance`.
    #[arg(long, requires = "cluster", conflicts_with = "nightly")]
    conformance: bool,
    /// With `--cluster`: how kube-proxy makes services work.
    #[arg(long, requires = "cluster", value_name = "MODE")]
    proxy: Option<::cluster::Proxy>,
    /// With `--cluster`: pods and services have addresses of IPv6 too.
    #[arg(long, requires = "cluster")]
    dual_stack: bool,
    /// With `--cluster`: images as `cargo xtask images` makes them, which compiles everything anew for them.
    #[arg(long, requires = "cluster")]
    static_images: bool,
    /// With `--kernel`: minutes after which the machine is ended and the run has failed.
    #[arg(
        long,
        value_name = "MINUTES",
        default_value_t = 60,
        requires = "kernel"
    )]
    limit: u64,
    /// With `--kernel`: leave out tests whose name contains this.
    #[arg(long, value_name = "NAME", requires = "kernel")]
    skip: Vec<String>,
    /// Leave the lab of a test standing at the test's end, passed or not, until `cargo xtask lab down` or Ctrl-C. Name one
    /// test.
    #[arg(long, requires = "filters", conflicts_with = "kernel")]
    keep: bool,
    /// Arguments for the test programs, such as `--nocapture`.
    #[arg(last = true)]
    rest: Vec<String>,
    /// Simulated agents, for figures.
    #[arg(skip)]
    subscribers: Option<PathBuf>,
}

impl Args {
    /// The tests of a real Kubernetes, as CI runs them.
    pub(crate) fn on_a_cluster() -> Self {
        Self {
            cluster: true,
            ..Self::default()
        }
    }

    /// Guard and wall on another kernel, as CI does.
    pub(crate) fn elsewhere(kernel: Kernel) -> Self {
        Self {
            filters: ["spoofing::", "wall::"].map(str::to_owned).to_vec(),
            kernel: Some(kernel),
            limit: 6,
            ..Self::default()
        }
    }
}

/// Builds everything that tests start, then runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(kernel) = args.kernel {
        let selection = Selection {
            filters: &args.filters,
            skip: &args.skip,
            rest: &args.rest,
            limit: Duration::from_secs(args.limit.saturating_mul(60)),
        };
        return vm::test(kernel, &selection);
    }
    if args.cluster {
        return cluster::run(args);
    }
    prepare(&args.packages)?;
    let mut command = shell::cargo(&["test", "--no-fail-fast"])?;
    if args.packages.is_empty() {
        // Those of a cluster run with `--cluster`.
        command.args(["--workspace", "--exclude", "tests-cluster"]);
    }
    for package in &args.packages {
        command.args(["--package", package]);
    }
    // `cargo test` itself takes one filter only, the test programs take several.
    command.arg("--").args(&args.filters).args(&args.rest);
    if args.keep {
        command.env(lab::KEEP, "1");
    }
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
    totals.print_slowest();
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

/// Installs and builds what the tests need that `cargo test` does not.
fn prepare(packages: &[String]) -> Result<()> {
    let needs = needs::of(packages);
    if needs == Needs::Cargo {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "these tests make network namespaces and load eBPF programs: run `cargo xtask test` as root; \
             those of other packages run without, such as `cargo xtask test -p model`"
        );
    }
    crate::setup::run(&crate::setup::Args::default())?;
    if needs == Needs::Programs {
        // Tests start programs of other packages, which `cargo test` does not build for them.
        if packages.is_empty() {
            crate::build::next_layout_for_tests()?;
            crate::build::for_tests()?;
        } else {
            crate::build::next_layout()?;
            crate::build::run(&crate::build::Args::default())?;
        }
    }
    Ok(())
}

/// Runs what failed once more. A test of the lab shares two processors with whatever else runs; one
/// that passes now is named as unsteady, and only a second failure fails the run.
fn again(totals: &Totals) -> Result<()> {
    totals.print_said();
    if totals.failures.is_empty() || totals.failures.len() > MOST_UNSTEADY {
        bail!("`cargo test` failed");
    }
    println!("\nonce more, those that failed, as far as they are tests of the lab:");
    let mut command = shell::cargo(&["test", "--no-fail-fast", "--workspace"])?;
    // With the features that they have been built with.
    command.args(["--exclude", "tests-cluster"]);
    for program in ["datapath", "mesh", "l7"] {
        command.args(["--test", program]);
    }
    command.args(["--", "--exact"]).args(&totals.failures);
    let (second, success) = watch(command)?;
    let all = u64::try_from(totals.failures.len())?;
    if !success || second.passed != all {
        second.print_said();
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
    timed::through_this_program(&mut command)?;
    println!("{} cargo test", shell::dim("$"));
    let mut totals = Totals::default();
    let success = follow(command, &mut totals)?;
    Ok((totals, success))
}

/// Runs what prints as test programs do, shows its lines, adds them up, and says whether it succeeded.
fn follow(mut command: Command, totals: &mut Totals) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting tests")?;
    let output = child.stdout.take().context("its output is a pipe")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        totals.add(&line);
        println!("{line}");
    }
    Ok(child.wait()?.success())
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) programs: u64,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) failures: Vec<String>,
    /// How long each test took that said so.
    times: Vec<(Duration, String)>,
    /// What failed tests said first: the error, without its backtrace.
    said: Vec<String>,
    /// Lines of a failed test that are still to be kept.
    keep: usize,
    /// Figures that tests have printed for `cargo xtask bench cluster`.
    pub(crate) figures: Vec<String>,
}

impl Totals {
    /// Takes in one line of a test program.
    pub(crate) fn add(&mut self, line: &str) {
        if let Some((name, time)) = timed::read(line) {
            self.times.push((time, name.to_owned()));
        }
        let line = timed::without_time(line);
        self.hear(line);
        if let Some((_, figure)) = line.split_once("figure: ") {
            self.figures.push(figure.to_owned());
        }
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

impl Totals {
    /// Keeps the beginning of what a failed test has said, of which the test program makes a paragraph.
    fn hear(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.keep = SAID;
        } else if line.trim_start().starts_with("stack backtrace") || line == "failures:" {
            self.keep = 0;
        }
        if self.keep > 0 && !line.is_empty() {
            self.keep -= 1;
            self.said.push(line.to_owned());
        }
    }

    /// Tells again, where whoever sees only the end of the output finds it, why tests failed.
    fn print_said(&self) {
        if !self.said.is_empty() {
            println!("\n{}", shell::bold("what they said:"));
        }
        for line in &self.said {
            println!("  {line}");
        }
    }

    /// Names the tests that took longest, if any took long. Those of the lab wait for each other, so their times hold
    /// what they waited for.
    fn print_slowest(&self) {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by(|one, other| other.cmp(one));
        times.retain(|(time, _)| *time >= SLOW);
        if !times.is_empty() {
            println!("{}", shell::dim("slowest:"));
        }
        for (time, name) in times.into_iter().take(SLOWEST) {
            println!("  {:>6.1} s  {name}", time.as_secs_f64());
        }
    }
}

/// Lines of what a failed test has said.
const SAID: usize = 12;

/// Shorter tests are not named.
const SLOW: Duration = Duration::from_secs(1);
/// So many are named.
const SLOWEST: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_cargo_test_are_added_up() {
        let mut totals = Totals::default();
        for line in [
            "test a ... ok",
            "figure: a | b",
            "test b::c ... FAILED <0.500s>",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.43s",
            "failures:",
            "---- b::c stdout ----",
            "Error: it is not so",
            "",
            "stack backtrace:",
            "   0: somewhere",
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
            times: vec![(Duration::from_millis(500), "b::c".to_owned())],
            said: vec![
                "---- b::c stdout ----".to_owned(),
                "Error: it is not so".to_owned(),
            ],
            keep: 0,
            figures: vec!["a | b".to_owned()],
        };
        assert_eq!(totals, expected);
    }
}
