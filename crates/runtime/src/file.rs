//! How a file is replaced so that a reader, or a crash, sees the old content or the new, never half of it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Permissions of a file that others may read.
pub const PUBLIC: u32 = 0o644;
/// Permissions of a file with secrets in it.
pub const PRIVATE: u32 = 0o600;

/// A file could not be replaced; the old content is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} while replacing {}", path.display())]
pub struct WriteError {
    /// The file that was to be replaced.
    pub path: PathBuf,
    /// What was being done.
    pub step: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Replaces `path` by `bytes`: temporary file beside it, fsync, rename, fsync of the directory. Mode [`PUBLIC`].
///
/// # Errors
/// The step that failed; a temporary file is removed again.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    atomic_write_mode(path, bytes, PUBLIC)
}

/// [`atomic_write`] with the permissions of the new file. The file never exists with wider ones.
///
/// # Errors
/// As [`atomic_write`].
pub fn atomic_write_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let at = |step| {
        move |source| WriteError {
            path: path.to_owned(),
            step,
            source,
        }
    };
    let (directory, temporary) = temporary_beside(path)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))
        .map_err(at("name a temporary file"))?;
    let result = fill(&temporary, bytes, mode)
        .map_err(at("write the temporary file"))
        .and_then(|()| fs::rename(&temporary, path).map_err(at("rename the temporary file")));
    if result.is_err() {
        // The first error is the one to report; a stray file is only litter.
        drop(fs::remove_file(&temporary));
        return result;
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(at("sync the directory"))
}

fn fill(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn temporary_beside(path: &Path) -> Option<(PathBuf, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(
        ".{}-{}.tmp",
        process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let temporary = directory.join(name);
    Some((directory, temporary))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        atomic_write(&path, b"one").unwrap();
        atomic_write_mode(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_names_the_file_and_keeps_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let error = atomic_write(&path, b"x").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
