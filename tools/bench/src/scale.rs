//! How the control plane carries large clusters: synthetic manifests, the real controller, a hundred
//! subscribers in one process, and a real agent that holds it all.
//!
//! Everything stands on one node of a lab, so that its loopback carries nothing else and its counters
//! are the bytes on the wire.

pub mod manifests;
pub mod outcome;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{AGENT_ADMIN, AgentOptions, CONTROLLER_ADMIN, Lab, Node, Process};

use crate::usage;
use manifests::Cluster;
use outcome::{Outcome, Report};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// The clusters, one after another.
    pub clusters: Vec<Cluster>,
    /// How many agents' subscriptions.
    pub subscribers: usize,
    /// How many changes of a pod.
    pub changes: usize,
    /// How long the controller and a subscriber may take to come up.
    pub patience: Duration,
}

/// Measures every cluster, and tells `each` what came out as soon as it is known.
///
/// # Errors
/// A program could not be started, or was not ready in time.
pub fn run(
    options: &Options,
    mut each: impl FnMut(&Outcome) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let lab = Lab::builder(lab::unique_id()).nodes(1).build()?;
    let mut outcomes = Vec::new();
    for cluster in &options.clusters {
        let outcome = Stage::new(&lab, options, cluster)?
            .measure()
            .with_context(|| format!("a cluster of {} pods", cluster.pods))?;
        each(&outcome)?;
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// One cluster on the lab's node.
struct Stage<'a> {
    lab: &'a Lab,
    node: Node,
    options: &'a Options,
    cluster: &'a Cluster,
    directory: PathBuf,
}

impl<'a> Stage<'a> {
    fn new(lab: &'a Lab, options: &'a Options, cluster: &'a Cluster) -> Result<Self> {
        let directory = lab.run_dir().join(format!("scale-{}", cluster.pods));
        fs::create_dir_all(directory.join("manifests"))?;
        fs::create_dir_all(directory.join("state"))?;
        Ok(Self {
            lab,
            node: lab.node("n1")?,
            options,
            cluster,
            directory,
        })
    }

    fn measure(&self) -> Result<Outcome> {
        manifests::write(self.cluster, &self.directory.join("manifests"))?;
        fs::write(self.directory.join("tokens"), self.tokens())?;
        let start = Instant::now();
        let mut controller = self.start_controller()?;
        self.wait_ready(&mut controller, CONTROLLER_ADMIN.to_string().as_str())?;
        let ready_seconds = start.elapsed().as_secs_f64();
        std::thread::sleep(SETTLE);
        let controller_alone = usage::processes(&[controller.pid()]).rss;
        let (agent_rss, agent_seconds) = self.agent()?;
        let report = self.subscribers(&mut controller)?;
        let outcome = Outcome {
            pods: self.cluster.pods,
            services: self.cluster.services,
            policies: self.cluster.policies,
            subscribers: self.options.subscribers,
            ready_seconds,
            controller_alone,
            controller_rss: usage::processes(&[controller.pid()]).rss,
            controller_peak: usage::peak(controller.pid()),
            agent_rss,
            agent_seconds,
            report,
        };
        controller.kill()?;
        fs::remove_dir_all(&self.directory)?;
        Ok(outcome)
    }

    /// A token per subscriber's node, and one for the agent.
    fn tokens(&self) -> String {
        let mut lines = format!("{}\n", line(&manifests::node(0)));
        for number in 1..=self.options.subscribers {
            lines += &format!("{}\n", line(&manifests::node(number)));
        }
        lines
    }

    fn start_controller(&self) -> Result<Process> {
        let mut command = Command::new(lab::find_program("keelson-controller")?);
        let address = self.lab.controller_address()?.to_string();
        for (flag, value) in [
            ("--manifests", self.path("manifests")),
            ("--listen", address),
            ("--node-tokens", self.path("tokens")),
            ("--state-dir", self.path("state")),
            ("--root-cert-out", self.path("root.pem")),
            ("--server-name", self.node.v4().to_string()),
            ("--admin", CONTROLLER_ADMIN.to_string()),
        ] {
            command.arg(flag).arg(value);
        }
        self.node.spawn_in(
            "controller",
            &format!("controller-{}", self.cluster.pods),
            command,
        )
    }

    /// A real agent of a node without pods here: what the whole mesh's state costs it, and how long
    /// it takes until it is ready.
    fn agent(&self) -> Result<(u64, f64)> {
        let token = self.directory.join("agent-token");
        fs::write(&token, manifests::token(&manifests::node(0)))?;
        let controller = format!("https://{}", self.lab.controller_address()?);
        let args = [
            "--node".to_owned(),
            manifests::node(0),
            "--controller".to_owned(),
            controller,
            "--controller-ca".to_owned(),
            self.path("root.pem"),
            "--token-file".to_owned(),
            token.display().to_string(),
            "--state-dir".to_owned(),
            self.path("agent-state"),
        ];
        fs::create_dir_all(self.directory.join("agent-state"))?;
        let options = AgentOptions {
            args: args.to_vec(),
            ..AgentOptions::default()
        };
        let start = Instant::now();
        let mut agent = self.lab.spawn_agent("n1", &options)?;
        self.wait_ready(&mut agent, AGENT_ADMIN.to_string().as_str())?;
        let seconds = start.elapsed().as_secs_f64();
        std::thread::sleep(SETTLE);
        let rss = usage::processes(&[agent.pid()]).rss;
        agent.kill()?;
        Ok((rss, seconds))
    }

    fn subscribers(&self, controller: &mut Process) -> Result<Report> {
        let mut command = Command::new(lab::find_program("keelson-bench-subscribers")?);
        for (flag, value) in [
            (
                "--controller",
                format!("https://{}", self.lab.controller_address()?),
            ),
            ("--controller-ca", self.path("root.pem")),
            ("--tokens", self.path("tokens")),
            (
                "--change",
                self.path(&format!("manifests/{}", manifests::CHANGING)),
            ),
            ("--subscribers", self.options.subscribers.to_string()),
            ("--changes", self.options.changes.to_string()),
            ("--addresses", self.cluster.addresses().to_string()),
        ] {
            command.arg(flag).arg(value);
        }
        let name = format!("subscribers-{}", self.cluster.pods);
        let mut process = self.node.spawn_in("host", &name, command)?;
        let ended = process.wait(self.options.patience)?;
        if controller.exited()?.is_some() {
            bail!("the controller ended: {}", tail(controller));
        }
        match ended {
            Some(status) if status.success() => {
                let log = process.log();
                let line = log.lines().last().unwrap_or_default();
                serde_json::from_str(line)
                    .with_context(|| format!("the subscribers' report {line:?}"))
            }
            ended => bail!("the subscribers ended with {ended:?}: {}", tail(&process)),
        }
    }

    fn wait_ready(&self, process: &mut Process, admin: &str) -> Result<()> {
        let admin = admin.parse().context("an address")?;
        let what = format!("{} is ready", process.name());
        let ready = lab::wait_until(&what, self.options.patience, || {
            if let Some(status) = process.exited()? {
                bail!("it ended: {status}");
            }
            Ok(self.node.http_get(admin, "/healthz/ready")?.status == 200)
        });
        ready.with_context(|| tail(process))
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

fn line(node: &str) -> String {
    format!("{} {node}", manifests::token(node))
}

fn tail(process: &Process) -> String {
    let log = process.log();
    let lines: Vec<&str> = log.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Bytes that a namespace's loopback has carried.
pub fn loopback_bytes(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let first = line.and_then(|line| line.split_whitespace().next());
    first.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// How long a program rests before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_among_interfaces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            "Inter-|   Receive\n face |bytes\n  eth0: 7 1\n    lo: 12345 9 0 0\n",
        )
        .unwrap();
        assert_eq!(loopback_bytes(file.path()), 12345);
    }
}
