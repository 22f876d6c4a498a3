//! The directory of one lab below `/run/keelson-lab`: who owns it and what lies where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::record::ProcessRecord;

/// The files of one lab.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the directory and writes this process down as its owner.
    pub(crate) fn create(id: &str) -> Result<Self> {
        check_id(id)?;
        let path = Path::new(BASE).join(id);
        // Until the owner is written down, this lab looks like one whose owner died.
        let _alone = alone()?;
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "a lab with the id {id} exists already ({}): remove it first, or choose another id",
                path.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
        }
        let dir = Self { path };
        fs::write(dir.path.join(OWNER), ProcessRecord::current()?.to_text())?;
        for part in ["manifests", "logs", "nodes", "controller", "hosts"] {
            fs::create_dir(dir.path.join(part))?;
        }
        Ok(dir)
    }

    /// The directory of a lab that may or may not exist.
    pub(crate) fn of(id: &str) -> Result<Self> {
        check_id(id)?;
        Ok(Self {
            path: Path::new(BASE).join(id),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path
            .join("logs")
            .join(format!("{}.log", name.replace('/', "_")))
    }

    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node)
    }

    pub(crate) fn controller(&self) -> PathBuf {
        self.path.join("controller")
    }

    pub(crate) fn hosts(&self, namespace: &str) -> PathBuf {
        self.path.join("hosts").join(namespace)
    }

    /// Makes a directory of a node that lives in memory, as the agent wants for its keys.
    pub(crate) fn tmpfs(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path)?;
        mount(
            Some("keelson-lab"),
            path,
            Some("tmpfs"),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
            Some("size=64m,mode=0700"),
        )
        .with_context(|| format!("mounting a tmpfs on {}", path.display()))
    }

    /// Unmounts what is mounted inside and removes the directory; does nothing if it is gone.
    pub(crate) fn remove(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(target).starts_with(&self.path) {
                umount2(target, MntFlags::MNT_DETACH)
                    .with_context(|| format!("unmounting {target}"))?;
            }
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The process that owns this lab, if that is written down and the process lives.
    pub(crate) fn live_owner(&self) -> Option<i32> {
        let text = fs::read_to_string(self.path.join(OWNER)).ok()?;
        let owner = ProcessRecord::parse(&text)?;
        owner.lives().then_some(owner.pid)
    }
}

/// While this is held, nobody else, in this process or another, makes or removes a lab's files:
/// in the middle of either, a lab seems to have no living owner, and its parts to fail.
pub(crate) fn alone() -> Result<fs::File> {
    fs::create_dir_all(BASE).with_context(|| format!("making {BASE}"))?;
    let base = fs::File::open(BASE).with_context(|| format!("opening {BASE}"))?;
    base.lock().with_context(|| format!("locking {BASE}"))?;
    Ok(base)
}

/// The ids of the labs that have a directory.
pub(crate) fn ids() -> Vec<String> {
    let Ok(entries) = fs::read_dir(BASE) else {
        return Vec::new();
    };
    let mut ids: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|id| check_id(id).is_ok())
        .collect();
    ids.sort();
    ids
}

/// An id becomes part of names of namespaces and directories: short, lower case, no dash.
fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if id.is_empty() || id.len() > 16 || !id.bytes().all(plain) {
        bail!("{id:?} is no id for a lab: 1 to 16 of a-z and 0-9");
    }
    Ok(())
}

const BASE: &str = "/run/keelson-lab";
const OWNER: &str = "owner";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_lab_that_is_being_made_is_not_taken_for_one_whose_owner_died() {
        let ids: Vec<String> = (0..300).map(|_| crate::unique_id()).collect();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _removed = crate::remove_all_stale().unwrap();
                }
            });
            let made: Result<Vec<RunDir>> = ids.iter().map(|id| RunDir::create(id)).collect();
            done.store(true, Ordering::Relaxed);
            for dir in made.unwrap() {
                assert!(dir.live_owner().is_some(), "{dir:?}");
                dir.remove().unwrap();
            }
        });
    }

    #[test]
    fn ids_that_could_name_somebody_elses_things_are_refused() {
        for bad in ["", "a-b", "..", "a/b", "UPPER", "seventeenletters1"] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        check_id("a1f").unwrap();
    }
}
