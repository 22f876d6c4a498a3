//! Whether the programs of a cluster compile for arm64, on a machine that is none. Nothing is linked and nothing runs.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{setup, shell};

/// Checks what is in the images, and `keelson`; installs what that takes.
pub(super) fn check() -> Result<()> {
    let mut list = Command::new("rustup");
    let installed = shell::read(list.args(["target", "list", "--installed"]))?;
    if !installed.lines().any(|target| target == TARGET) {
        println!("adding the standard library of {TARGET}");
        shell::run(Command::new("rustup").args(["target", "add", TARGET]))?;
    }
    // Two dependencies have parts in C.
    if shell::which(COMPILER).is_none() || !Path::new(HEADERS).exists() {
        setup::install_packages(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"])?;
    }
    let mut command = shell::cargo(&["check", "--target", TARGET])?;
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    shell::run(command.env("CC_aarch64_unknown_linux_gnu", COMPILER))
}

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const HEADERS: &str = "/usr/aarch64-linux-gnu/include/stdlib.h";
/// Packages of the programs.
const PACKAGES: [&str; 5] = ["node-agent", "controller", "waypoint", "cni", "keelson"];
