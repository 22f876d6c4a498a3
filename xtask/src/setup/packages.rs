//! The system packages, as Debian and Ubuntu name them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{Need, State};
use crate::shell::{self, is_root};

/// What is needed, recognised by a file or program rather than by a package's name, so that
/// other distributions count too.
pub(crate) fn needs() -> Vec<Need> {
    let llvm = shell::llvm_prefix();
    let table: [(&str, bool, &'static str); 9] = [
        (
            "a C compiler and linker",
            shell::which("cc").is_some(),
            "gcc",
        ),
        (
            "a C++ compiler (libFuzzer)",
            shell::which("c++").is_some(),
            "g++",
        ),
        (
            "headers of the C library",
            Path::new("/usr/include/stdlib.h").exists(),
            "libc6-dev",
        ),
        (
            "LLVM 22 (bpf-linker is linked with it)",
            llvm.join("bin/llvm-config").exists(),
            "llvm-22-dev",
        ),
        (
            "LLVM 22's Polly library",
            llvm.join("lib/libPolly.a").exists(),
            "libpolly-22-dev",
        ),
        (
            "ip (the lab's interfaces)",
            shell::which("ip").is_some(),
            "iproute2",
        ),
        (
            "nft (the lab's kube-proxy)",
            shell::which("nft").is_some(),
            "nftables",
        ),
        (
            "curl (to look around in the lab)",
            shell::which("curl").is_some(),
            "curl",
        ),
        (
            "openssl (tests speak TLS by it, which shares no code with the mesh)",
            shell::which("openssl").is_some(),
            "openssl",
        ),
    ];
    table
        .into_iter()
        .map(|(what, present, package)| Need {
            what: what.to_owned(),
            state: if present {
                State::Present
            } else {
                State::Package(package)
            },
        })
        .collect()
}

/// Installs with apt, or says what a person has to install.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if shell::which("apt-get").is_none() {
        bail!(
            "this is neither Debian nor Ubuntu; install what these Debian packages hold: {list} \
             (LLVM 22 elsewhere than in /usr/lib/llvm-22 is named by LLVM_PREFIX)"
        );
    }
    if !is_root() {
        bail!("not root; run: sudo apt-get install {list}");
    }
    println!("installing Debian packages: {list}");
    if packages.iter().any(|package| !is_available(package)) {
        shell::run(&mut apt(&["update"]))?;
    }
    for package in packages {
        if !is_available(package) {
            bail!("{}", where_to_get(package));
        }
    }
    let mut command = apt(&["install", "-y", "--no-install-recommends"]);
    shell::run(command.args(packages))
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(args)
        .arg("-q")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null());
    command
}

fn is_available(package: &str) -> bool {
    let mut command = Command::new("apt-cache");
    command.args(["policy", package]).env("LC_ALL", "C");
    let policy = shell::read(&mut command).unwrap_or_default();
    policy.contains("Candidate:") && !policy.contains("Candidate: (none)")
}

fn where_to_get(package: &str) -> String {
    let release = fs::read_to_string("/etc/os-release")
        .context("os-release")
        .unwrap_or_default();
    let field = |name: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    let system = field("PRETTY_NAME");
    if package.contains("-22-") {
        format!(
            "{system} has no package {package} in its sources. Debian 12 has it in bookworm-security; for other \
             releases https://apt.llvm.org has it: `wget https://apt.llvm.org/llvm.sh && bash llvm.sh 22`, \
             then run this again"
        )
    } else {
        format!("{system} has no package {package} in its sources")
    }
}
