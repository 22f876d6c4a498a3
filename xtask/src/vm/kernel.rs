//! Debian's kernels: which there are, and how their files get here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A kernel series that tests can run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's own: no tcx.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, as Debian 12 has it too.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// The Debian package that depends on the newest build of the series for Debian 12.
    const fn newest(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// How the names of the series' packages begin.
    const fn prefix(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-6.1.",
            Self::V6_12 => "linux-image-6.12.",
        }
    }
}

/// A kernel's files on this machine.
#[derive(Debug)]
pub(crate) struct Files {
    /// As `uname -r` prints it there.
    pub(crate) release: String,
    /// The kernel itself.
    pub(crate) image: PathBuf,
    /// A root directory that holds its modules, with `depmod`'s tables.
    pub(crate) root: PathBuf,
}

/// Fetches the newest build of a series, unless it is here.
///
/// # Errors
/// The system has no such package, or it could not be fetched or unpacked.
pub(crate) fn fetch(kernel: Kernel, place: &Path) -> Result<Files> {
    let package = newest(kernel)?;
    let release = package
        .strip_prefix("linux-image-")
        .with_context(|| format!("{package} is no kernel's package"))?
        .to_owned();
    let root = place.join(&package);
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !root.join("complete").exists() {
        unpack(&package, &release, &root)?;
    }
    Ok(Files {
        release,
        image,
        root,
    })
}

fn unpack(package: &str, release: &str, root: &Path) -> Result<()> {
    println!("fetching {package}");
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("removing {}", root.display()))?;
    }
    fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
    shell::run(
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(root),
    )?;
    let archive = fs::read_dir(root)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get left no archive of {package}"))?;
    shell::run(Command::new("dpkg").arg("-x").arg(&archive).arg(root))?;
    fs::remove_file(&archive)?;
    shell::run(Command::new("depmod").arg("-b").arg(root).arg(release))?;
    fs::write(root.join("complete"), "")?;
    Ok(())
}

/// The package of the series' newest build, as the package system knows it now.
fn newest(kernel: Kernel) -> Result<String> {
    let depends = dependencies(kernel);
    if depends.is_err() {
        shell::run(Command::new("apt-get").args(["update", "-q"]))?;
    }
    let depends = depends.or_else(|_| dependencies(kernel))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(kernel.prefix()))
        .map(str::to_owned)
        .with_context(|| {
            format!(
                "{} of this system is of another series than {}; Debian 12 has it",
                kernel.newest(),
                kernel.prefix()
            )
        })
}

fn dependencies(kernel: Kernel) -> Result<String> {
    let text = shell::read(Command::new("apt-cache").args(["depends", kernel.newest()]))?;
    if text.contains("Depends:") {
        return Ok(text);
    }
    bail!(
        "this system's package sources have no {}; those of Debian 12 have",
        kernel.newest()
    )
}

/// The files of the modules that `names` need, in the order in which they are loaded.
pub(crate) fn modules(kernel: &Files, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in names {
        let mut command = Command::new("modprobe");
        command
            .args(["--show-depends", "--ignore-install", "-d"])
            .arg(&kernel.root)
            .args(["-S", &kernel.release, name]);
        // What is built in has no file.
        for line in shell::read(&mut command)?.lines() {
            let Some(path) = line.trim().strip_prefix("insmod ") else {
                continue;
            };
            let path = PathBuf::from(path.trim());
            if !files.contains(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}
