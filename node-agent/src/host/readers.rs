//! The kernel waits less for its readers while the agent attaches programs and detaches them.
//!
//! Every change of what looks at an interface waits until no processor reads the old list, and all configuration of networks
//! on the node waits with it (`tcx_entry_sync`, kernel/bpf/tcx.c, called under RTNL). The usual wait takes two or three ticks
//! of the clock, 8 to 12 ms; the expedited one asks the other processors at once and takes 0.05 ms. The kernel itself does that for
//! each interface that is removed (`synchronize_net`, net/core/dev.c). Its switch, `/sys/kernel/rcu_expedited`, counts for
//! the whole node, so it is on only as long as something is attached. Where an administrator has set it, or has set
//! `rcu_normal`, which goes before it, nothing changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

/// The name of the file that says that the switch is on by our hand: an agent that is killed leaves it on.
const MARKER: &str = "rcu-expedited";

/// The switch where nobody has said another.
pub const DEFAULT: &str = "/sys/kernel/rcu_expedited";

static SWITCH: OnceLock<Switch> = OnceLock::new();

/// Has the kernel hurry by the switch at `path`, and no switch where that is empty; `runtime_dir` forgets with the kernel, at
/// a reboot. What an agent that was killed has left on is turned off.
pub fn hurry_by(path: &Path, runtime_dir: &Path) {
    let switch = Switch::new(path, runtime_dir);
    if let Err(error) = switch.undo() {
        tracing::warn!(path = %path.display(), %error, "cannot turn off what an earlier agent has left on");
    }
    drop(SWITCH.set(switch));
}

/// Turns off what an agent with this directory has left on, for who leaves the node.
///
/// # Errors
/// When it cannot be turned off.
pub fn undo(runtime_dir: &Path) -> io::Result<()> {
    match SWITCH.get() {
        Some(switch) => switch.undo(),
        None => Switch::new(Path::new(DEFAULT), runtime_dir).undo(),
    }
}

/// The kernel hurries as long as the answer lives. Several may live at a time.
#[must_use]
pub fn hurry() -> Option<Hurry<'static>> {
    SWITCH.get().and_then(Switch::hurry)
}

struct Switch {
    path: PathBuf,
    marker: PathBuf,
    /// How many need it now.
    users: Mutex<u32>,
}

/// See [`hurry`].
pub struct Hurry<'s>(&'s Switch);

impl Switch {
    fn new(path: &Path, runtime_dir: &Path) -> Self {
        Self {
            path: path.to_owned(),
            marker: runtime_dir.join(MARKER),
            users: Mutex::new(0),
        }
    }

    /// Turns off what was left on.
    fn undo(&self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() || !self.marker.exists() {
            return Ok(());
        }
        fs::write(&self.path, "0")?;
        fs::remove_file(&self.marker)
    }

    fn hurry(&self) -> Option<Hurry<'_>> {
        if self.path.as_os_str().is_empty() {
            return None;
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            // On already: that is somebody else's wish. What cannot be read or written is slower, and no more.
            if fs::read(&self.path).ok()?.trim_ascii() != b"0" {
                return None;
            }
            fs::write(&self.marker, "").ok()?;
            if let Err(error) = fs::write(&self.path, "1") {
                tracing::debug!(path = %self.path.display(), %error, "the kernel does not hurry");
                drop(fs::remove_file(&self.marker));
                return None;
            }
        }
        *users += 1;
        Some(Hurry(self))
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        let mut users = self.0.users.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0
            && let Err(error) = self.0.undo()
        {
            tracing::warn!(path = %self.0.path.display(), %error, "the kernel goes on hurrying");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Switch;

    fn switch(said: &str) -> (tempfile::TempDir, Switch) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("switch");
        fs::write(&path, said).unwrap();
        let switch = Switch::new(&path, dir.path());
        (dir, switch)
    }

    fn says(switch: &Switch) -> String {
        fs::read_to_string(&switch.path).unwrap().trim().to_owned()
    }

    #[test]
    fn it_is_on_as_long_as_anybody_needs_it() {
        let (_dir, switch) = switch("0\n");
        let first = switch.hurry();
        let second = switch.hurry();
        assert_eq!(says(&switch), "1");
        drop(first);
        assert_eq!(says(&switch), "1");
        drop(second);
        assert_eq!(says(&switch), "0");
        assert!(!switch.marker.exists());
    }

    #[test]
    fn what_an_administrator_has_turned_on_stays_on() {
        let (_dir, switch) = switch("1\n");
        drop(switch.hurry());
        switch.undo().unwrap();
        assert_eq!(says(&switch), "1");
    }

    #[test]
    fn what_an_agent_that_was_killed_has_left_on_is_turned_off() {
        let (dir, killed) = switch("0\n");
        let _on = std::mem::ManuallyDrop::new(killed.hurry());
        assert_eq!(says(&killed), "1");
        let next = Switch::new(&killed.path, dir.path());
        next.undo().unwrap();
        assert_eq!(says(&next), "0");
        assert!(!next.marker.exists());
    }

    #[test]
    fn without_a_switch_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("none"), std::path::PathBuf::new()] {
            let switch = Switch::new(&path, dir.path());
            assert!(switch.hurry().is_none());
            assert!(!path.exists() && !switch.marker.exists());
        }
    }
}
