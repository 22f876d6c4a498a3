//! How many system calls processes make, as the kernel counts them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
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
    /// The kernel does not know the tracepoint, or a counter is not granted.
    pub(crate) fn start(pids: &[i32]) -> Result<Self> {
        let id = tracepoint()?;
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

/// The number of the tracepoint. Where nobody has mounted tracefs, as on a bare Debian, it is mounted
/// for the time of reading, where nobody else sees it.
fn tracepoint() -> Result<u64> {
    let mounted = [TRACEFS, "/sys/kernel/debug/tracing"]
        .iter()
        .find_map(|tracefs| number(Path::new(tracefs)).ok());
    mounted.map_or_else(number_by_own_mount, Ok)
}

fn number(tracefs: &Path) -> Result<u64> {
    let path = tracefs.join("events/raw_syscalls/sys_enter/id");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().context("a tracepoint's number")
}

/// In a mount namespace of a thread of its own, which ends with the thread.
fn number_by_own_mount() -> Result<u64> {
    let read = || {
        let nothing: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .context("a mount namespace of its own")?;
        mount(nothing, "/", nothing, private, nothing).context("keeping mounts to itself")?;
        // Where somebody has mounted it the kernel refuses to do so again; the others keep theirs.
        let _was_mounted = umount2(TRACEFS, MntFlags::MNT_DETACH).is_ok();
        mount(
            Some("tracefs"),
            TRACEFS,
            Some("tracefs"),
            MsFlags::empty(),
            nothing,
        )
        .with_context(|| format!("mounting tracefs on {TRACEFS}"))?;
        number(Path::new(TRACEFS))
    };
    std::thread::scope(|scope| scope.spawn(read).join())
        .unwrap_or_else(|_panic| bail!("the thread that reads a tracepoint ended"))
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

const TRACEFS: &str = "/sys/kernel/tracing";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_same_where_nobody_has_mounted_tracefs() {
        let before = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = number_by_own_mount().unwrap();
        assert!(own > 0);
        assert_eq!(tracepoint().unwrap(), own);
        assert_eq!(
            fs::read_to_string("/proc/self/mounts").unwrap(),
            before,
            "nobody else sees it"
        );
    }

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
