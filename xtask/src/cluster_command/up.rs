//! Builds what a cluster needs, starts the process that owns it, waits until pods can run there, and says how to use it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cluster::{Place, Standing};

use crate::cluster_command::{self as command, Id, debian, images, programs};
use crate::shell;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: Id,
    #[command(flatten)]
    options: cluster::Options,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let place = command::place(&args.cluster)?;
    if cluster::stands(&place) {
        bail!(
            "the cluster {} stands already; `cargo xtask cluster down` removes it",
            place.id()
        );
    }
    let up = put_up(&place, &args.options)?;
    print_guide(&place, &up);
    Ok(())
}

/// A cluster that has just been put up.
#[derive(Debug)]
pub(crate) struct Up {
    /// How to use it.
    pub(crate) standing: Standing,
    /// How long its start took, without what was built before.
    pub(crate) took: Duration,
}

/// Builds what is missing and puts up a cluster; what an earlier one has left is removed.
///
/// # Errors
/// Something cannot be built, or the cluster does not start; then nothing is left of it but its logs in the message.
pub(crate) fn put_up(place: &Place, options: &cluster::Options) -> Result<Up> {
    let mut wanted: Vec<&programs::Module> = programs::KUBERNETES.iter().collect();
    if options.network_policy {
        wanted.push(&programs::KUBE_ROUTER);
    }
    programs::build(&wanted)?;
    debian::fetch()?;
    images::make()?;
    cluster::remove(place)?;
    println!("starting a control plane and {} nodes ...", options.nodes);
    let start = Instant::now();
    match begin(place, options) {
        Ok(standing) => Ok(Up {
            standing,
            took: start.elapsed(),
        }),
        Err(error) => {
            cluster::remove(place)?;
            Err(error.context("the cluster does not start"))
        }
    }
}

fn begin(place: &Place, options: &cluster::Options) -> Result<Standing> {
    let state = place.state();
    fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
    let log = state.join("owner.log");
    let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut owner = command::owner(place, options)?
        .env("CARGO_MANIFEST_DIR", shell::root()?.join("xtask"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C in this terminal is not meant for a cluster that shall stand.
        .process_group(0)
        .spawn()
        .context("starting the cluster's owner")?;
    let deadline = Instant::now() + PATIENCE;
    while !state.join("started").exists() {
        if let Some(status) = owner.try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("its owner ended, {status}: {}", said.trim());
        }
        if Instant::now() > deadline {
            bail!("its machines are not ready within {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let standing = Standing::open(place)?;
    let replicas = options.nodes.min(2).to_string();
    standing.apply_text(&DNS.replace("REPLICAS", &replicas))?;
    for words in [
        &[
            "wait",
            "--for=condition=Ready",
            "node",
            "--all",
            "--timeout=180s",
        ][..],
        &[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=180s",
        ],
    ] {
        shell::read(&mut standing.kubectl(words))?;
    }
    Ok(standing)
}

fn print_guide(place: &Place, up: &Up) {
    let state = place.state();
    println!(
        "
{}

kubectl                cargo xtask cluster kubectl get pods -A
any other client       export KUBECONFIG=$(cargo xtask cluster kubeconfig)
who is where           cargo xtask cluster status
a node                 cargo xtask cluster exec node1 -- ctr -n k8s.io containers ls
images for the nodes   cargo xtask cluster load IMAGE.tar
logs of the nodes      {}/node1/var/log
a node goes down       cargo xtask cluster reboot node1
take it down           cargo xtask cluster down
",
        shell::bold(&format!(
            "The cluster {} stands, {} nodes, after {:.0} s.",
            place.id(),
            up.standing.options().nodes,
            up.took.as_secs_f64()
        )),
        state.display(),
    );
}

const DNS: &str = include_str!("coredns.yaml");
/// How long machines may take to start, on one that does other things too.
const PATIENCE: Duration = Duration::from_secs(360);
