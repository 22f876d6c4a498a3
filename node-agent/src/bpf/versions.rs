//! Pins of other versions of the contract: an agent with another ABI attaches its own programs
//! beside them, and retires them when its own are complete.
//!
//! While two versions are attached both are asked. A `connect` passes only if both let it; in a
//! namespace's `sk_lookup` a listener that one of them chose goes before another's refusal, and a
//! refusal before another's "pass". So a connection is never decided by nobody, and what only the
//! older version knows of (a direct connection that it noted, say) is still its to decide.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use super::{KernelError, link};

/// Programs that stay attached until the version after the next: they show an application what a
/// direct connection dialled, which only the version knows that led it. They decide nothing.
const KEPT: [&str; 2] = ["getpeername4_dialled", "getpeername6_dialled"];

/// Whether programs of a version other than `own` are attached that decide anything.
pub(super) fn attached(bpf_dir: &Path, own: &Path) -> bool {
    // What cannot be seen may be attached.
    others(bpf_dir, own).map_or(true, |dirs| dirs.iter().any(|dir| decides(dir)))
}

/// Inode numbers of the network namespaces that live and in which `sk_lookup` of a pod of the version
/// pinned at `dir` is attached.
pub(super) fn namespaces(dir: &Path) -> io::Result<BTreeSet<u32>> {
    let links = match std::fs::read_dir(dir.join("links")) {
        Ok(links) => links,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut inodes = BTreeSet::new();
    for link in links {
        let link = link?.path();
        if !is_lookup(&link) {
            continue;
        }
        match link::target(&link) {
            Ok(0) => {}
            Ok(inode) => drop(inodes.insert(inode)),
            // Detached meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inodes)
}

/// Detaches the programs of all versions other than `own`.
pub(super) fn retire(bpf_dir: &Path, own: &Path) -> Result<(), KernelError> {
    let others = others(bpf_dir, own).map_err(|source| KernelError::Link {
        pin: bpf_dir.to_owned(),
        source,
    })?;
    let (active, kept): (Vec<PathBuf>, Vec<PathBuf>) =
        others.into_iter().partition(|dir| decides(dir));
    if active.is_empty() {
        return Ok(());
    }
    for dir in &kept {
        remove(dir)?;
    }
    for dir in active {
        retire_one(&dir)?;
        tracing::info!(dir = %dir.display(), "programs of another version detached");
    }
    Ok(())
}

fn retire_one(dir: &Path) -> Result<(), KernelError> {
    let mut links = entries(&dir.join("links"));
    // `pod-N-lookup` and guards before the programs of the node, which write what those read.
    links.sort_by_key(|link| !is_of_pod(link));
    for link in links.iter().filter(|link| !is_kept(link)) {
        link::detach(link)?;
    }
    // Programs that stay attached hold their maps; nobody has to find those any more.
    for map in entries(dir).iter().filter(|path| !path.is_dir()) {
        link::remove(map)?;
    }
    Ok(())
}

fn decides(dir: &Path) -> bool {
    entries(&dir.join("links"))
        .iter()
        .any(|link| !is_kept(link))
}

fn is_kept(link: &Path) -> bool {
    KEPT.iter().any(|kept| link.ends_with(kept))
}

fn is_of_pod(link: &Path) -> bool {
    link.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"pod-"))
}

fn is_lookup(link: &Path) -> bool {
    is_of_pod(link)
        && link
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().ends_with(b"-lookup"))
}

/// The directories of the other versions.
pub(super) fn others(bpf_dir: &Path, own: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(bpf_dir)? {
        let dir = entry?.path();
        if dir != own && dir.is_dir() {
            dirs.push(dir);
        }
    }
    Ok(dirs)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect()
}

fn remove(dir: &Path) -> Result<(), KernelError> {
    std::fs::remove_dir_all(dir).map_err(|source| KernelError::Link {
        pin: dir.to_owned(),
        source,
    })
}
