//! `keelson check`: can this node run an agent, and does the mesh do what is wanted.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::output::Answer;
use crate::reach::Mesh;
use crate::status;

/// Check a node before an agent is started there, or the mesh that runs.
///
/// With --before this machine is looked at: kernel, BTF, cgroups, the places where the agent keeps its programs, memory
/// that may be locked. Without it every agent is asked: ready, in step, pods wanted against pods captured, certificates.
///
/// Exit codes: 0, all is well; 1, something is not; 2, nobody could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at this machine, where no agent need run.
    #[arg(long)]
    pub(crate) before: bool,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    good: bool,
    said: String,
}

/// Looks at this machine.
pub(crate) fn before() -> Result<Answer> {
    show(machine(Path::new("/")))
}

/// Asks the mesh.
pub(crate) fn after(mesh: &Mesh) -> Result<Answer> {
    let status = status::look(mesh, None)?;
    let mut findings: Vec<Finding> = status
        .complaints()
        .into_iter()
        .map(|said| Finding {
            what: "mesh".to_owned(),
            good: false,
            said,
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding {
            what: "mesh".to_owned(),
            good: status.is_good(),
            said: "every agent is ready, in step, and has captured what is wanted".to_owned(),
        });
    }
    show(findings)
}

fn show(findings: Vec<Finding>) -> Result<Answer> {
    let mut text = String::new();
    for Finding { what, good, said } in &findings {
        let mark = if *good { "ok" } else { "NO" };
        text.push_str(&format!("{mark}  {what}: {said}\n"));
    }
    let is_good = findings.iter().all(|finding| finding.good);
    Ok(Answer::good(&findings, text)?.but(is_good))
}

/// What an agent needs of the machine whose root is at `root`.
fn machine(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let finding = |what: &str, good: bool, yes: String, no: &str| Finding {
        what: what.to_owned(),
        good,
        said: if good { yes } else { no.to_owned() },
    };
    let release = read("proc/sys/kernel/osrelease").trim().to_owned();
    let mounts = read("proc/self/mounts");
    let mounted = |kind: &str| {
        let of_kind = |line: &&str| line.split(' ').nth(2) == Some(kind);
        let line = mounts.lines().find(of_kind)?;
        line.split(' ').nth(1).map(str::to_owned)
    };
    let (cgroup, bpf) = (mounted("cgroup2"), mounted("bpf"));
    vec![
        finding(
            "kernel",
            version(&release).is_some_and(|version| version >= NEEDED),
            release.clone(),
            &format!(
                "{release} is too old; an agent needs Linux {}.{} or newer",
                NEEDED.0, NEEDED.1
            ),
        ),
        finding(
            "BTF",
            root.join("sys/kernel/btf/vmlinux").exists(),
            "/sys/kernel/btf/vmlinux".to_owned(),
            "the kernel has no BTF (/sys/kernel/btf/vmlinux): build it with CONFIG_DEBUG_INFO_BTF",
        ),
        finding(
            "cgroup v2",
            cgroup.is_some(),
            cgroup.unwrap_or_default(),
            "cgroup2 is mounted nowhere: mount it (mount -t cgroup2 none /sys/fs/cgroup), beside v1 if need be",
        ),
        finding(
            "bpffs",
            bpf.is_some(),
            bpf.unwrap_or_default(),
            "no bpf file system is mounted: mount -t bpf none /sys/fs/bpf",
        ),
    ]
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The oldest kernel that an agent runs on (docs/kernels.md).
const NEEDED: (u32, u32) = (6, 1);

#[cfg(test)]
mod tests {
    use super::*;

    fn machine_with(release: &str, mounts: &str, has_btf: bool) -> Vec<bool> {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("makes it");
            fs::write(path, text).expect("writes");
        };
        write("proc/sys/kernel/osrelease", release);
        write("proc/self/mounts", mounts);
        if has_btf {
            write("sys/kernel/btf/vmlinux", "");
        }
        machine(root.path()).iter().map(|one| one.good).collect()
    }

    #[test]
    fn what_an_agent_needs_is_looked_for() {
        let mounts = "none /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        let all = machine_with("6.1.0-28-amd64\n", mounts, true);
        assert_eq!(all, [true; 4]);
        assert_eq!(machine_with("6.12.3+", mounts, true), [true; 4]);
        assert_eq!(
            machine_with("5.15.0-100-generic", mounts, true),
            [false, true, true, true]
        );
        assert_eq!(
            machine_with("6.1.0", "", false),
            [true, false, false, false]
        );
    }
}
