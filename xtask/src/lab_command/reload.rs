//! A new agent for a node of a standing lab: the command asks, the lab's owner answers, by files in the lab's directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use lab::{AgentOptions, Lab, Process, Standing};

use crate::build;
use crate::lab_command::{Id, up};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    lab: Id,
    /// The node, such as n1.
    node: String,
    #[command(flatten)]
    build: build::Args,
}

/// Builds the agent, asks for its start and waits until it is in charge.
pub(crate) fn run(args: &Args) -> Result<()> {
    let standing = Standing::open(&args.lab.id)?;
    if !standing.nodes.iter().any(|node| node.name == args.node) {
        let known: Vec<_> = standing.nodes.iter().map(|node| &*node.name).collect();
        bail!(
            "the lab {} has no node {}; its nodes are {}",
            standing.id,
            args.node,
            known.join(", ")
        );
    }
    build::run(&args.build)?;
    let files = Files::of(&standing.run_dir()?, &args.node);
    remove(&files.answer)?;
    fs::write(&files.request, "")
        .with_context(|| format!("asking the owner of the lab {}", standing.id))?;
    lab::wait_until("the new agent is in charge", up::PATIENCE, || {
        Ok(files.answer.exists())
    })?;
    let answer = fs::read_to_string(&files.answer)?;
    match answer.strip_prefix(FAILED) {
        Some(why) => bail!("{why}"),
        None => println!("{answer}"),
    }
    Ok(())
}

/// The owner's side: the agents that drain.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    draining: Vec<Process>,
}

impl Reloads {
    /// Does what has been asked for since the last call.
    pub(crate) fn serve(&mut self, lab: &Lab) -> Result<()> {
        self.draining
            .retain_mut(|agent| !matches!(agent.exited(), Ok(Some(_))));
        for node in lab.nodes() {
            let files = Files::of(lab.run_dir(), node.name());
            if !files.request.exists() {
                continue;
            }
            remove(&files.request)?;
            let answer = match lab.succeed_agent(node.name(), &AgentOptions::default()) {
                Ok(before) => {
                    let pid = before.pid();
                    self.draining.push(before);
                    format!(
                        "a new agent is in charge of {}; the one before, process {pid}, drains",
                        node.name()
                    )
                }
                Err(error) => format!("{FAILED}{error:#}"),
            };
            // Whole or not at all: the other side reads it as soon as it is there.
            let written = files.answer.with_extension("new");
            fs::write(&written, answer)?;
            fs::rename(&written, &files.answer)?;
        }
        Ok(())
    }
}

/// Where the two sides meet.
struct Files {
    request: PathBuf,
    answer: PathBuf,
}

impl Files {
    fn of(run_dir: &Path, node: &str) -> Self {
        Self {
            request: run_dir.join(format!("reload-{node}")),
            answer: run_dir.join(format!("reloaded-{node}")),
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Begins an answer that is no success.
const FAILED: &str = "failed: ";
