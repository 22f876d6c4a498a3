//! A child process placed into a namespace and a cgroup before it runs its first instruction.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::Netns;

/// Where a process shall run: its network namespace, its cgroup and its `/etc/hosts`.
#[derive(Debug, Clone)]
pub struct Placement {
    netns: Netns,
    procs: Option<Arc<File>>,
    hosts: Option<CString>,
}

impl Placement {
    /// Inside a namespace; the cgroup stays the caller's.
    pub(crate) fn in_netns(netns: &Netns) -> Result<Self> {
        Ok(Self {
            netns: netns.clone(),
            procs: None,
            hosts: None,
        })
    }

    /// Inside a namespace and a cgroup, with `hosts` mounted over `/etc/hosts` if it is given.
    ///
    /// # Errors
    /// The cgroup does not exist, or the path holds a NUL byte.
    pub fn new(netns: &Netns, cgroup: &Cgroup, hosts: Option<&Path>) -> Result<Self> {
        let procs = cgroup.path().join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("opening {}", procs.display()))?;
        let hosts = hosts
            .map(|path| CString::new(path.as_os_str().as_bytes()))
            .transpose()?;
        Ok(Self {
            netns: netns.clone(),
            procs: Some(Arc::new(procs)),
            hosts,
        })
    }

    /// Makes `command` start in this place.
    pub fn apply(&self, command: &mut Command) {
        let place = self.clone();
        let enter = move || place.enter();
        #[expect(unsafe_code, reason = "namespaces are entered between fork and exec")]
        // SAFETY: between fork and exec `enter` only makes system calls on descriptors and
        // strings prepared before the fork; it does not allocate and takes no lock.
        unsafe {
            command.pre_exec(enter);
        }
    }

    fn enter(&self) -> std::io::Result<()> {
        if let Some(procs) = &self.procs {
            nix::unistd::write(&**procs, b"0")?;
        }
        setns(&self.netns, CloneFlags::CLONE_NEWNET)?;
        if let Some(hosts) = &self.hosts {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Slave, not private: removing a pod's namespace file must reach this copy too.
            let none: Option<&std::ffi::CStr> = None;
            mount(none, c"/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
            mount(Some(&**hosts), c"/etc/hosts", none, MsFlags::MS_BIND, none)?;
        }
        Ok(())
    }
}

/// A running program of the lab; dropping it kills it with SIGKILL.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `place`, its output appended to the file `log`.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        place: &Placement,
        log: PathBuf,
    ) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C reaches the lab's owner only, which then removes everything in order.
            .process_group(0);
        place.apply(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("starting {name} (`{program}`)"))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What the lab calls it, such as `shop/client/app`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file with its standard output and error.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The kernel does not know the child any more.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end; `None` when it is still running after `timeout`.
    ///
    /// # Errors
    /// As [`Process::exited`].
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal; a process that has ended already is no error.
    ///
    /// # Errors
    /// The kernel refused the signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited()?.is_some() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal} to {}", self.name)),
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(process = %self.name, error = format!("{error:#}"), "not killed");
        }
    }
}

/// Runs `command` in `place` to its end and returns its output.
pub(crate) fn output(mut command: Command, place: &Placement) -> Result<Output> {
    place.apply(&mut command);
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running `{program}`"))
}
