//! A process that is told apart from a later one with its pid, so that it can be named in a file.

use std::fs;

use anyhow::{Context as _, Result};

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Its process id, as the reader of the record sees it.
    pub pid: i32,
    started: u64,
}

impl ProcessRecord {
    /// This process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn current() -> Result<Self> {
        let pid = std::process::id().cast_signed();
        Self::of(pid).context("reading this process's start time")
    }

    /// A process that lives.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let started = start_time(pid)?;
        Some(Self { pid, started })
    }

    /// One line for a file.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{} {}\n", self.pid, self.started)
    }

    /// Reads [`ProcessRecord::to_text`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, started) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }

    /// Whether that process lives still.
    #[must_use]
    pub fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot; `None` for a zombie or nobody.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name in field 2 may hold spaces and parentheses; the rest does not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_earlier_one_with_its_pid_does_not() {
        let me = ProcessRecord::current().unwrap();
        assert!(me.lives());
        assert_eq!(
            ProcessRecord::parse(&me.to_text()),
            Some(ProcessRecord { ..me })
        );
        let earlier = ProcessRecord {
            started: me.started - 1,
            ..me
        };
        assert!(!earlier.lives());
    }
}
