//! The lab for a person: put up, looked into, taken down.

mod reload;
mod supervise;
mod up;

use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command as Program;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use lab::Standing;
use serde_json::Value;

use crate::shell::{self, is_root};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build, start nodes, pods, controller and agents, and leave them running.
    Up(up::Args),
    /// Remove it, with everything that it made.
    Down(Id),
    /// Run a program in a pod (`shop/client`) or on a node (`n1`).
    ///
    /// For example: cargo xtask lab exec shop/client -- curl -s http://server
    Exec(Exec),
    /// Show nodes, pods and what the agents say of them.
    Status(Id),
    /// Set or remove a label of a namespace.
    ///
    /// For example: cargo xtask lab label shop keelson.io/mesh=enabled, or keelson.io/mesh- to
    /// remove it.
    Label(Label),
    /// Copy manifests into the live folder, as `kubectl apply` would apply them.
    Apply(Apply),
    /// Let a newly built agent succeed the one of a node, without a connection lost.
    ///
    /// For example: cargo xtask lab reload n1, after a change of the agent.
    Reload(reload::Args),
    /// Own a standing lab; `up` starts this in the background.
    #[command(hide = true)]
    Supervise(Id),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Id {
    /// Which lab, if several stand.
    #[arg(long, default_value = STANDING)]
    id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    lab: Id,
    /// `namespace/pod`, or a node.
    place: String,
    /// The program and its arguments; a shell if there is none.
    #[arg(last = true)]
    program: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Label {
    #[command(flatten)]
    lab: Id,
    /// The namespace.
    namespace: String,
    /// `key=value`, or `key-` to remove it.
    label: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    lab: Id,
    /// Manifest files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(command: Command) -> Result<()> {
    if !is_root() {
        bail!("the lab makes network namespaces and cgroups: run this as root");
    }
    match command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down(&args.id),
        Command::Exec(args) => exec(&args),
        Command::Status(args) => status(&args.id),
        Command::Label(args) => label(&args),
        Command::Apply(args) => apply(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Supervise(args) => supervise::run(&args.id),
    }
}

fn down(id: &str) -> Result<()> {
    let labs = lab::all();
    let Some((_, owner)) = labs.iter().find(|(known, _)| known == id) else {
        println!("no lab {id} stands here");
        // Remains of one that was interrupted halfway would be found by the same names.
        return lab::remove(id);
    };
    if let Some(owner) = owner {
        let owner = nix::unistd::Pid::from_raw(*owner);
        nix::sys::signal::kill(owner, nix::sys::signal::Signal::SIGTERM)
            .with_context(|| format!("ending the lab's owner, process {owner}"))?;
        lab::wait_until("the lab's owner ends", up::PATIENCE, || {
            Ok(!lab::all()
                .iter()
                .any(|(known, owner)| known == id && owner.is_some()))
        })?;
    }
    lab::remove(id)?;
    println!("the lab {id} is gone");
    Ok(())
}

/// Becomes the program, so that a terminal, its signals and the exit code are the program's own.
fn exec(args: &Exec) -> Result<()> {
    let place = Standing::open(&args.lab.id)?.placement(&args.place)?;
    let (name, rest) = match args.program.split_first() {
        Some((name, rest)) => (name.clone(), rest),
        None => (
            env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned()),
            &[][..],
        ),
    };
    let mut program = Program::new(&name);
    program.args(rest);
    // keelson-lab-app and the agent are found without their path.
    let path = env::var("PATH").unwrap_or_default();
    program.env(
        "PATH",
        format!("{path}:{}", lab::programs_directory()?.display()),
    );
    place.apply(&mut program);
    Err(program.exec()).with_context(|| format!("starting `{name}` in {}", args.place))
}

fn status(id: &str) -> Result<()> {
    let standing = Standing::open(id)?;
    println!(
        "lab {} in {}",
        shell::bold(&standing.id),
        standing.run_dir()?.display()
    );
    for node in &standing.nodes {
        let ips: Vec<String> = node.ips.iter().map(ToString::to_string).collect();
        let agent = standing.agent_pods(&node.name);
        let state = if agent.is_ok() {
            "agent running"
        } else {
            "no agent"
        };
        println!(
            "\nnode {}  {}  {state}",
            shell::bold(&node.name),
            ips.join(" ")
        );
        for pod in standing.pods.iter().filter(|pod| pod.node == node.name) {
            let known = agent.as_ref().ok().and_then(|known| {
                known.iter().find(|known| {
                    text(known, "namespace") == pod.namespace && text(known, "name") == pod.name
                })
            });
            let capture = match known {
                Some(known) => format!("{} {}", text(known, "state"), text(known, "reason")),
                None => "unknown to the agent".to_owned(),
            };
            let ip = pod.ips.first().map(ToString::to_string).unwrap_or_default();
            let started = if pod.started {
                ""
            } else {
                " (waits for the agent)"
            };
            println!(
                "  {:<22} {ip:<16} sa {:<10} {}{started}",
                pod.key(),
                pod.service_account,
                capture.trim()
            );
        }
    }
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn label(args: &Label) -> Result<()> {
    let standing = Standing::open(&args.lab.id)?;
    match (args.label.split_once('='), args.label.strip_suffix('-')) {
        (Some((key, value)), _) => standing.label_namespace(&args.namespace, key, Some(value)),
        (None, Some(key)) => standing.label_namespace(&args.namespace, key, None),
        (None, None) => bail!("{:?} is neither key=value nor key-", args.label),
    }
}

fn apply(args: &Apply) -> Result<()> {
    let standing = Standing::open(&args.lab.id)?;
    for file in &args.files {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let name = file
            .file_name()
            .with_context(|| format!("{} names no file", file.display()))?;
        standing.apply(&name.to_string_lossy(), &text)?;
    }
    Ok(())
}

const STANDING: &str = "up";
