//! Cgroups as the hooks know them: by id.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The id of the cgroup2 directory that this process is in, below `root`: the mount, or a directory
/// of it.
///
/// The id is the directory's inode number (`cgroup_id()` in include/linux/cgroup.h).
///
/// # Errors
/// When this process is in no cgroup2, or not below `root`.
pub fn own_id(root: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = unified_path(&text)
        .ok_or_else(|| io::Error::other("this process is in no cgroup2; mount cgroup2"))?;
    let directory = place(root, Path::new(path.trim_start_matches('/')));
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

/// The ids of a cgroup directory and of all below it. One that goes while they are read is left out.
#[must_use]
pub fn ids_below(root: &Path) -> HashSet<u64> {
    let mut ids = HashSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        if let Ok(metadata) = std::fs::metadata(&directory) {
            ids.insert(metadata.ino());
        }
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        open.extend(
            entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    ids
}

/// The network namespaces of pods, by uid: each that of a process whose cgroup path names the pod's uid,
/// as kubelets write it. One look at all processes of the node, which takes some 10 us for each.
///
/// Both forms are known: `pod<uid>` and, by systemd's rules, `pod<uid with underscores>`.
#[must_use]
pub fn netns_of_pods<'u>(uids: impl IntoIterator<Item = &'u str>) -> BTreeMap<&'u str, PathBuf> {
    let mut sought: Vec<(&str, [String; 2])> = uids
        .into_iter()
        .map(|uid| {
            let forms = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
            (uid, forms)
        })
        .collect();
    let mut found = BTreeMap::new();
    if sought.is_empty() {
        return found;
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten();
    for process in processes.filter_map(Result::ok) {
        let path = process.path();
        let Ok(text) = std::fs::read_to_string(path.join("cgroup")) else {
            continue;
        };
        sought.retain(|(uid, forms)| {
            let is_it = forms.iter().any(|form| text.contains(form));
            if is_it {
                found.insert(*uid, path.join("ns/net"));
            }
            !is_it
        });
        if sought.is_empty() {
            break;
        }
    }
    found
}

/// Where `path`, which begins at the mount, lies below `root`, which may be below the mount.
fn place(root: &Path, path: &Path) -> PathBuf {
    let whole = root.join(path);
    if whole.exists() {
        return whole;
    }
    let mut heads = path.ancestors().filter(|head| root.ends_with(head));
    let rest = heads.find_map(|head| path.strip_prefix(head).ok());
    rest.map_or(whole, |rest| root.join(rest))
}

/// The cgroup2 line of `/proc/PID/cgroup` starts with `0::` (man 7 cgroups).
fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ids_below, place, unified_path};

    #[test]
    fn a_root_below_the_mount_is_not_named_twice() {
        for (root, path, expected) in [
            ("/x/cgroup", "a/b", "/x/cgroup/a/b"),
            ("/x/cgroup/a", "a/b", "/x/cgroup/a/b"),
            ("/x/cgroup/a/b", "a/b/c", "/x/cgroup/a/b/c"),
            ("/x/cgroup/a/b", "a/b", "/x/cgroup/a/b"),
        ] {
            assert_eq!(place(Path::new(root), Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn all_directories_have_an_id_and_those_that_are_gone_have_none() {
        let root = std::env::temp_dir().join(format!("keelson-cgroups-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/cgroup.procs"), "").unwrap();
        let before = ids_below(&root);
        assert_eq!(before.len(), 3);
        std::fs::remove_dir(root.join("a/b")).unwrap();
        assert_eq!(ids_below(&root).len(), 2);
        assert!(ids_below(&root).is_subset(&before));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_unified_line_is_found_among_those_of_version_1() {
        assert_eq!(
            unified_path("4:memory:/a\n1:name=systemd:/b\n0::/kubepods/x\n"),
            Some("/kubepods/x")
        );
        assert_eq!(unified_path("4:memory:/a\n"), None);
    }
}
