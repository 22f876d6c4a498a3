//! What a machine does from its first process on. The owner writes it down, the first process carries it out.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::layout::Place;
use crate::pki;

/// One machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Its host name.
    pub(crate) name: String,
    /// Its cgroup, below the root of every hierarchy.
    pub(crate) cgroup: String,
    /// Where its own files lie outside: `etc`, `opt` and `var` survive a reboot.
    pub(crate) directory: PathBuf,
    /// What else it sees: a directory outside, and its place inside.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    /// Settings of its own network, `net/ipv4/ip_forward`, with their values.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Settings of the whole kernel that its programs insist on, and that stay as they are: it sees plain files instead.
    pub(crate) pretended: Vec<(String, String)>,
    /// What it does, in order.
    pub(crate) steps: Vec<Step>,
}

/// A part of a machine's start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Starts a program that shall run from now on.
    Start(Service),
    /// Runs a command, which has to succeed.
    Run(Vec<String>),
    /// Runs a command until it succeeds.
    Until(Vec<String>),
}

/// A program that is started again when it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Service {
    /// Its name: of its log, of its cgroup and of the file with its process id.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Spec {
    /// A machine of this cluster that does nothing yet.
    pub(crate) fn new(place: &Place, name: &str) -> Self {
        let directory = place.machine(name);
        let inside = Path::new(INSIDE);
        Self {
            name: name.to_owned(),
            cgroup: format!("{}/{name}", place.cgroup()),
            binds: vec![
                (place.programs(), inside.join("bin")),
                (place.debian(), inside.join("debian")),
                (place.images(), inside.join("images")),
                (directory.join("config"), inside.join("config")),
                (directory.join("status"), inside.join("status")),
            ],
            directory,
            sysctls: Vec::new(),
            pretended: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Where its first process reads this.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    pub(crate) fn write(&self) -> Result<()> {
        pki::secret(&self.path(), &serde_json::to_string_pretty(self)?)
    }

    pub(crate) fn start(&mut self, name: &str, command: Vec<String>) {
        self.steps.push(Step::Start(Service {
            name: name.to_owned(),
            command,
        }));
    }
}

/// A command from words.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Where a machine finds what is not its own.
pub(crate) const INSIDE: &str = "/keelson";
/// Where a machine finds its configuration and credentials.
pub(crate) const CONFIG: &str = "/keelson/config";
/// Written by a machine when its steps are done.
pub(crate) const READY: &str = "ready";
