//! Starts the process that owns a standing lab, waits until it stands, and says how to use it.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::Standing;

use crate::build;
use crate::lab_command::{Id, supervise};
use crate::setup;
use crate::shell;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    lab: Id,
    /// Start without the mesh label on the namespace `shop`.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    build: build::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let id = &args.lab.id;
    setup::run(&setup::Args::default())?;
    build::run(&args.build)?;
    lab::remove_all_stale()?;
    if lab::all().iter().any(|(known, _)| known == id) {
        bail!("the lab {id} stands already; `cargo xtask lab down` removes it");
    }
    let log = env::temp_dir().join(format!("keelson-lab-{id}.log"));
    let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut owner = Command::new(shell::this_program()?)
        .args(["lab", "supervise", "--id", id])
        .env("KEELSON_BIN_DIR", build::programs(args.build.release)?)
        .env("CARGO_MANIFEST_DIR", shell::root()?.join("xtask"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C in this terminal is not meant for a lab that shall stand.
        .process_group(0)
        .spawn()
        .context("starting the lab's owner")?;
    println!("starting nodes, pods, controller and agents ...");
    let stands = lab::wait_until("the lab stands", PATIENCE, || {
        if let Some(status) = owner.try_wait()? {
            bail!("its owner ended: {status}");
        }
        Ok(supervise::ready_file(id)?.exists())
    });
    if let Err(error) = stands {
        let said = fs::read_to_string(&log).unwrap_or_default();
        shell::detail(&said);
        if owner.try_wait()?.is_none() {
            super::down(id)?;
        }
        return Err(error);
    }
    if !args.plain {
        let standing = Standing::open(id)?;
        standing.label_namespace("shop", "keelson.io/mesh", Some("enabled"))?;
        lab::wait_until("the pods of shop are captured", PATIENCE, || {
            Ok(standing
                .nodes
                .iter()
                .all(|node| are_captured(&standing, &node.name)))
        })?;
    }
    print_guide(id, args.plain)
}

/// Whether the agent of a node says it of all its pods of the namespace `shop`.
fn are_captured(standing: &Standing, node: &str) -> bool {
    let known = standing.agent_pods(node).unwrap_or_default();
    let is_captured = |name: &str| {
        known.iter().any(|pod| {
            pod["namespace"] == "shop" && pod["name"] == name && pod["state"] == "captured"
        })
    };
    let mut own = standing.pods.iter().filter(|pod| pod.node == node);
    own.all(|pod| pod.namespace != "shop" || is_captured(&pod.name))
}

fn print_guide(id: &str, plain: bool) -> Result<()> {
    let standing = Standing::open(id)?;
    let dir = standing.run_dir()?;
    let dir = dir.display();
    let pod = standing.pods.iter().find(|pod| pod.key() == "shop/client");
    let pod = pod.context("the lab's manifests hold the pod shop/client")?;
    let (label, other) = if plain {
        ("is not in the mesh", "keelson.io/mesh=enabled   # joins")
    } else {
        ("is in the mesh", "keelson.io/mesh-          # leaves")
    };
    println!(
        "
{} The namespace shop {label}.

call a service         cargo xtask lab exec shop/client -- curl -s http://server
enter a pod            cargo xtask lab exec shop/client -- bash
  only its network     nsenter --net=/run/netns/{netns}
a pod outside          cargo xtask lab exec outside/visitor -- curl -s http://server.shop
who is where           cargo xtask lab status
mesh label             cargo xtask lab label shop {other}
policies               cargo xtask lab apply deploy/lab/policies/strict.yaml
manifests, live        {dir}/manifests
logs                   tail -f {dir}/logs/*agent*.log {dir}/logs/*controller*.log
the agent's pages      cargo xtask lab exec n1 -- curl -s 127.0.0.1:15000/help
                       (/config_dump /certs /connections /refusals /stats/prometheus)
the controller's       cargo xtask lab exec n1 -- curl -s 127.0.0.1:15014/debug/config_dump
the wire               cargo xtask lab exec n1 -- tcpdump -ni {link}   # if tcpdump is installed
an agent built anew    cargo xtask lab reload n1
take it down           cargo xtask lab down
",
        shell::bold(&format!("The lab {id} stands.")),
        netns = pod.netns,
        link = lab::UPLINK,
    );
    Ok(())
}

/// Nodes, controller and two agents need a few seconds; a loaded machine, more.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
