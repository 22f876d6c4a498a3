//! Leaves the node as it was before the first agent: releases pods, detaches and unpins everything.

use std::{io::ErrorKind, path::Path};

use anyhow::Context;

use crate::{
    agent::config::CleanupArgs,
    bpf,
    host::{
        netns::{Netns, remember_home},
        pod_net, readers,
    },
    pod::Sandbox,
};

/// Cleans up. Pods keep their network; captured connections end.
///
/// # Errors
/// When something could not be removed; the rest is.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    // Kept for as long as the program runs; lines go to standard error.
    let _log = runtime::log::init(runtime::log::Format::Text, "info")?;
    remember_home()?;
    sweep(args)
}

/// As [`run`], in a program that has a log and knows its own namespace.
///
/// # Errors
/// As [`run`].
pub fn sweep(args: &CleanupArgs) -> anyhow::Result<()> {
    for sandbox in sandboxes(&args.runtime_dir) {
        // A namespace that is gone needs no cleaning.
        if let Ok(netns) = Netns::open(&sandbox.netns)
            && let Err(error) = netns.run(pod_net::tear_down).and_then(|done| done)
        {
            tracing::warn!(pod = %sandbox.pod, %error, "cannot remove the capture rule");
        }
        if let Ok(netns) = Netns::open(&sandbox.netns) {
            bpf::remove_filters(&args.bpf_dir, Some(&netns));
        }
    }
    bpf::remove_filters(&args.bpf_dir, None);
    // Removing the pins detaches: nobody else holds the links.
    remove_dir(&args.bpf_dir)?;
    if let Err(error) = readers::undo(&args.runtime_dir) {
        tracing::warn!(%error, "cannot turn off {}", readers::DEFAULT);
    }
    remove_dir(&args.runtime_dir)
}

fn sandboxes(dir: &Path) -> Vec<Sandbox> {
    let text = std::fs::read(dir.join("pods.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Removes a directory. One that something is mounted on, such as a volume of a container, is emptied: it was there
/// before the first agent.
pub(crate) fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if is_mount_point(&error) && is_empty(dir) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", dir.display())),
    }
}

/// Such a directory cannot be removed; where what it lies in is read-only, as in a container, that is said first.
fn is_mount_point(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy | ErrorKind::ReadOnlyFilesystem
    )
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use nix::{
        mount::{MntFlags, MsFlags, mount, umount2},
        sched::{CloneFlags, unshare},
    };

    use super::*;

    /// Mounts in a mount namespace of this thread alone.
    fn mounted(dir: &Path) {
        let nothing: Option<&str> = None;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            nothing,
        )
        .unwrap();
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
    }

    #[test]
    fn a_directory_that_is_a_mount_point_is_emptied_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("run");
        std::fs::create_dir(&dir).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                mounted(&dir);
                std::fs::create_dir_all(dir.join("certs/shop")).unwrap();
                std::fs::write(dir.join("certs/shop/key"), "k").unwrap();
                remove_dir(&dir).unwrap();
                assert!(is_empty(&dir) && dir.exists());
                remove_dir(&dir).unwrap();
                umount2(&dir, MntFlags::empty()).unwrap();
            });
        });
        remove_dir(&dir).unwrap();
        assert!(!dir.exists());
        remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_mounted_further_inside_is_not_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("run/inner");
        std::fs::create_dir_all(&inner).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                mounted(&inner);
                let error = remove_dir(&place.path().join("run")).unwrap_err();
                assert!(error.to_string().contains("run"), "{error}");
            });
        });
    }
}
