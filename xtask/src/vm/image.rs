//! What the machine boots from: a first file system in memory that loads the disk's driver, a disk with
//! a small Debian and the kernel's modules, and a disk with the programs and tests.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Selection, copy, kernel};
use crate::{build, shell};

/// What the machine is started with.
#[derive(Debug)]
pub(crate) struct Disks {
    /// The first file system, a compressed archive.
    pub(crate) initial: PathBuf,
    /// Debian with the kernel's modules.
    pub(crate) system: PathBuf,
    /// Programs, tests, and what runs them.
    pub(crate) programs: PathBuf,
}

/// Makes all three; the system's disk is kept.
///
/// # Errors
/// A program that makes them failed, or a file could not be written.
pub(crate) fn make(
    kernel: &kernel::Files,
    tests: &[PathBuf],
    selection: &Selection<'_>,
    place: &Path,
) -> Result<Disks> {
    let debian = debian(place)?;
    Ok(Disks {
        initial: initial(kernel, place)?,
        system: system(kernel, &debian, place)?,
        programs: programs(kernel, tests, selection, place)?,
    })
}

/// A small Debian 12 in a directory, made once.
fn debian(place: &Path) -> Result<PathBuf> {
    let root = place.join("debian");
    let complete = place.join("debian.complete");
    if complete.exists() {
        return Ok(root);
    }
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    println!("making a small Debian 12 for the virtual machine (about a minute)");
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", PACKAGES, "bookworm"])
        .arg(&root)
        .args(mirror());
    shell::run(command.stdout(Stdio::null()))?;
    fs::write(&complete, "")?;
    Ok(root)
}

/// Where this system gets Debian's packages from; none leaves it to debootstrap.
fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(CODENAME)",
        "Created-By: Packages",
    ]);
    let text = shell::read(&mut command).ok()?;
    text.lines().find_map(|line| {
        let (address, release) = line.split_once(' ')?;
        (release == "bookworm").then(|| address.to_owned())
    })
}

/// Loads the drivers of the disk, and goes on there.
fn initial(kernel: &kernel::Files, place: &Path) -> Result<PathBuf> {
    let root = tempdir(place, "initial")?;
    for directory in ["bin", "root", "dev", "proc", "modules"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let busybox = shell::which("busybox").context("busybox is not installed")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    let mut script = String::from(
        "#!/bin/busybox sh\nbusybox=/bin/busybox\n$busybox mount -t devtmpfs dev /dev\n",
    );
    for (i, module) in kernel::modules(kernel, DRIVERS)?.iter().enumerate() {
        let file = root.join(format!("modules/{i}.ko"));
        if module.extension().is_some_and(|end| end == "xz") {
            let unpacked = Command::new("xz").arg("-dc").arg(module).output()?;
            if !unpacked.status.success() {
                bail!("xz cannot unpack {}", module.display());
            }
            fs::write(&file, unpacked.stdout)?;
        } else {
            copy(module, &file)?;
        }
        script.push_str(&format!("$busybox insmod /modules/{i}.ko\n"));
    }
    script.push_str(
        "tries=0\n\
         while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do $busybox sleep 0.1; tries=$((tries + 1)); done\n\
         $busybox mount -t ext4 /dev/vda /root\n\
         exec $busybox switch_root /root /sbin/keelson-init\n",
    );
    executable(&root.join("init"), &script)?;
    let archive = place.join(format!("{}.initial.gz", kernel.release));
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc | gzip -1 > \"$0\""])
        .arg(&archive)
        .current_dir(&root);
    shell::run(&mut pack)?;
    fs::remove_dir_all(&root)?;
    Ok(archive)
}

/// Debian, the kernel's modules and the program that the kernel starts, as a disk.
fn system(kernel: &kernel::Files, debian: &Path, place: &Path) -> Result<PathBuf> {
    let disk = place.join(format!("{}.ext4", kernel.release));
    let made_by = place.join(format!("{}.init", kernel.release));
    if disk.exists() && fs::read_to_string(&made_by).is_ok_and(|text| text == INIT) {
        return Ok(disk);
    }
    executable(&debian.join("sbin/keelson-init"), INIT)?;
    fs::create_dir_all(debian.join("keelson"))?;
    let modules = debian.join("lib/modules");
    if modules.exists() {
        fs::remove_dir_all(&modules)?;
    }
    let mut command = Command::new("cp");
    command
        .arg("-a")
        .arg(kernel.root.join("lib/modules"))
        .arg(&modules);
    shell::run(&mut command)?;
    disk_of(debian, &disk, "3G")?;
    fs::write(&made_by, INIT)?;
    Ok(disk)
}

/// The programs, the tests and the script that runs them, as a disk of each run.
fn programs(
    kernel: &kernel::Files,
    tests: &[PathBuf],
    selection: &Selection<'_>,
    place: &Path,
) -> Result<PathBuf> {
    let root = tempdir(place, "programs")?;
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("tests"))?;
    let built = build::programs(false)?;
    for entry in fs::read_dir(&built)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("keelson-") && !name.contains('.') && path.is_file() {
            copy(&path, &root.join("bin").join(name))?;
        }
    }
    let mut script = String::from(RUN);
    for test in tests {
        let name = test
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        copy(test, &root.join("tests").join(&name))?;
        script.push_str(&format!(
            "run /keelson/tests/{name}{}\n",
            arguments(selection)
        ));
    }
    script.push_str(AGAIN);
    executable(&root.join("run"), &script)?;
    let disk = place.join(format!("{}.programs.ext4", kernel.release));
    disk_of(&root, &disk, "2G")?;
    fs::remove_dir_all(&root)?;
    Ok(disk)
}

/// The test program's arguments, each quoted for the shell.
fn arguments(selection: &Selection<'_>) -> String {
    let skips = selection.skip.iter().flat_map(|name| ["--skip", name]);
    let all = selection.filters.iter().map(String::as_str).chain(skips);
    all.chain(selection.rest.iter().map(String::as_str))
        .map(|word| format!(" '{}'", word.replace('\'', r"'\''")))
        .collect()
}

fn disk_of(root: &Path, disk: &Path, size: &str) -> Result<()> {
    if disk.exists() {
        fs::remove_file(disk)?;
    }
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-d"])
        .arg(root)
        .arg(disk)
        .arg(size);
    shell::run(&mut command)
}

/// An empty directory for something that is packed and removed.
fn tempdir(place: &Path, name: &str) -> Result<PathBuf> {
    let path = place.join(name);
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

fn executable(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What the disk needs, whether it is built in or a module.
const DRIVERS: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

const PACKAGES: &str = "--include=ca-certificates,curl,iproute2,iptables,kmod,nftables,openssl,procps,python3-minimal,tcpdump";

/// How the test programs are run. Waiting for something takes longer there.
const RUN: &str = r#"#!/bin/sh
export KEELSON_BIN_DIR=/keelson/bin KEELSON_PATIENCE=6
code=0
run() {
    "$@" 2>&1 | tee /tmp/said
    sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' /tmp/said > /tmp/failed
    if [ -s /tmp/failed ]; then echo "$1" $(cat /tmp/failed) >> /tmp/again; fi
    grep -q '^test result: ' /tmp/said || code=1
}
"#;

/// Tests that failed are run once more, each program's alone; the number at the end is that of the second run.
const AGAIN: &str = r#"if [ -s /tmp/again ]; then
    echo "keelson: once more, those that failed"
    while read -r program tests; do
        $program --exact $tests </dev/null || code=1
    done < /tmp/again
fi
exit $code
"#;

/// The first program of the machine. cgroup v2 is alone, as on most nodes.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -o remount,rw /
ip link set lo up
for module in veth bridge dummy overlay; do modprobe $module; done
sysctl -qw kernel.printk='3 4 1 3' fs.file-max=2000000 fs.nr_open=1048576
ulimit -n 1048576
mount -t ext4 /dev/vdb /keelson
echo "keelson: $(uname -r) with $(nproc) processors"
/keelson/run
echo "keelson: ended with $?"
sync
echo b > /proc/sysrq-trigger
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_selection_reaches_the_test_program_word_by_word() {
        let (filters, skip, rest) = (
            ["capture".to_owned()],
            ["it's slow".to_owned()],
            ["--nocapture".to_owned()],
        );
        let selection = Selection {
            filters: &filters,
            skip: &skip,
            rest: &rest,
            limit: Duration::from_secs(1),
        };
        assert_eq!(
            arguments(&selection),
            r" 'capture' '--skip' 'it'\''s slow' '--nocapture'"
        );
    }
}
