//! The suite of a real cluster: of one that is put up for it, or of the one that `KUBECONFIG` names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cluster::{Options, Place, Proxy};

use super::{Args, Totals, watch};
use crate::cluster_command::{self as command, Id};
use crate::images;
use crate::shell::{self, is_root};

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
        return suite(args, None);
    }
    if !is_root() {
        bail!(
            "a cluster of this machine's own needs root; KUBECONFIG names another, on which the same tests run without"
        );
    }
    let id = Id {
        id: "test".to_owned(),
    };
    let place = command::place(&id)?;
    let options = Options {
        nodes: 2,
        proxy: Proxy::Iptables,
        dual_stack: false,
        network_policy: true,
    };
    command::build_helm()?;
    let images = images::make(false)?;
    let up = command::put_up(&place, &options)?;
    println!(
        "a cluster of {} nodes stands after {:.0} s",
        options.nodes,
        up.took.as_secs_f64()
    );
    let tested = load(&up.standing, &images).and_then(|()| suite(args, Some(&place)));
    if tested.is_err() {
        tell(&up.standing);
        keep_logs(&place)?;
    }
    command::down(&place)?;
    let left = cluster::remains(&place)?;
    if !left.is_empty() {
        bail!("of the cluster is left: {}", left.join(", "));
    }
    tested
}

fn load(standing: &cluster::Standing, images: &[PathBuf]) -> Result<()> {
    images.iter().try_for_each(|image| standing.load(image))
}

fn suite(args: &Args, own: Option<&Place>) -> Result<()> {
    // What a person has at hand.
    shell::run(&mut shell::cargo(&["build", "--package", "keelson"])?)?;
    let mut command = shell::cargo(&["test", "--no-fail-fast", "--package", "tests-cluster"])?;
    command.args(["--test", "suite"]);
    // kubectl as it was built, before the machine's own.
    let mut path = command::base()?.join("bin").into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    command.env("PATH", path);
    if let Some(place) = own {
        command
            .args(["--test", "machines", "--test", "mesh"])
            .env("KUBECONFIG", place.kubeconfig())
            .env("KEELSON_CLUSTER_BASE", command::base()?)
            .env("KEELSON_CLUSTER", place.id());
    }
    // What a command on the cluster said is in the message; where the test stood is not.
    command.env("RUST_BACKTRACE", "0");
    command.arg("--").args(&args.filters).args(&args.rest);
    let (totals, success) = watch(command)?;
    judge(&totals, success)
}

fn judge(totals: &Totals, success: bool) -> Result<()> {
    println!(
        "\n{} {} passed, {} failed",
        shell::bold("on the cluster:"),
        totals.passed,
        totals.failed
    );
    totals.print_slowest();
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
