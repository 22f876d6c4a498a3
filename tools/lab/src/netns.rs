//! One named network namespace: how it is made, entered by a thread, tuned and removed.
//!
//! Names live in `/run/netns`, so `ip -n NAME` and `nsenter --net=/run/netns/NAME` work on them.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::tool;

/// A network namespace with a name in `/run/netns`; holding one keeps the namespace alive.
#[derive(Debug, Clone)]
pub struct Netns {
    name: Arc<str>,
    path: Arc<Path>,
    file: Arc<File>,
}

impl Netns {
    /// Makes the namespace and brings its loopback up.
    pub(crate) fn create(name: &str) -> Result<Self> {
        tool::ip(&["netns", "add", name])?;
        let netns = Self::open(name)?;
        tool::ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Opens an existing namespace by its name in `/run/netns`.
    ///
    /// # Errors
    /// The namespace does not exist.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let file = File::open(&path)
            .with_context(|| format!("network namespace {name} cannot be opened"))?;
        Ok(Self {
            name: name.into(),
            path: path.into(),
            file: Arc::new(file),
        })
    }

    /// The namespace that a process stands in. It may have no name in `/run/netns`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of_process(pid: i32) -> Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let file = File::open(&path)
            .with_context(|| format!("the network namespace of process {pid} cannot be opened"))?;
        Ok(Self {
            name: format!("of process {pid}").into(),
            path: path.into(),
            file: Arc::new(file),
        })
    }

    /// Its name, as `ip netns list` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/netns/<name>`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a fresh thread inside the namespace and returns what it returned.
    ///
    /// Only the network namespace changes, not the cgroup: hooks on a pod's cgroup do not see
    /// these sockets. [`crate::Pod::run`] and [`crate::Node::run`] move the thread into the
    /// cgroup as well. A panic of `work` continues in the caller.
    ///
    /// # Errors
    /// The thread could not enter the namespace; `work` did not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering network namespace {}", self.name))
    }

    /// Writes one sysctl, named with dots (`net.ipv4.ip_forward`), inside the namespace.
    ///
    /// # Errors
    /// The kernel has no such sysctl or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Writes several sysctls in order, stopping at the first that fails.
    ///
    /// # Errors
    /// As [`Netns::sysctl`].
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                fs::write(sysctl_path(key), value)
                    .with_context(|| format!("sysctl {key}={value} in {}", self.name))
            })
        })?
    }

    /// Reads one sysctl inside the namespace, without the closing newline.
    ///
    /// # Errors
    /// The kernel has no such sysctl.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        self.run(|| {
            fs::read_to_string(sysctl_path(key))
                .map(|text| text.trim().to_owned())
                .with_context(|| format!("reading sysctl {key} in {}", self.name))
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` on a thread of its own, so that what it does to its thread ends with it.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Removes the name; the namespace ends when its last process and socket are gone.
pub(crate) fn delete(name: &str) -> Result<()> {
    if path_of(name).exists() {
        tool::ip(&["netns", "del", name])?;
    }
    Ok(())
}

/// The names in `/run/netns` that begin with `prefix`.
pub(crate) fn named(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

fn sysctl_path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

const NETNS_DIR: &str = "/run/netns";
