//! How many system calls processes make, as the kernel counts them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};

/// Counts until it is read. Threads that start meanwhile are not counted.
#[derive(Debug)]
pub(crate) struct Counting(Vec<Counter>);

impl Counting {
    /// Begins to count the calls of all threads of these processes (`perf_event_open(2)`, tracepoint
    /// `raw_syscalls:sys_enter`).
    ///
    /// # Errors
    /// There is no tracefs with the tracepoint, or a counter is not granted.
    pub(crate) fn start(pids: &[i32]) -> Result<Self> {
        let id = fs::read_to_string(Path::new(TRACEPOINTS).join("raw_syscalls/sys_enter/id"))
            .with_context(|| format!("{TRACEPOINTS}: is tracefs mounted?"))?;
        let id = id.trim().parse().context("a tracepoint's number")?;
        let mut counters = Vec::new();
        for thread in pids.iter().copied().flat_map(threads) {
            let mut builder = Builder::new(Tracepoint::with_id(id));
            let builder = builder.observe_pid(thread).any_cpu().include_kernel();
            let mut counter = match builder.build() {
                // It has ended since it was listed.
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => continue,
                counter => counter.context("opening a counter")?,
            };
            counter.enable().context("starting a counter")?;
            counters.push(counter);
        }
        Ok(Self(counters))
    }

    /// The calls since it began.
    ///
    /// # Errors
    /// A counter cannot be read.
    pub(crate) fn read(mut self) -> Result<u64> {
        let counts = self.0.iter_mut().map(Counter::read);
        let sum: std::io::Result<u64> = counts.sum();
        sum.context("reading a counter")
    }
}

fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

const TRACEPOINTS: &str = "/sys/kernel/tracing/events";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_end_are_no_failure() {
        for _ in 0..20 {
            let short = std::thread::spawn(|| ());
            let counting = Counting::start(&[std::process::id().cast_signed()]).unwrap();
            short.join().unwrap();
            counting.read().unwrap();
        }
    }

    #[test]
    fn every_call_of_every_thread_counts() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            wait.recv().unwrap();
            (0..1000).for_each(|_| drop(fs::metadata("/")));
        });
        let counting = Counting::start(&[std::process::id().cast_signed()]).unwrap();
        (0..1000).for_each(|_| drop(fs::metadata("/")));
        go.send(()).unwrap();
        other.join().unwrap();
        let counted = counting.read().unwrap();
        assert!(counted >= 2000, "{counted}");
    }
}
