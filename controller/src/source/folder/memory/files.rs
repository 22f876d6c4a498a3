//! Which manifests a folder holds, and how to see that one changed without reading it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Changes whenever a file may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
    /// Read so soon after its change that a second change could have the same time.
    pub(super) racy: bool,
}

/// The names of the manifests in a folder.
pub(super) fn list(folder: &Path) -> io::Result<BTreeSet<Arc<str>>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let manifest = [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if manifest
            && !name.starts_with('.')
            && !fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir())
        {
            names.insert(Arc::from(name));
        }
    }
    Ok(names)
}

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    let age = SystemTime::now()
        .duration_since(meta.modified().ok()?)
        .unwrap_or_default();
    Some(Stamp {
        inode: meta.ino(),
        size: meta.size(),
        changed: (meta.ctime(), meta.ctime_nsec()),
        racy: age < RACY,
    })
}

/// File times move in ticks of the kernel; within this time two writes may look like one.
const RACY: Duration = Duration::from_millis(50);
