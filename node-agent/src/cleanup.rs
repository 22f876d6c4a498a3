//! Leaves the node as it was before the first agent: releases pods, detaches and unpins everything.

use std::path::Path;

use anyhow::Context;

use crate::{
    config::CleanupArgs,
    netns::{Netns, remember_home},
    pod::Sandbox,
    pod_net,
};

/// Cleans up. Pods keep their network; captured connections end.
///
/// # Errors
/// When something could not be removed; the rest is.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    // Kept for as long as the program runs; lines go to standard error.
    let _log = runtime::log::init(runtime::log::Format::Text, "info")?;
    remember_home()?;
    for sandbox in sandboxes(&args.runtime_dir) {
        // A namespace that is gone needs no cleaning.
        if let Ok(netns) = Netns::open(&sandbox.netns)
            && let Err(error) = netns.run(pod_net::tear_down).and_then(|done| done)
        {
            tracing::warn!(pod = %sandbox.pod, %error, "cannot remove the capture rule");
        }
    }
    // Removing the pins detaches: nobody else holds the links.
    remove_dir(&args.bpf_dir)?;
    remove_dir(&args.runtime_dir)
}

fn sandboxes(dir: &Path) -> Vec<Sandbox> {
    let text = std::fs::read(dir.join("pods.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
