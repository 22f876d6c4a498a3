//! What the running kernel must be able to do, which no package brings.

use std::fs;
use std::path::Path;

use crate::setup::{Need, State};

/// BTF, cgroup2, bpffs, and a kernel that is new enough.
pub(crate) fn needs() -> Vec<Need> {
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let table = [
        (
            format!("a kernel from 6.1 on (is: {release})"),
            is_recent(release),
            "Debian 12 and Ubuntu 24.04 have one",
        ),
        (
            "the kernel's BTF".to_owned(),
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "a kernel built with CONFIG_DEBUG_INFO_BTF=y; those of Debian and Ubuntu are",
        ),
        (
            "cgroup2, alone or beside cgroup v1".to_owned(),
            mounts
                .lines()
                .any(|line| line.split(' ').nth(2) == Some("cgroup2")),
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        (
            "the bpf file system (the lab mounts it)".to_owned(),
            file_systems.lines().any(|line| line.ends_with("\tbpf")),
            "a kernel built with CONFIG_BPF_SYSCALL=y",
        ),
    ];
    table
        .into_iter()
        .map(|(what, present, advice)| Need {
            what,
            state: if present {
                State::Present
            } else {
                State::Person(advice.to_owned())
            },
        })
        .collect()
}

fn is_recent(release: &str) -> bool {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut next = || {
        numbers
            .next()
            .and_then(|number| number.parse::<u32>().ok())
            .unwrap_or(0)
    };
    (next(), next()) >= (6, 1)
}

#[cfg(test)]
mod tests {
    use super::is_recent;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(is_recent("6.18.44-cloud"));
        assert!(is_recent("6.1.0-37-amd64"));
        assert!(is_recent("7.0-rc1"));
        assert!(!is_recent("6.0.12"));
        assert!(!is_recent("5.15.0"));
    }
}
