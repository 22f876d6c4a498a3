//! The suite of a real cluster: of one that is put up for it, or of the one that `KUBECONFIG` names.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use cluster::{Options, Place, Proxy};

use super::earlier::{self, Earlier};
use super::{Args, MOST_UNSTEADY, Totals, follow, timed};
use crate::cluster_command::{self as command, Id};
use crate::images::{self, Made};
use crate::shell::{self, is_root};
use crate::{build, setup};

/// Runs it.
///
/// # Errors
/// The cluster does not start, a test fails, or something is left of the cluster.
pub(super) fn run(args: &Args) -> Result<()> {
    let named = env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    if let Some(kubeconfig) = named {
        println!(
            "tests on the cluster of {}",
            Path::new(&kubeconfig).display()
        );
        return suite(args);
    }
    if !is_root() {
        bail!(
            "a cluster of this machine's own needs root; KUBECONFIG names another, on which the same tests run without"
        );
    }
    let id = Id {
        id: match args.conformance {
            true => "conformance".to_owned(),
            false => "test".to_owned(),
        },
    };
    let place = command::place(&id)?;
    let options = Options {
        nodes: 2,
        proxy: args.proxy.unwrap_or(Proxy::Iptables),
        dual_stack: args.dual_stack,
        network_policy: args.nightly,
    };
    let mut clock = Clock::start();
    command::build_for_tests(args.nightly)?;
    let more = match args.nightly || args.conformance {
        true => command::build_conformance()?,
        false => Vec::new(),
    };
    clock.tell("Kubernetes is compiled");
    setup::run(&setup::Args::default())?;
    let earlier = match args.nightly {
        true => Some(earlier::make(&args.earlier)?),
        false => None,
    };
    build::for_tests()?;
    let programs: &[&str] = match args.conformance {
        true => &["mesh"],
        false => &["suite", "machines", "mesh"],
    };
    let tests = build::test_programs(&["tests-cluster"], programs)?;
    clock.tell("programs and tests are compiled");
    let mut images = images::make(if args.static_images {
        Made::Static
    } else {
        Made::AsBuilt
    })?;
    images.push(images::application()?);
    images.extend(earlier.iter().flat_map(|earlier| earlier.images.clone()));
    images.extend(more);
    clock.tell("images are made");
    let up = command::put_up(&place, &options)?;
    println!(
        "a cluster of {} nodes stands after {:.0} s",
        options.nodes,
        up.took.as_secs_f64()
    );
    let tested = load(&up.standing, &images).and_then(|()| {
        clock.tell("a cluster stands and has the images");
        own(args, &place, &tests, earlier.as_ref())
    });
    clock.tell("the tests have run");
    if tested.is_err() {
        tell(&up.standing);
        keep_logs(&place)?;
    }
    command::down(&place)?;
    let left = cluster::remains(&place)?;
    if !left.is_empty() {
        bail!("of the cluster is left: {}", left.join(", "));
    }
    tested.map(drop)
}

/// Runs the tests that print figures on a cluster of their own, those whose name contains one of `filters` or all, and returns
/// what they have printed. `subscribers` are simulated agents.
///
/// # Errors
/// As [`run`].
pub(crate) fn figures(made: Made, filters: &[String], subscribers: &Path) -> Result<Vec<String>> {
    let id = Id {
        id: "bench".to_owned(),
    };
    let place = command::place(&id)?;
    let options = Options {
        nodes: 2,
        proxy: Proxy::Iptables,
        dual_stack: false,
        network_policy: false,
    };
    command::build_for_tests(false)?;
    setup::run(&setup::Args::default())?;
    build::for_tests()?;
    let tests = build::test_programs(&["tests-cluster"], &["mesh"])?;
    let images = images::make(made)?;
    let up = command::put_up(&place, &options)?;
    let args = Args {
        filters: match filters {
            [] => ["figures::", "live::", SCALE].map(str::to_owned).to_vec(),
            some => some.to_vec(),
        },
        subscribers: Some(subscribers.to_owned()),
        rest: ["--include-ignored", "--nocapture", "--test-threads=1"]
            .map(str::to_owned)
            .to_vec(),
        ..Args::default()
    };
    let measured = load(&up.standing, &images).and_then(|()| own(&args, &place, &tests, None));
    command::down(&place)?;
    measured.map(|totals| totals.figures)
}

/// Says how long each part took.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn tell(&mut self, what: &str) {
        let took = self.0.elapsed().as_secs();
        println!("{} {what} ({took} s)", shell::bold("cluster:"));
        self.0 = Instant::now();
    }
}

/// A figure whose cluster has ten thousand pods; no test otherwise.
const SCALE: &str = "scale::";

fn load(standing: &cluster::Standing, images: &[PathBuf]) -> Result<()> {
    images.iter().try_for_each(|image| standing.load(image))
}

/// All tests, on a cluster of this machine. Those that failed run once more: nodes share two processors with whatever else
/// runs. One that passes then is named as unsteady.
fn own(args: &Args, place: &Place, tests: &[PathBuf], earlier: Option<&Earlier>) -> Result<Totals> {
    let words: Vec<String> = args.filters.iter().chain(&args.rest).cloned().collect();
    let mut first = Totals::default();
    let success = once(args, place, tests, earlier, &words, &mut first)?;
    let failed = first.failures.clone();
    if success || failed.is_empty() || failed.len() > MOST_UNSTEADY {
        judge(&first, success)?;
        return Ok(first);
    }
    first.print_said();
    println!("\nonce more, those that failed:");
    let mut words = failed.clone();
    words.push("--exact".to_owned());
    if !args.nightly {
        words.push("--include-ignored".to_owned());
    }
    let mut second = Totals::default();
    let success = once(args, place, tests, earlier, &words, &mut second)?;
    judge(
        &second,
        success && second.passed == u64::try_from(failed.len())?,
    )?;
    for name in &failed {
        println!(
            "  {} {name} (failed once, passed when repeated)",
            shell::bold("unsteady:")
        );
    }
    first.passed += second.passed;
    first.failed = 0;
    Ok(first)
}

fn once(
    args: &Args,
    place: &Place,
    tests: &[PathBuf],
    earlier: Option<&Earlier>,
    words: &[String],
    totals: &mut Totals,
) -> Result<bool> {
    let mut success = true;
    for program in tests {
        let mut command = timed::command(program)?;
        command
            // As cargo starts them.
            .current_dir(shell::root()?.join("tests/cluster"))
            .env("KUBECONFIG", place.kubeconfig())
            .env("KEELSON_CLUSTER_BASE", command::base()?)
            .env("KEELSON_CLUSTER", place.id())
            .env("PATH", path()?)
            .env("RUST_BACKTRACE", "0")
            .args(words);
        if args.conformance && !words.iter().any(|word| word == "--exact") {
            command.args(["--ignored", "conformance::"]);
        } else if args.nightly {
            command.args(["--include-ignored", "--skip", SCALE]);
        }
        if let Some(subscribers) = &args.subscribers {
            command.env("KEELSON_SUBSCRIBERS", subscribers);
        }
        if let Some(earlier) = earlier {
            command.env("KEELSON_EARLIER_CHART", &earlier.chart);
        }
        success &= follow(command, totals)?;
    }
    Ok(success)
}

/// What runs anywhere, on the cluster of KUBECONFIG. Whatever is not there before is not there afterwards.
fn suite(args: &Args) -> Result<()> {
    let before = objects()?;
    let mut totals = Totals::default();
    let mut success = true;
    command::fetch_kinds()?;
    build::for_tests()?;
    for (program, filters) in [("suite", &[][..]), ("mesh", &ANYWHERE)] {
        let tests = build::test_programs(&["tests-cluster"], &[program])?;
        for test in &tests {
            let mut command = timed::command(test)?;
            command
                .current_dir(shell::root()?.join("tests/cluster"))
                .env("PATH", path()?)
                .env("KEELSON_CRDS", command::base()?.join("crds"))
                // What a command on the cluster said is in the message; where the test stood is not.
                .env("RUST_BACKTRACE", "0")
                .args(match args.filters.is_empty() {
                    true => filters.iter().map(|name| (*name).to_owned()).collect(),
                    false => args.filters.clone(),
                })
                .args(&args.rest);
            if args.nightly {
                command.arg("--include-ignored");
            }
            if args.conformance || args.static_images {
                bail!("KUBECONFIG names a cluster, of which this is not asked");
            }
            success &= follow(command, &mut totals)?;
        }
    }
    let after = objects()?;
    let left: Vec<&String> = after.difference(&before).collect();
    println!(
        "{} objects before, {} afterwards",
        before.len(),
        after.len()
    );
    judge(&totals, success)?;
    if !left.is_empty() {
        bail!("of the tests is left: {left:?}");
    }
    Ok(())
}

/// Tests of an installation that ask nothing of a cluster but its API server and two nodes.
const ANYWHERE: [&str; 4] = ["anywhere::", "waypoint::", "traffic::", "fixtures::"];

/// All objects of the cluster, but for what Kubernetes itself makes and forgets, and for pods, whose names come from what has them.
fn objects() -> Result<BTreeSet<String>> {
    let mut kinds = Command::new("kubectl");
    kinds.args(["api-resources", "--verbs=list,delete", "-o", "name"]);
    let kinds = shell::read(kinds.env("PATH", path()?))?;
    let passing = [
        "events",
        "pods",
        "leases",
        "endpoints",
        "endpointslices",
        "controllerrevisions",
    ];
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !passing.contains(&kind.split('.').next().unwrap_or_default()))
        .collect();
    let mut list = Command::new("kubectl");
    list.args(["get", &kinds.join(","), "-A", "--ignore-not-found", "-o"])
        .arg(r#"jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}"#);
    let all = shell::read(list.env("PATH", path()?))?;
    Ok(all.lines().map(str::to_owned).collect())
}

/// kubectl as it was built, before the machine's own.
fn path() -> Result<OsString> {
    let mut path = command::base()?.join("bin").into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

fn judge(totals: &Totals, success: bool) -> Result<()> {
    println!(
        "\n{} {} passed, {} failed, {} left for --nightly",
        shell::bold("on the cluster:"),
        totals.passed,
        totals.failed,
        totals.ignored
    );
    totals.print_slowest();
    totals.print_said();
    for name in &totals.failures {
        println!("  {} {name}", shell::red("failed:"));
    }
    if !success {
        bail!("tests on the cluster failed");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// What the cluster looked like when a test had failed.
fn tell(standing: &cluster::Standing) {
    for words in [
        &["get", "nodes,pods", "-A", "-o", "wide"][..],
        &["get", "events", "-A", "--field-selector=type=Warning"],
    ] {
        match shell::read(&mut standing.kubectl(words)) {
            Ok(text) => shell::detail(&text),
            Err(error) => shell::detail(&format!("{error:#}")),
        }
    }
}

/// Keeps the logs of the machines' programs, which go with the cluster otherwise.
fn keep_logs(place: &Place) -> Result<()> {
    let to = command::base()?.join("logs").join(place.id());
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    for (machine, log) in place.logs()? {
        let directory = to.join(machine);
        fs::create_dir_all(&directory)?;
        let name = log.file_name().context("a log has a name")?;
        fs::copy(&log, directory.join(name))?;
    }
    println!("logs of the machines: {}", to.display());
    Ok(())
}
