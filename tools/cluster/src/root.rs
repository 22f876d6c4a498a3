//! The file system of a machine: the programs of this one, and everything else its own.
//!
//! `/usr` is the machine's that it runs on, read-only. `/etc` is a copy that comes about by writing. `/var` and `/opt` are its
//! own and survive its reboot; `/run` and `/tmp` are in memory and do not. What it mounts, nobody else sees.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::spec::Spec;

/// Makes it and moves into it. The caller is alone in its mount namespace.
pub(crate) fn enter(spec: &Spec) -> Result<()> {
    change("/".as_ref(), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let root = spec.directory.join("root");
    directory(&root, 0o755)?;
    fresh("tmpfs", &root, "mode=0755")?;
    programs(&root)?;
    kernel(&root)?;
    own(spec, &root)?;
    for (from, to) in &spec.binds {
        let to = below(&root, to)?;
        directory(&to, 0o755)?;
        bind(from, &to)?;
    }
    chdir(&root)?;
    pivot_root(".", ".").context("changing the root directory")?;
    // The old root lies over the new one.
    umount2(".", MntFlags::MNT_DETACH).context("leaving the old root directory")?;
    chdir("/")?;
    pretend(spec)?;
    // Containers' mounts reach pods that ask for that, as on a machine with systemd.
    change("/".as_ref(), MsFlags::MS_REC | MsFlags::MS_SHARED)
}

fn programs(root: &Path) -> Result<()> {
    let usr = root.join("usr");
    directory(&usr, 0o755)?;
    bind("/usr".as_ref(), &usr)?;
    read_only(&usr)?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let (here, there) = (Path::new("/").join(name), root.join(name));
        if let Ok(target) = fs::read_link(&here) {
            symlink(target, &there)?;
        } else if here.is_dir() {
            directory(&there, 0o755)?;
            bind(&here, &there)?;
            read_only(&there)?;
        }
    }
    Ok(())
}

/// What the kernel shows, each as this machine's namespaces have it.
fn kernel(root: &Path) -> Result<()> {
    let at = |name: &str| root.join(name);
    directory(&at("proc"), 0o555)?;
    fresh("proc", &at("proc"), "")?;
    directory(&at("sys"), 0o555)?;
    fresh("sysfs", &at("sys"), "")?;
    bind("/sys/fs/cgroup".as_ref(), &at("sys/fs/cgroup"))?;
    // A file system of its own: what is pinned in it goes with the last process.
    fresh("bpf", &at("sys/fs/bpf"), "mode=0700")?;
    directory(&at("dev"), 0o755)?;
    bind("/dev".as_ref(), &at("dev"))
}

fn own(spec: &Spec, root: &Path) -> Result<()> {
    for (name, mode) in [("run", "mode=0755"), ("tmp", "mode=1777")] {
        directory(&root.join(name), 0o755)?;
        fresh("tmpfs", &root.join(name), mode)?;
    }
    for name in ["run/netns", "run/lock", "root", "mnt"] {
        directory(&root.join(name), 0o755)?;
    }
    for name in ["var", "opt"] {
        let here = spec.directory.join(name);
        directory(&here, 0o755)?;
        directory(&root.join(name), 0o755)?;
        bind(&here, &root.join(name))?;
    }
    for name in ["lib/kubelet", "lib/containerd", "log", "cache"] {
        directory(&root.join("var").join(name), 0o755)?;
    }
    directory(&root.join("var/tmp"), 0o1777)?;
    let run = root.join("var/run");
    if !run.is_symlink() {
        symlink("../run", run)?;
    }
    let (upper, work) = (spec.directory.join("etc"), spec.directory.join("etc.work"));
    for path in [&upper, &work, &root.join("etc")] {
        directory(path, 0o755)?;
    }
    let options = format!(
        "lowerdir=/etc,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    fresh("overlay", &root.join("etc"), &options)
}

/// Mounts plain files over settings of the whole kernel.
fn pretend(spec: &Spec) -> Result<()> {
    for (number, (name, value)) in spec.pretended.iter().enumerate() {
        let file = PathBuf::from(format!("/run/sysctl.{number}"));
        fs::write(&file, format!("{value}\n"))?;
        bind(&file, &Path::new("/proc/sys").join(name))?;
    }
    Ok(())
}

fn directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("{}", path.display()))
}

fn fresh(kind: &str, path: &Path, options: &str) -> Result<()> {
    let options = (!options.is_empty()).then_some(options);
    mount(Some(kind), path, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mounting {kind} on {}", path.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(
        Some(from),
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn read_only(path: &Path) -> Result<()> {
    change(
        path,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
    )
}

fn change(path: &Path, flags: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, path, none, flags, none)
        .with_context(|| format!("changing the mount of {}", path.display()))
}

fn below(root: &Path, path: &Path) -> Result<PathBuf> {
    Ok(root.join(path.strip_prefix("/")?))
}
