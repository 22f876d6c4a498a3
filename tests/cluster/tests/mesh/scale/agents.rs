//! Agents of nodes that are objects only: their subscriptions, in one process.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use bench::scale::outcome::{Pushed, Report};
use lab::Netns;
use tempfile::TempDir;
use tests_cluster::get;

use super::objects::{Known, PODS, SERVICES};
use crate::installed::{AGENT, CONTROLLER, NAMESPACE};

/// They follow the controller until [`Agents::end`].
pub(super) struct Agents {
    child: Child,
    output: BufReader<ChildStdout>,
    _home: TempDir,
}

impl Agents {
    /// Starts them in a node's network, with the tokens of the pods that agents have on these nodes, and waits until all
    /// have everything and have reported what they hold.
    pub(super) fn start(
        network: &Netns,
        controller: &str,
        tokens: &[(String, String)],
        captured: &[Known],
    ) -> Result<(Self, Report)> {
        let home = tempfile::tempdir()?;
        let file = |name: &str, text: &str| -> Result<String> {
            let path = home.path().join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let lines = tokens.iter().map(|(token, node)| format!("{token} {node}"));
        // The first line is an agent's of another measurement.
        let lines: Vec<String> = std::iter::once(String::new()).chain(lines).collect();
        let pods = captured.iter().map(|pod| {
            let Known {
                node,
                namespace,
                name,
                uid,
                ip,
            } = pod;
            format!("{node} {namespace} {name} {uid} {ip}\n")
        });
        let root = get(&["-n", NAMESPACE, "configmap", "keelson-ca-root"])?;
        let root = root["data"]["root-cert.pem"].as_str().context("a root")?;
        let mut command = Command::new(program()?);
        for (flag, value) in [
            ("--controller", format!("https://{controller}:15012")),
            ("--server-name", format!("{CONTROLLER}.{NAMESPACE}.svc")),
            ("--controller-ca", file("root.pem", root)?),
            ("--tokens", file("tokens", &lines.join("\n"))?),
            ("--captured", file("captured", &pods.collect::<String>())?),
            ("--subscribers", tokens.len().to_string()),
            ("--changes", "0".to_owned()),
            ("--addresses", (PODS + SERVICES).to_string()),
        ] {
            command.arg(flag).arg(value);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = network.run(|| command.spawn())??;
        let output = BufReader::new(child.stdout.take().context("it is piped")?);
        let mut agents = Self {
            child,
            output,
            _home: home,
        };
        let report = serde_json::from_str(&agents.line()?)?;
        Ok((agents, report))
    }

    /// Ends them, and says what was pushed to them since they had everything.
    pub(super) fn end(mut self) -> Result<Pushed> {
        drop(self.child.stdin.take());
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the simulated agents have ended");
        Ok(line)
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// As `cargo xtask bench cluster` has built it; else the one beside the test's own.
fn program() -> Result<std::path::PathBuf> {
    match env::var_os("KEELSON_SUBSCRIBERS") {
        Some(named) => Ok(named.into()),
        None => lab::find_program("keelson-bench-subscribers"),
    }
}

/// The uid of the pod of an agent on a node.
pub(super) fn agent_pod(node: &str) -> Result<String> {
    let label = format!("app.kubernetes.io/name={AGENT}");
    let there = format!("spec.nodeName={node}");
    let pods = get(&[
        "-n",
        NAMESPACE,
        "pods",
        "-l",
        &label,
        "--field-selector",
        &there,
    ])?;
    let uid = pods["items"][0]["metadata"]["uid"].as_str();
    Ok(uid.context("an agent")?.to_owned())
}
