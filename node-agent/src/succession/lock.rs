//! Who is in charge, and who is next: two files, each locked by one process. The kernel unlocks them
//! when the process ends, however it ends.

use std::{
    fs::{File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What an agent can be to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Post {
    /// May write the kernel's maps.
    InCharge,
    /// Gets ready to be in charge.
    Next,
}

/// A post that this process holds until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes a post if nobody holds it.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn try_take(dir: &Path, post: Post) -> io::Result<Option<Self>> {
        let path = path(dir, post);
        let at = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot lock {}: {error}", path.display()),
            )
        };
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        // For people and for messages; the lock is what counts.
        file.set_len(0).map_err(at)?;
        writeln!(file, "{}", std::process::id()).map_err(at)?;
        Ok(Some(Self { _file: file }))
    }

    /// Takes charge of a node that nobody is in charge of, unless somebody is next: between the moment when an
    /// agent gives up its post and the moment when its successor takes it the post is free and not vacant.
    ///
    /// # Errors
    /// When a file cannot be opened or locked.
    pub fn try_take_vacant(dir: &Path) -> io::Result<Option<Self>> {
        let Some(lock) = Self::try_take(dir, Post::InCharge)? else {
            return Ok(None);
        };
        Ok((!is_held(dir, Post::Next)?).then_some(lock))
    }

    /// Who holds a post, as it wrote itself: a process id, or nothing.
    #[must_use]
    pub fn holder(dir: &Path, post: Post) -> Option<u32> {
        let text = std::fs::read_to_string(path(dir, post)).ok()?;
        text.trim().parse().ok()
    }
}

/// Whether another process holds a post, without taking it: two who ask do not disturb each other.
fn is_held(dir: &Path, post: Post) -> io::Result<bool> {
    let file = match File::open(path(dir, post)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn path(dir: &Path, post: Post) -> PathBuf {
    dir.join(match post {
        Post::InCharge => "agent.lock",
        Post::Next => "successor.lock",
    })
}

#[cfg(test)]
mod tests {
    use super::{Lock, Post};

    #[test]
    fn a_post_is_held_by_one_and_free_when_that_one_goes() {
        let dir = std::env::temp_dir().join(format!("keelson-lock-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = Lock::try_take(&dir, Post::InCharge).unwrap().unwrap();
        assert!(Lock::try_take(&dir, Post::InCharge).unwrap().is_none());
        assert_eq!(Lock::holder(&dir, Post::InCharge), Some(std::process::id()));
        assert!(Lock::try_take(&dir, Post::Next).unwrap().is_some());
        drop(first);
        // As if the successor had not looked yet.
        let next = Lock::try_take(&dir, Post::Next).unwrap().unwrap();
        assert!(Lock::try_take_vacant(&dir).unwrap().is_none());
        drop(next);
        assert!(Lock::try_take_vacant(&dir).unwrap().is_some());
        assert!(Lock::try_take(&dir, Post::InCharge).unwrap().is_some());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
