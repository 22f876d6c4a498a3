//! Which manifests a folder holds, and how to see that one changed without reading it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
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

/// The names of the manifests in a folder: `*.yaml`, `*.yml` and `*.json` that are not hidden.
///
/// # Errors
/// It cannot be read.
pub fn list(folder: &Path) -> io::Result<BTreeSet<Arc<str>>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let manifest = [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if manifest && !name.starts_with('.') {
            names.insert(Arc::from(name));
        }
    }
    Ok(names)
}

/// Why a file is not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// There is none, by now.
    Absent,
    /// Something is wrong with it, in words that follow "the file".
    Wrong(String),
}

/// The content of a manifest. Whatever lies in the folder, this neither waits nor fills the memory: only regular files
/// of bounded size are read.
pub(crate) fn content(path: &Path) -> Result<Vec<u8>, Unread> {
    // Looked at before it is opened: to open a device can do something.
    check(&fs::metadata(path)?)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    check(&file.metadata()?)?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_SIZE) {
        return Ok(bytes);
    }
    Err(too_large())
}

fn check(meta: &fs::Metadata) -> Result<(), Unread> {
    let kind = meta.file_type();
    let what = if kind.is_file() {
        return if meta.size() > MAX_SIZE {
            Err(too_large())
        } else {
            Ok(())
        };
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Unread::Wrong(format!(
        "is {what}; only regular files are read"
    )))
}

fn too_large() -> Unread {
    let megabytes = MAX_SIZE >> 20;
    Unread::Wrong(format!("is larger than {megabytes} MiB; split it"))
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            _ => Self::Wrong(format!("cannot be read: {error}")),
        }
    }
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

/// Of one file. 100,000 pods fit.
const MAX_SIZE: u64 = 64 << 20;
/// File times move in ticks of the kernel; within this time two writes may look like one.
const RACY: Duration = Duration::from_millis(50);
