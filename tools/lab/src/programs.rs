//! Where the programs of this workspace lie, and how controller and agent are started.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

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
/// It has not been built, or one of its sources has changed since: nobody shall test what is not there any more.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = directory()?.join(program);
    if !path.is_file() {
        bail!(
            "{} does not exist: `cargo xtask build` makes it; KEELSON_BIN_DIR names another directory",
            path.display()
        );
    }
    if let Some(source) = newer_source(&path)? {
        bail!(
            "{} is older than its source {}: `cargo xtask build` makes it anew (with --release for a release)",
            path.display(),
            source.display()
        );
    }
    Ok(path)
}

/// A source that has changed since the program was built. Cargo lists the sources beside a program that it built; one
/// without a list comes from elsewhere and is taken as it is.
fn newer_source(program: &Path) -> Result<Option<PathBuf>> {
    let Ok(list) = fs::read_to_string(program.with_extension("d")) else {
        return Ok(None);
    };
    let built = fs::metadata(program).and_then(|metadata| metadata.modified());
    let built = built.with_context(|| format!("looking at {}", program.display()))?;
    Ok(sources(&list).find_map(|path| newer(path, built)))
}

/// The path itself if it is a file that has changed after `built`, or such a file below it.
fn newer(path: PathBuf, built: SystemTime) -> Option<PathBuf> {
    let metadata = fs::metadata(&path).ok()?;
    if metadata.is_dir() {
        let mut entries = fs::read_dir(&path).ok()?.flatten();
        return entries.find_map(|entry| newer(entry.path(), built));
    }
    metadata
        .modified()
        .is_ok_and(|changed| changed > built)
        .then_some(path)
}

/// The sources in one of cargo's lists, `program: source source`, where a blank in a path is written `\ `.
fn sources(list: &str) -> impl Iterator<Item = PathBuf> {
    let (_, sources) = list.split_once(": ").unwrap_or_default();
    let sources = sources.replace("\\ ", "\0");
    let sources: Vec<_> = sources
        .split_whitespace()
        .map(|path| PathBuf::from(path.replace('\0', " ")))
        .collect();
    sources.into_iter()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_older_than_a_source_is_noticed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let (program, source, other) = (at("keelson-x"), at("a b.rs"), at("dir/c.rs"));
        let built = SystemTime::now() - Duration::from_secs(60);
        let set = |path: &Path, time| fs::File::create(path)?.set_modified(time);
        fs::create_dir(at("dir"))?;
        for path in [&program, &source, &other] {
            set(path, built)?;
        }
        assert_eq!(newer_source(&program)?, None, "there is no list");
        let spelt = source.display().to_string().replace(' ', "\\ ");
        let gone = at("gone.rs");
        let (gone, directory) = (gone.display(), at("dir"));
        let list = format!(
            "{}: {gone} {spelt} {}\n",
            program.display(),
            directory.display()
        );
        fs::write(at("keelson-x.d"), list)?;
        assert_eq!(newer_source(&program)?, None);
        for source in [source, other] {
            set(&source, SystemTime::now())?;
            assert_eq!(newer_source(&program)?, Some(source.clone()));
            set(&source, built)?;
        }
        Ok(())
    }
}
