//! The lab's part of the cgroup2 tree: who is in it, how it is emptied and removed.
//!
//! Every cgroup of a lab is *threaded*, so that a test's own thread can stand in a pod's cgroup
//! (hooks attached there then see its sockets) while the test process stays where it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One directory of the cgroup2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `<cgroup2>/<relative>` and what is missing above it.
    pub(crate) fn create(relative: &str) -> Result<Self> {
        let root = mount_point()?;
        let mut path = root.clone();
        for part in relative.split('/') {
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => fs::write(path.join("cgroup.type"), "threaded")
                    .with_context(|| format!("making {} a threaded cgroup", path.display()))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making {}", path.display()));
                }
            }
        }
        Ok(Self { path })
    }

    /// A cgroup below this one, made if it does not exist.
    ///
    /// # Errors
    /// The kernel refused to make it.
    pub fn child(&self, name: &str) -> Result<Self> {
        let relative = self.path.join(name);
        let relative = relative.strip_prefix(mount_point()?)?;
        Self::create(&relative.to_string_lossy())
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A cgroup that exists already.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Moves the calling thread, and only it, into this cgroup.
    pub(crate) fn enter(&self) -> Result<()> {
        let threads = self.path.join("cgroup.threads");
        let moved = match fs::write(&threads, "0") {
            // The process stands in a cgroup of another threaded domain, as under systemd: the
            // root is the domain of the lab's tree.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                fs::write(mount_point()?.join("cgroup.procs"), "0")?;
                fs::write(&threads, "0")
            }
            other => other,
        };
        moved.with_context(|| format!("moving a thread into {}", self.path.display()))
    }

    /// The processes with a thread in this cgroup or below it, other than the caller.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let threads = match fs::read_to_string(directory.join("cgroup.threads")) {
                Ok(threads) => threads,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            pids.extend(threads.lines().filter_map(process_of));
        }
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|pid| *pid != std::process::id().cast_signed());
        Ok(pids)
    }

    /// Kills every process of the tree by its pid and waits until the tree is empty.
    ///
    /// # Errors
    /// A process outlived SIGKILL for five seconds.
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let pids = self.processes()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "processes {pids:?} in {} outlive SIGKILL",
                    self.path.display()
                );
            }
            for pid in pids {
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error).with_context(|| format!("killing {pid}")),
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the tree's processes and removes its directories; does nothing if it is gone.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        let mut directories = self.tree()?;
        directories.reverse();
        let deadline = Instant::now() + Duration::from_secs(5);
        for directory in directories {
            loop {
                match fs::remove_dir(&directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    // A killed process leaves its cgroup a moment after it left the list.
                    Err(error) if is_busy(&error) && Instant::now() < deadline => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("removing {}", directory.display()));
                    }
                }
            }
        }
        Ok(())
    }

    /// This directory and all below it, parents before children.
    fn tree(&self) -> Result<Vec<PathBuf>> {
        let mut found = vec![self.path.clone()];
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
}

/// Where cgroup2 is mounted; alone, or beside cgroup v1 in a hybrid hierarchy.
///
/// # Errors
/// cgroup2 is not mounted.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    find_cgroup2(&mounts).ok_or_else(|| {
        anyhow!(
            "cgroup2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified` (after mkdir), or boot with systemd.unified_cgroup_hierarchy=1"
        )
    })
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let target = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
    })
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

/// The process that owns a thread.
fn process_of(thread: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    tgid.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_in_pure_and_hybrid_hierarchies() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let none = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_cgroup2(none), None);
    }
}
