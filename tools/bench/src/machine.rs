//! The machine that is measured on: what it is, and the two kernel settings that a run changes for
//! its own duration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What a reader of the results has to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// MiB of memory.
    pub memory_mib: u64,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// Of the mesh's programs: `release` or `dev`.
    pub profile: String,
    /// The commit that was built, with `+` if files were changed.
    pub commit: String,
    /// Envoy's version, if it took part.
    pub envoy: Option<String>,
}

impl Machine {
    /// Reads what can be read; what cannot is empty.
    #[must_use]
    pub fn read(profile: &str, checkout: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let git = |args: &[&str]| {
            let output = Command::new("git")
                .args(args)
                .current_dir(checkout)
                .output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            )
        };
        let mut commit = git(&["rev-parse", "--short=10", "HEAD"]);
        if !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            commit.push('+');
        }
        Self {
            processor: field(&cpuinfo, "model name"),
            processors: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            memory_mib: field(&meminfo, "MemTotal")
                .split(' ')
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            virtual_machine: field(&cpuinfo, "flags")
                .split(' ')
                .any(|flag| flag == "hypervisor"),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            system: field(&release, "PRETTY_NAME"),
            profile: profile.to_owned(),
            commit,
            envoy: None,
        }
    }
}

/// The value of the first line `key : value` or `key=value`.
fn field(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| {
        let (name, value) = line.split_once([':', '='])?;
        (name.trim() == key).then_some(value)
    });
    line.unwrap_or_default().trim().trim_matches('"').to_owned()
}

/// A kernel setting that gets its old value back.
#[derive(Debug)]
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Lets namespaces choose cubic: by default they may choose only reno.
    ///
    /// # Errors
    /// The kernel has no cubic.
    pub fn allow_cubic() -> Result<Self> {
        let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
        let before = read(path)?;
        if before.split(' ').any(|name| name == "cubic") {
            return Self::change(path, &before);
        }
        Self::change(path, &format!("{before} cubic")).context(
            "this kernel has no TCP cubic (CONFIG_TCP_CONG_CUBIC), which every mode is measured with",
        )
    }

    /// Makes the kernel count the run time of eBPF programs, which costs some of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn count_bpf_time() -> Result<Self> {
        Self::change("/proc/sys/kernel/bpf_stats_enabled", "1")
    }

    fn change(path: &str, value: &str) -> Result<Self> {
        let before = read(path)?;
        fs::write(path, value).with_context(|| format!("writing {value:?} to {path}"))?;
        Ok(Self {
            path: path.into(),
            before,
        })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Nobody is left to tell; the setting is harmless.
        drop(fs::write(&self.path, &self.before));
    }
}

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(text.trim().to_owned())
}

/// Lets this process and its children have `wanted` files open, or as many as the machine allows,
/// and returns how many that are: thousands of connections pass some of them.
///
/// # Errors
/// The kernel does not say.
pub fn raise_open_files(wanted: u64) -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    for limit in [wanted, hard] {
        if limit > soft && setrlimit(Resource::RLIMIT_NOFILE, limit, limit.max(hard)).is_ok() {
            return Ok(limit);
        }
    }
    Ok(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_all_three_files() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2\nMemTotal:   2048 kB\nPRETTY_NAME=\"Debian 12\"\n";
        for (key, value) in [
            ("model name", "Some CPU @ 2"),
            ("MemTotal", "2048 kB"),
            ("PRETTY_NAME", "Debian 12"),
            ("flags", ""),
        ] {
            assert_eq!(field(text, key), value);
        }
    }
}
