//! What comes from Debian: programs that are harmless are installed, those that would start with the machine are unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cluster_command::base;
use crate::{setup, shell};

/// Gets what is missing.
///
/// # Errors
/// This is neither Debian nor Ubuntu, or a package cannot be fetched.
pub(crate) fn fetch() -> Result<()> {
    setup::install_packages_of(&[
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("iptables", "iptables"),
        ("nft", "nftables"),
        ("ipset", "ipset"),
        ("conntrack", "conntrack"),
        ("mount", "mount"),
    ])?;
    let root = base()?.join("debian");
    let complete = base()?.join("debian.complete");
    let wanted = UNPACKED.join(" ");
    if fs::read_to_string(&complete).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    if shell::which("apt-get").is_none() {
        bail!(
            "a cluster takes {wanted} from Debian's packages, and this is neither Debian nor Ubuntu"
        );
    }
    println!("fetching and unpacking Debian packages: {wanted}");
    let archives = base()?.join("archives");
    for directory in [&root, &archives] {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    if download(&archives).is_err() {
        // The list of packages is missing or old.
        shell::run(Command::new("apt-get").args(["update", "-q"]))?;
        download(&archives)?;
    }
    for entry in fs::read_dir(&archives)? {
        let mut unpack = Command::new("dpkg");
        shell::read(unpack.arg("-x").arg(entry?.path()).arg(&root))?;
    }
    fs::remove_dir_all(&archives)?;
    fs::write(&complete, wanted)?;
    Ok(())
}

/// A file of an unpacked package; where `/lib` and `/bin` are links, packages have theirs below `/usr`.
///
/// # Errors
/// No package has it.
pub(crate) fn unpacked(path: &str) -> Result<PathBuf> {
    let root = base()?.join("debian");
    let mut found = [root.join(path), root.join("usr").join(path)].into_iter();
    found
        .find(|path| path.is_file())
        .with_context(|| format!("no package has {path}"))
}

fn download(to: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["download", "-q"])
        // The user that apt fetches as cannot write here.
        .args(["-o", "APT::Sandbox::User=root"])
        .args(UNPACKED)
        .current_dir(to);
    shell::read(&mut command)?;
    Ok(())
}

/// Packages that are not installed: their services would start with this machine.
const UNPACKED: [&str; 5] = [
    "containerd",
    "runc",
    "containernetworking-plugins",
    "busybox",
    "libc6",
];
