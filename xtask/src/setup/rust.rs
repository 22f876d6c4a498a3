//! The Rust toolchain's parts and bpf-linker.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{Need, State};
use crate::shell;

/// Components of the toolchain in use, and the linker of the kernel half.
pub(crate) fn needs() -> Result<Vec<Need>> {
    let sysroot = shell::read(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = Path::new(&sysroot);
    let table: [(&str, &str, &'static str); 3] = [
        (
            "rust-src (core is compiled for eBPF)",
            "lib/rustlib/src/rust/library/core/Cargo.toml",
            "rust-src",
        ),
        ("rustfmt", "bin/rustfmt", "rustfmt"),
        ("clippy", "bin/cargo-clippy", "clippy"),
    ];
    let mut needs: Vec<Need> = table
        .into_iter()
        .map(|(what, file, component)| Need {
            what: what.to_owned(),
            state: if sysroot.join(file).exists() {
                State::Present
            } else {
                State::Component(component)
            },
        })
        .collect();
    let linker = installed_bpf_linker();
    needs.push(Need {
        what: match &linker {
            Some(version) => format!("bpf-linker {BPF_LINKER} or later (is: {version})"),
            None => format!("bpf-linker {BPF_LINKER} or later"),
        },
        state: if linker.is_some_and(|version| is_enough(&version)) {
            State::Present
        } else {
            State::BpfLinker
        },
    });
    Ok(needs)
}

pub(crate) fn install_component(component: &str) -> Result<()> {
    if shell::which("rustup").is_none() {
        bail!(
            "this Rust was not installed by rustup, so its component {component} must come from where Rust came from \
             (Debian: the package {component}), or install Rust from https://rustup.rs"
        );
    }
    println!("adding the toolchain's component {component}");
    shell::run(Command::new("rustup").args(["component", "add", component]))
}

pub(crate) fn install_bpf_linker() -> Result<()> {
    println!(
        "installing bpf-linker {BPF_LINKER} into cargo's directory of programs (some minutes)"
    );
    let mut command = shell::cargo(&[
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--force",
    ])?;
    command.args(["--no-default-features", "--features", "llvm-22"]);
    shell::run(&mut command)
}

fn installed_bpf_linker() -> Option<String> {
    let linker = shell::which("bpf-linker")?;
    let version = shell::read(Command::new(linker).arg("--version")).ok()?;
    Some(version.split_whitespace().nth(1)?.to_owned())
}

fn is_enough(version: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        version
            .split('.')
            .map_while(|part| part.parse().ok())
            .collect()
    };
    numbers(version) >= numbers(BPF_LINKER)
}

const BPF_LINKER: &str = "0.13.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_enough("0.13.0"));
        assert!(is_enough("0.13.1"));
        assert!(is_enough("1.0.0"));
        assert!(!is_enough("0.9.15"));
        assert!(!is_enough("0.12.9"));
    }
}
