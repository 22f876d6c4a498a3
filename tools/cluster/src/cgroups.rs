//! A cluster's part of every cgroup hierarchy: made, filled, emptied and removed.
//!
//! runc makes a container's cgroup under the same path in every hierarchy, in cgroup2 too where that is mounted
//! beside version 1. So a node has one path, and everything of it is below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Makes `relative` and what is missing above it, in every hierarchy.
pub(crate) fn create(relative: &str) -> Result<()> {
    for root in roots()? {
        let mut path = root.clone();
        for part in relative.split('/') {
            let parent = path.clone();
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => inherit(&parent, &path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making {}", path.display()));
                }
            }
        }
    }
    Ok(())
}

/// Moves a process into `relative` of cgroup2; `0` is the caller.
pub(crate) fn enter(relative: &str, pid: u32) -> Result<()> {
    let mounts = fs::read_to_string(MOUNTS)?;
    let root = hierarchies(&mounts)
        .find(|(kind, _)| *kind == "cgroup2")
        .map(|(_, path)| path)
        .context("cgroup2 is not mounted")?;
    let procs = root.join(relative).join("cgroup.procs");
    fs::write(&procs, pid.to_string()).with_context(|| format!("writing {}", procs.display()))
}

/// Whether `relative` exists in some hierarchy.
pub(crate) fn exists(relative: &str) -> Result<bool> {
    Ok(roots()?.iter().any(|root| root.join(relative).exists()))
}

/// Kills everything in `relative` and below it, and removes it from every hierarchy. Does nothing where it is gone.
pub(crate) fn remove(relative: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for root in roots()? {
        let top = root.join(relative);
        while top.exists() {
            let tree = tree(&top)?;
            for directory in &tree {
                kill_all(directory)?;
            }
            let left = tree.iter().rev().find_map(|directory| {
                let error = fs::remove_dir(directory).err()?;
                (error.kind() != io::ErrorKind::NotFound).then_some((directory, error))
            });
            if let Some((directory, error)) = left {
                if Instant::now() > deadline {
                    bail!("removing {}: {error}", directory.display());
                }
                // A killed process leaves its cgroup a moment after it left the list.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    Ok(())
}

/// A cpuset of version 1 takes no process before it has processors and memory of its own.
fn inherit(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        if !parent.join("cpuset.effective_cpus").exists() {
            continue;
        }
        let value = fs::read_to_string(&from)?;
        fs::write(&to, value.trim()).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}

fn kill_all(directory: &Path) -> Result<()> {
    let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("killing {pid}")),
        }
    }
    Ok(())
}

/// This directory and all below it, parents before children.
fn tree(top: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn roots() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string(MOUNTS).context("reading the mounts")?;
    Ok(hierarchies(&mounts).map(|(_, path)| path).collect())
}

fn hierarchies(mounts: &str) -> impl Iterator<Item = (&str, PathBuf)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let target = fields.nth(1)?;
        let kind = fields.next()?;
        kind.starts_with("cgroup")
            .then(|| (kind, PathBuf::from(target)))
    })
}

const MOUNTS: &str = "/proc/self/mounts";
const PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_of_either_version_is_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<_> = hierarchies(mounts).collect();
        let expected = [
            ("cgroup", PathBuf::from("/sys/fs/cgroup/cpu")),
            ("cgroup2", PathBuf::from("/sys/fs/cgroup/unified")),
        ];
        assert_eq!(found, expected);
    }
}
