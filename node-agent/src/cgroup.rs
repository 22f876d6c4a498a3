//! Cgroups as the hooks know them: by id.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The id of the cgroup2 directory that this process is in, below the mount at `root`.
///
/// The id is the directory's inode number (`cgroup_id()` in include/linux/cgroup.h).
///
/// # Errors
/// When this process is in no cgroup2, or `root` is not where it is mounted.
pub fn own_id(root: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = unified_path(&text)
        .ok_or_else(|| io::Error::other("this process is in no cgroup2; mount cgroup2"))?;
    let directory = root.join(path.trim_start_matches('/'));
    let metadata = std::fs::metadata(&directory).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!(
                "cannot find the agent's own cgroup {}: {e}",
                directory.display()
            ),
        )
    })?;
    Ok(metadata.ino())
}

/// The network namespace of a process whose cgroup path names the pod's uid, as kubelets write it.
///
/// Both forms are known: `pod<uid>` and, by systemd's rules, `pod<uid with underscores>`.
#[must_use]
pub fn netns_of_pod(uid: &str) -> Option<PathBuf> {
    let forms = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.filter_map(Result::ok) {
        let path = process.path();
        let Ok(text) = std::fs::read_to_string(path.join("cgroup")) else {
            continue;
        };
        if forms.iter().any(|form| text.contains(form)) {
            return Some(path.join("ns/net"));
        }
    }
    None
}

/// The cgroup2 line of `/proc/PID/cgroup` starts with `0::` (man 7 cgroups).
fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::unified_path;

    #[test]
    fn the_unified_line_is_found_among_those_of_version_1() {
        assert_eq!(
            unified_path("4:memory:/a\n1:name=systemd:/b\n0::/kubepods/x\n"),
            Some("/kubepods/x")
        );
        assert_eq!(unified_path("4:memory:/a\n"), None);
    }
}
