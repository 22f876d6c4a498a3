//! A cluster that another process owns, as far as one can use it from outside.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use lab::ProcessRecord;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroups;
use crate::init;
use crate::layout::{CONTROL, Options, Place, machines};

/// A cluster that stands.
#[derive(Debug, Clone)]
pub struct Standing {
    place: Place,
    options: Options,
}

impl Standing {
    /// Opens it.
    ///
    /// # Errors
    /// It does not stand.
    pub fn open(place: &Place) -> Result<Self> {
        let options = place.read_options()?;
        let owner = owner(place);
        if owner.is_none_or(|owner| !owner.lives()) {
            bail!(
                "the cluster {} has lost its owner: take it down",
                place.id()
            );
        }
        Ok(Self {
            place: place.clone(),
            options,
        })
    }

    /// What it was made of.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Names of its machines: `control`, then `node1`, `node2`, ...
    #[must_use]
    pub fn machines(&self) -> Vec<String> {
        machines(&self.options)
    }

    /// The process id of a machine's first process.
    ///
    /// # Errors
    /// There is no such machine, or it does not run now.
    pub fn pid(&self, machine: &str) -> Result<i32> {
        let known = self.machines();
        if !known.iter().any(|name| name == machine) {
            bail!(
                "the cluster {} has no machine {machine}; its machines are {}",
                self.place.id(),
                known.join(", ")
            );
        }
        let record = fs::read_to_string(self.place.machine(machine).join("pid"));
        let record = record.ok().and_then(|text| ProcessRecord::parse(&text));
        record
            .filter(ProcessRecord::lives)
            .map(|record| record.pid)
            .ok_or_else(|| anyhow!("{machine} does not run now"))
    }

    /// A command inside a machine, with the machine's own environment.
    ///
    /// # Errors
    /// As [`Standing::pid`].
    pub fn command(&self, machine: &str, words: &[String]) -> Result<Command> {
        let pid = self.pid(machine)?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={pid}"))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"])
            .args(words)
            .env("PATH", init::PATH)
            .env("HOME", "/root");
        Ok(command)
    }

    /// Moves this process among those of a machine, for a command that it becomes.
    ///
    /// # Errors
    /// The cgroup cannot be entered.
    pub fn join(&self, machine: &str) -> Result<()> {
        let cgroup = format!("{}/{machine}", self.place.cgroup());
        cgroups::enter(&init::shell_cgroup(&cgroup), 0)
    }

    /// `kubectl` as the cluster's administrator.
    #[must_use]
    pub fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.place.programs().join("kubectl"));
        command
            .arg(format!(
                "--kubeconfig={}",
                self.place.kubeconfig().display()
            ))
            .args(words);
        command
    }

    /// Applies objects.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.apply_text(&list.to_string())
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn apply_text(&self, text: &str) -> Result<()> {
        let mut child = self
            .kubectl(&["apply", "--server-side", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Gives an image to every node.
    ///
    /// # Errors
    /// A node's containerd refuses.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let import = ["ctr", "-n", "k8s.io", "images", "import", "-"].map(str::to_owned);
        for machine in self.machines().iter().filter(|name| *name != CONTROL) {
            let file =
                File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
            let output = self.command(machine, &import)?.stdin(file).output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!(
                    "{machine} does not take {}: {}",
                    archive.display(),
                    said.trim()
                );
            }
        }
        Ok(())
    }

    /// Ends every process of a machine at once, as a reset does, and waits until it has started again. `/etc`, `/opt` and
    /// `/var` stay; `/run`, pinned programs, interfaces and rules are gone.
    ///
    /// # Errors
    /// As [`Standing::pid`], or it does not come back.
    pub fn reboot(&self, machine: &str) -> Result<()> {
        let before = self.pid(machine)?;
        kill(Pid::from_raw(before), Signal::SIGKILL)?;
        let ready = self.place.machine(machine).join("status/ready");
        wait(&format!("{machine} has started again"), || {
            Ok(self.pid(machine).is_ok_and(|pid| pid != before) && ready.exists())
        })
    }
}

/// Takes a cluster down: its processes, cgroups and files. Taking down what does not stand is no error.
///
/// # Errors
/// Something resists; calling again tries again.
pub fn remove(place: &Place) -> Result<()> {
    if let Some(owner) = owner(place).filter(ProcessRecord::lives) {
        match kill(Pid::from_raw(owner.pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("ending the cluster's owner"),
        }
        wait("the cluster's owner ends", || Ok(!owner.lives()))?;
    }
    if let Ok(options) = place.read_options() {
        for machine in machines(&options) {
            let record = fs::read_to_string(place.machine(&machine).join("pid"));
            let record = record.ok().and_then(|text| ProcessRecord::parse(&text));
            if let Some(record) = record {
                wait(&format!("{machine} ends"), || Ok(!record.lives()))?;
            }
        }
    }
    cgroups::remove(&place.cgroup())?;
    let state = place.state();
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
    }
    Ok(())
}

/// What is still there of a cluster that has been taken down, one sentence each; nothing, if all is well.
///
/// # Errors
/// `/proc` cannot be read.
pub fn remains(place: &Place) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let state = place.state();
    if state.exists() {
        left.push(format!("the directory {}", state.display()));
    }
    if cgroups::exists(&place.cgroup())? {
        left.push(format!("the cgroup {}", place.cgroup()));
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(target).starts_with(&state) {
            left.push(format!("the mount {target}"));
        }
    }
    let state = state.to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc")?.flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(&state) {
            left.push(format!("the process {}", entry.file_name().display()));
        }
    }
    Ok(left)
}

/// Whether a cluster stands, as far as one can tell from its owner.
#[must_use]
pub fn stands(place: &Place) -> bool {
    owner(place).is_some_and(|owner| owner.lives())
}

fn owner(place: &Place) -> Option<ProcessRecord> {
    ProcessRecord::parse(&fs::read_to_string(place.owner()).ok()?)
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(120);
