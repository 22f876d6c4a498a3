//! Cgroups as the hooks know them: by id.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Moves this process into a cgroup of its own, below the one that it is in, and gives the id of that.
///
/// The kernel half exempts the agent's connections inside pods by this id. Whatever the process was started
/// in (a container's cgroup that a debugging shell shares, a session, the root where all kernels put what
/// nobody has placed) is not the agent's alone. `root` is the mount of cgroup2, or a directory of it. The id is
/// the directory's inode number (`cgroup_id()` in include/linux/cgroup.h).
///
/// # Errors
/// When this process is in no cgroup2, not below `root`, or may not make a cgroup; the error says what would
/// be right.
pub fn enter_own(root: &Path) -> io::Result<u64> {
    let directory = own_directory(root)?;
    forget_earlier(&directory);
    let own = directory.join(format!("{OWN_PREFIX}{}", std::process::id()));
    let fail = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!(
                "cannot make the cgroup {}, by which the agent's own connections are known: {error}; cgroup2 must be mounted writable",
                own.display()
            ),
        )
    };
    match std::fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    // Below a threaded cgroup there can be no other.
    let kind = own.join("cgroup.type");
    if std::fs::read_to_string(&kind).is_ok_and(|kind| kind.trim() == "domain invalid") {
        std::fs::write(&kind, "threaded").map_err(fail)?;
    }
    std::fs::write(own.join("cgroup.procs"), "0").map_err(fail)?;
    Ok(std::fs::metadata(&own).map_err(fail)?.ino())
}

/// Whether an agent could make its cgroup, without staying in it; says where.
///
/// # Errors
/// As [`enter_own`].
pub fn try_own(root: &Path) -> io::Result<String> {
    let directory = own_directory(root)?;
    let own = directory.join(format!("{OWN_PREFIX}probe-{}", std::process::id()));
    std::fs::create_dir(&own)
        .and_then(|()| std::fs::remove_dir(&own))
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot make the cgroup {}: {error}", own.display()),
            )
        })?;
    Ok(format!("cgroup2 at {}, writable", root.display()))
}

/// Of the cgroups that agents make for themselves.
const OWN_PREFIX: &str = "keelson-agent-";

/// The directory of the cgroup that this process is in.
fn own_directory(root: &Path) -> io::Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = unified_path(&text)
        .ok_or_else(|| io::Error::other("this process is in no cgroup2; mount cgroup2"))?;
    let named = place(root, Path::new(path.trim_start_matches('/')));
    if has_us(&named) {
        return Ok(named);
    }
    // In a cgroup namespace of our own the path does not begin at the mount.
    let mut all = directories_below(root);
    all.find(|directory| has_us(directory)).ok_or_else(|| {
        io::Error::other(format!(
            "the agent's own cgroup, {path}, is not below {}; --cgroup-root must name where cgroup2 is mounted",
            root.display()
        ))
    })
}

fn has_us(directory: &Path) -> bool {
    let own = std::process::id().to_string();
    // `cgroup.procs` cannot be read in threaded cgroups.
    std::fs::read_to_string(directory.join("cgroup.threads"))
        .is_ok_and(|threads| threads.lines().any(|thread| thread == own))
}

/// Removes the cgroups of agents that have ended; those of others cannot be removed.
fn forget_earlier(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(OWN_PREFIX) {
            let _in_use = std::fs::remove_dir(entry.path()).is_err();
        }
    }
}

/// The ids of a cgroup directory and of all below it. One that goes while they are read is left out.
#[must_use]
pub fn ids_below(root: &Path) -> HashSet<u64> {
    directories_below(root)
        .filter_map(|directory| std::fs::metadata(directory).ok())
        .map(|metadata| metadata.ino())
        .collect()
}

/// A directory and all below it.
fn directories_below(root: &Path) -> impl Iterator<Item = PathBuf> {
    let mut open = vec![root.to_owned()];
    std::iter::from_fn(move || {
        let directory = open.pop()?;
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        open.extend(
            entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        Some(directory)
    })
}

/// The network namespaces of pods, by uid: those of all processes whose cgroup path names the pod's uid, as
/// kubelets write it, each namespace once. One look at all processes of the node, which takes some 10 us for
/// each.
///
/// Both forms are known: `pod<uid>` and, by systemd's rules, `pod<uid with underscores>`.
#[must_use]
pub fn netns_of_pods<'u>(
    uids: impl IntoIterator<Item = &'u str>,
) -> BTreeMap<&'u str, Vec<PathBuf>> {
    let sought: Vec<(&str, [String; 2])> = uids
        .into_iter()
        .map(|uid| {
            let forms = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
            (uid, forms)
        })
        .collect();
    let mut found: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    if sought.is_empty() {
        return found;
    }
    let mut seen = HashSet::new();
    for process in processes() {
        let Ok(text) = std::fs::read_to_string(process.join("cgroup")) else {
            continue;
        };
        let named = |forms: &[String; 2]| forms.iter().any(|form| text.contains(form));
        for (uid, _) in sought.iter().filter(|(_, forms)| named(forms)) {
            let path = process.join("ns/net");
            // One that has just ended is in no namespace.
            let Ok(netns) = std::fs::metadata(&path) else {
                continue;
            };
            if seen.insert((*uid, netns.ino())) {
                found.entry(uid).or_default().push(path);
            }
        }
    }
    found
}

/// For each of these network namespaces, by inode number, that a process other than this one is in, the path
/// by which it is found there.
#[must_use]
pub fn inhabited(namespaces: &HashSet<u32>) -> BTreeMap<u32, PathBuf> {
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    let mut found = BTreeMap::new();
    for process in processes().filter(|process| *process != own) {
        let path = process.join("ns/net");
        let inode = std::fs::metadata(&path).map(|netns| u32::try_from(netns.ino()));
        if let Ok(Ok(inode)) = inode
            && namespaces.contains(&inode)
        {
            found.entry(inode).or_insert(path);
        }
    }
    found
}

/// The directories of all processes, and some others, below `/proc`.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path())
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
