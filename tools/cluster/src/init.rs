//! The first process of a machine: makes its file system, starts its programs, starts again those that end.
//!
//! It is process 1 of a process namespace: whatever the machine runs ends with it. It ends when its parent does.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, wait, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::cgroups;
use crate::root;
use crate::spec::{READY, Service, Spec, Step};

/// Runs the machine that the file `spec` describes, to its end. The caller is process 1 of its namespaces.
///
/// # Errors
/// The machine could not be started.
pub fn run(spec: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is for the first process of a machine");
    }
    let text = fs::read_to_string(spec).with_context(|| format!("reading {}", spec.display()))?;
    let spec: Spec = serde_json::from_str(&text)?;
    // Later the cgroup is found by another path.
    cgroups::enter(&format!("{}/{SYSTEM}/init", spec.cgroup), 1)?;
    sethostname(&spec.name)?;
    root::enter(&spec)?;
    for (name, value) in &spec.sysctls {
        fs::write(Path::new("/proc/sys").join(name), value)
            .with_context(|| format!("setting {name}"))?;
    }
    let mut services = Services::new(&spec)?;
    for step in &spec.steps {
        match step {
            Step::Start(service) => services.start(service)?,
            Step::Run(words) => succeed(words)?,
            Step::Until(words) => services.until(words)?,
        }
    }
    fs::write(Path::new("/keelson/status").join(READY), "")?;
    services.keep()
}

/// The cgroups that a machine's own programs stand in.
pub(crate) fn cgroups_of(spec: &Spec) -> Vec<String> {
    let services = spec.steps.iter().filter_map(|step| match step {
        Step::Start(service) => Some(format!("{}/{SYSTEM}/{}.service", spec.cgroup, service.name)),
        _ => None,
    });
    let own = ["init", "shell"].map(|name| format!("{}/{SYSTEM}/{name}", spec.cgroup));
    services.chain(own).collect()
}

/// The cgroup of what a person runs on a machine.
pub(crate) fn shell_cgroup(machine: &str) -> String {
    format!("{machine}/{SYSTEM}/shell")
}

/// The programs that run, by process id.
struct Services<'a> {
    spec: &'a Spec,
    running: BTreeMap<i32, Service>,
    /// How many have ended while the machine was starting.
    ended: u32,
}

impl<'a> Services<'a> {
    fn new(spec: &'a Spec) -> Result<Self> {
        fs::create_dir_all(PIDS)?;
        Ok(Self {
            spec,
            running: BTreeMap::new(),
            ended: 0,
        })
    }

    fn start(&mut self, service: &Service) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log(service))?;
        let mut command = command(&service.command)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", service.name))?;
        let cgroup = format!("{}/{SYSTEM}/{}.service", self.spec.cgroup, service.name);
        cgroups::enter(&cgroup, child.id())?;
        fs::write(format!("{PIDS}/{}", service.name), child.id().to_string())?;
        self.running
            .insert(child.id().cast_signed(), service.clone());
        Ok(())
    }

    /// Runs a command until it succeeds.
    fn until(&mut self, words: &[String]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Err(error) = succeed(words) else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            self.tend()?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts again what has ended, as long as there is hope.
    fn tend(&mut self) -> Result<()> {
        let pids: Vec<i32> = self.running.keys().copied().collect();
        for pid in pids {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
                _ => continue,
            }
            let Some(service) = self.running.remove(&pid) else {
                continue;
            };
            self.ended += 1;
            if self.ended > HOPE {
                let log = fs::read_to_string(log(&service)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                bail!("{} ends: {}", service.name, last.join(" / "));
            }
            thread::sleep(RESTART);
            self.start(&service)?;
        }
        Ok(())
    }

    /// Waits for whatever ends, orphans included, and starts a program again that shall run.
    fn keep(&mut self) -> Result<()> {
        loop {
            let pid = match wait() {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for programs to end"),
            };
            if let Some(service) = self.running.remove(&pid.as_raw()) {
                thread::sleep(RESTART);
                self.start(&service)?;
            }
        }
    }
}

fn succeed(words: &[String]) -> Result<()> {
    let output = command(words)?.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {words:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{words:?}: {}", said.trim());
    }
    Ok(())
}

fn log(service: &Service) -> String {
    format!("/var/log/{}.log", service.name)
}

/// Nothing of the environment outside reaches a machine: there it might name a proxy.
fn command(words: &[String]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("a program is named")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root");
    Ok(command)
}

/// Where a machine's programs are looked for.
pub(crate) const PATH: &str = "/keelson/bin:/keelson/debian/usr/bin:/keelson/debian/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Files with the process ids of what a machine runs.
const PIDS: &str = "/run/services";
/// Like systemd's, so that no container's cgroup has its name.
const SYSTEM: &str = "system.slice";
/// A program that ends at once does not take the processor.
const RESTART: Duration = Duration::from_secs(1);
/// So many programs may end while a machine starts: one that waits for another in vain is nothing unusual.
const HOPE: u32 = 5;
/// How long one step may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(240);
