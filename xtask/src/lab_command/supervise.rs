//! The owner of a standing lab: starts it, follows its folder, and removes it when told to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use lab::{AgentOptions, ControllerOptions, Lab, Standing};

use crate::lab_command::reload::Reloads;
use crate::shell;

/// Runs until a signal ends it; the lab library removes the lab then.
pub(crate) fn run(id: &str) -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let lab = Lab::builder(id)
        .manifests(shell::root()?.join("deploy/lab"))
        .build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in lab.nodes() {
        lab.start_agent(node.name(), &AgentOptions::default())?;
    }
    fs::write(ready_file(id)?, "")?;
    println!("the lab {id} stands");
    let mut seen = Vec::new();
    let mut reloads = Reloads::default();
    loop {
        if let Err(error) = reloads.serve(&lab) {
            println!("{error:#}");
        }
        let now = fingerprint(&lab.manifests_dir());
        if now != seen {
            if let Err(error) = lab.reconcile() {
                println!("{error:#}");
            }
            // What the reconciliation itself wrote is no news.
            seen = fingerprint(&lab.manifests_dir());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Exists once the lab stands.
pub(crate) fn ready_file(id: &str) -> Result<PathBuf> {
    match Standing::open(id) {
        Ok(standing) => Ok(standing.run_dir()?.join("ready")),
        // Not begun yet: a path that does not exist says the same.
        Err(_) => Ok(PathBuf::from("/run/keelson-lab").join(id).join("ready")),
    }
}

fn fingerprint(folder: &Path) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), metadata.modified().ok(), metadata.len()))
        })
        .collect();
    files.sort();
    files
}
