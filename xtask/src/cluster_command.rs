//! A real Kubernetes for a person or for tests: put up, used, taken down.

mod crds;
mod debian;
mod images;
mod programs;
mod up;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command as Program;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use cluster::{Place, Standing};

pub(crate) use self::up::put_up;
use crate::shell::{self, is_root};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build what is missing, start a control plane and nodes, and leave them running.
    ///
    /// The first time Kubernetes itself is compiled, which takes some minutes and needs Go; the programs are kept in
    /// `target/cluster`.
    Up(up::Args),
    /// Only build what is missing, with Helm, kube-router and the kinds that tests apply.
    Build(Build),
    /// Show machines, nodes and pods.
    Status(Id),
    /// Run a program on a machine: node1, node2, ..., or control.
    ///
    /// For example: cargo xtask cluster exec node1 -- crictl ps, or without a program for a shell.
    Exec(Exec),
    /// Run kubectl as the cluster's administrator.
    ///
    /// For example: cargo xtask cluster kubectl get pods -A.
    Kubectl(Kubectl),
    /// Give images to every node: archives as `docker save` and `cargo xtask images` write them.
    Load(Load),
    /// Print the path of the configuration that clients need.
    ///
    /// For example: export KUBECONFIG=$(cargo xtask cluster kubeconfig).
    Kubeconfig(Id),
    /// End every process of a machine at once and start it again: /etc, /opt and /var stay.
    Reboot(Machine),
    /// Remove it, with everything that it made.
    Down(Id),
    /// Own a cluster; `up` starts this in the background.
    #[command(hide = true)]
    Own(Own),
    /// Be the first process of a machine.
    #[command(hide = true)]
    Machine { spec: PathBuf },
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Id {
    /// Which cluster, if several stand.
    #[arg(long, default_value = STANDING)]
    pub(crate) id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Build {
    /// Only what `cargo xtask test --cluster` needs without `--nightly`: neither Helm nor kube-router.
    #[arg(long)]
    for_tests: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    cluster: Id,
    /// node1, node2, ..., or control.
    machine: String,
    /// The program and its arguments; a shell if there is none.
    #[arg(last = true)]
    program: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Kubectl {
    #[command(flatten)]
    cluster: Id,
    /// kubectl's arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    #[command(flatten)]
    cluster: Id,
    /// Archives.
    #[arg(required = true, value_name = "IMAGE.tar")]
    archives: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Machine {
    #[command(flatten)]
    cluster: Id,
    /// node1, node2, ..., or control.
    machine: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Own {
    #[command(flatten)]
    cluster: Id,
    #[command(flatten)]
    options: cluster::Options,
}

pub(crate) fn run(command: Command) -> Result<()> {
    if let Command::Machine { spec } = command {
        return cluster::run_machine(&spec);
    }
    if !is_root() {
        bail!("the cluster makes namespaces, mounts and cgroups: run this as root");
    }
    match command {
        Command::Up(args) => up::run(&args),
        Command::Build(args) => build_for_tests(!args.for_tests),
        Command::Status(args) => status(&place(&args)?),
        Command::Exec(args) => exec(&args),
        Command::Kubectl(args) => kubectl(&args),
        Command::Load(args) => load(&args),
        Command::Kubeconfig(args) => {
            let place = place(&args)?;
            Standing::open(&place)?;
            println!("{}", place.kubeconfig().display());
            Ok(())
        }
        Command::Reboot(args) => reboot(&args),
        Command::Down(args) => down(&place(&args)?),
        Command::Own(args) => cluster::own(
            &place(&args.cluster)?,
            &args.options,
            &["cluster", "machine"],
        ),
        Command::Machine { .. } => Ok(()),
    }
}

/// Where clusters of this checkout have their files.
pub(crate) fn base() -> Result<PathBuf> {
    Ok(shell::root()?.join("target/cluster"))
}

pub(crate) fn place(id: &Id) -> Result<Place> {
    Place::new(&base()?, &id.id)
}

/// Builds what tests on a cluster need and fetches the definitions of kinds that they apply, and, where `nightly`, builds
/// what only some of them need.
///
/// # Errors
/// There is no Go here, or something cannot be built.
pub(crate) fn build_for_tests(nightly: bool) -> Result<()> {
    let more = if nightly { &programs::OTHERS[..] } else { &[] };
    programs::build(&programs::KUBERNETES.iter().chain(more).collect::<Vec<_>>())?;
    if nightly {
        images::make_of_istiod()?;
    }
    crds::fetch()
}

/// Fetches the definitions of kinds that tests apply.
///
/// # Errors
/// There is no Go here, or a module cannot be fetched.
pub(crate) fn fetch_kinds() -> Result<()> {
    crds::fetch()
}

/// Builds the Gateway API's own tests, and makes the images that these name.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_conformance() -> Result<Vec<PathBuf>> {
    programs::build(&[&programs::CONFORMANCE, &programs::ECHO])?;
    images::make_of_conformance()
}

/// Takes a cluster down, whether it stands or not.
pub(crate) fn down(place: &Place) -> Result<()> {
    let stood = cluster::stands(place);
    cluster::remove(place)?;
    if stood {
        println!("the cluster {} is gone", place.id());
    } else {
        println!("no cluster {} stands here", place.id());
    }
    Ok(())
}

fn status(place: &Place) -> Result<()> {
    let standing = Standing::open(place)?;
    let options = standing.options();
    println!(
        "cluster {} in {}, kube-proxy with {}{}",
        shell::bold(place.id()),
        place.state().display(),
        options.proxy,
        if options.dual_stack {
            ", dual stack"
        } else {
            ""
        }
    );
    for machine in standing.machines() {
        match standing.pid(&machine) {
            Ok(pid) => println!("  {machine:<8} process {pid}"),
            Err(_) => println!("  {machine:<8} {}", shell::red("does not run")),
        }
    }
    for words in [
        &["get", "nodes", "-o", "wide"][..],
        &["get", "pods", "-A", "-o", "wide"],
    ] {
        println!("\n{}", shell::read(&mut standing.kubectl(words))?);
    }
    Ok(())
}

/// Becomes the program, so that a terminal, its signals and the exit code are the program's own.
fn exec(args: &Exec) -> Result<()> {
    let standing = Standing::open(&place(&args.cluster)?)?;
    let mut words = args.program.clone();
    if words.is_empty() {
        words.push("/bin/bash".to_owned());
    }
    let mut command = standing.command(&args.machine, &words)?;
    standing.join(&args.machine)?;
    Err(command.exec()).with_context(|| format!("entering {}", args.machine))
}

fn kubectl(args: &Kubectl) -> Result<()> {
    let standing = Standing::open(&place(&args.cluster)?)?;
    let words: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    Err(standing.kubectl(&words).exec()).context("starting kubectl")
}

fn load(args: &Load) -> Result<()> {
    let standing = Standing::open(&place(&args.cluster)?)?;
    for archive in &args.archives {
        standing.load(archive)?;
        println!("every node has {}", archive.display());
    }
    Ok(())
}

fn reboot(args: &Machine) -> Result<()> {
    let standing = Standing::open(&place(&args.cluster)?)?;
    standing.reboot(&args.machine)?;
    println!("{} has started again", args.machine);
    Ok(())
}

/// A command that owns the cluster, to be started in the background.
fn owner(place: &Place, options: &cluster::Options) -> Result<Program> {
    let mut owner = Program::new(shell::this_program()?);
    owner
        .args(["cluster", "own", "--id", place.id()])
        .arg(format!("--nodes={}", options.nodes))
        .arg(format!("--proxy={}", options.proxy));
    if options.dual_stack {
        owner.arg("--dual-stack");
    }
    if options.network_policy {
        owner.arg("--network-policy");
    }
    Ok(owner)
}

/// The id of a cluster for a person.
const STANDING: &str = "up";
