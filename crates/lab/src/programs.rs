//! Where the programs of this workspace lie, and how controller and agent are started.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How to start the controller; see `keelson-controller --help`.
#[derive(Debug, Clone, Default)]
pub struct ControllerOptions {
    /// `--cert-ttl`: how long certificates live. The controller's own default if `None`.
    pub cert_ttl: Option<Duration>,
    /// `--cacerts`: a directory with `ca-cert.pem` and its companions.
    pub cacerts: Option<PathBuf>,
    /// Further arguments; a later one wins over those the lab passes.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}

/// How to start a node agent; see `keelson-node-agent --help`.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The program; the lab's own agent unless a test has another one.
    pub program: String,
    /// `--workers`.
    pub workers: usize,
    /// `--drain-deadline`.
    pub drain_deadline: Duration,
    /// Further arguments; a later one wins over those the lab passes.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The agent's cgroup below its node's.
    pub cgroup: String,
    /// Announce all pods of the node again, also those that an earlier agent knows. An agent
    /// shall find those in its state, so this is off.
    pub replay_all: bool,
    /// Wait until the agent says that it is ready.
    pub wait_ready: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            program: AGENT.to_owned(),
            workers: 1,
            drain_deadline: Duration::from_secs(25),
            args: Vec::new(),
            env: Vec::new(),
            cgroup: "agent".to_owned(),
            replay_all: false,
            wait_ready: true,
        }
    }
}

/// The agent as it is built by `cargo xtask build`.
pub(crate) const AGENT: &str = "keelson-node-agent";

/// Names the directory with the workspace's programs, once and for the whole process.
///
/// # Errors
/// Another directory has been named before.
pub fn use_directory(directory: &Path) -> Result<()> {
    if DIRECTORY.get_or_init(|| directory.to_owned()) != directory {
        bail!("the programs' directory has been chosen before");
    }
    Ok(())
}

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// The directory with the workspace's programs: as chosen by [`use_directory`], else
/// `KEELSON_BIN_DIR`, else where this program lies.
///
/// # Errors
/// This program's own path cannot be read.
pub fn directory() -> Result<PathBuf> {
    if let Some(directory) = DIRECTORY.get() {
        return Ok(directory.clone());
    }
    if let Some(directory) = env::var_os("KEELSON_BIN_DIR") {
        return Ok(directory.into());
    }
    let mut directory = env::current_exe().context("finding this program's directory")?;
    directory.pop();
    // Test programs lie one level below the programs.
    if directory.file_name() == Some(OsStr::new("deps")) {
        directory.pop();
    }
    Ok(directory)
}

/// The path of one of the workspace's programs.
///
/// # Errors
/// It has not been built.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = directory()?.join(program);
    if !path.is_file() {
        bail!(
            "{} does not exist: `cargo xtask build` makes it; KEELSON_BIN_DIR names another directory",
            path.display()
        );
    }
    Ok(path)
}

/// Replaces the bare name of a program of this workspace by its path.
pub(crate) fn resolve(command: Command) -> Result<Command> {
    let name = command.get_program().to_string_lossy().into_owned();
    if !name.starts_with("keelson-") {
        return Ok(command);
    }
    let mut resolved = Command::new(find(&name)?);
    resolved.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => resolved.env(key, value),
            None => resolved.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        resolved.current_dir(directory);
    }
    Ok(resolved)
}
