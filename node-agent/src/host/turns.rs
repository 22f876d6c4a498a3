//! Who goes first where processors are short: traffic, that of the agent and that of applications, before
//! the agent's other work. That work comes in bursts of milliseconds, and without this whoever is woken by a
//! packet meanwhile waits for the end of the burst or of its slice.
//!
//! Nobody is starved: weights stay as they are, so over time the other work gets its share. What changes
//! is when: a thread that asks for a long slice has a late deadline, and whoever has the usual one and has
//! not had its share preempts it at once (EEVDF, `PREEMPT_SHORT`; kernels from 6.12 on). `SCHED_BATCH` does
//! half of it on older ones: such a thread preempts nobody when it wakes up.

#![expect(
    unsafe_code,
    reason = "sched_setattr(2) has no wrapper in the C library"
)]

use std::{io, time::Duration};

/// A slice that is long beside the usual 0.7 to 3 ms, and short enough that configuration reaches the
/// kernel soon on a node whose processors are all busy. The kernel takes 0.1 to 100 ms.
const SLICE: Duration = Duration::from_millis(20);

/// The calling thread, and those that it starts from now on, do not keep traffic waiting.
///
/// # Errors
/// When the kernel refuses it. Everything works then, but traffic may wait.
pub(crate) fn after_traffic() -> io::Result<()> {
    set(libc::SCHED_BATCH, SLICE)
}

/// Sets policy and slice of the calling thread.
fn set(policy: i32, slice: Duration) -> io::Result<()> {
    let mut attributes = get()?;
    // Somebody has chosen another class for the whole agent, who must know why.
    let policies = [libc::SCHED_OTHER, libc::SCHED_BATCH];
    if !policies.contains(&i32::try_from(attributes.sched_policy).unwrap_or(-1)) {
        return Ok(());
    }
    attributes.sched_policy = u32::try_from(policy).map_err(io::Error::other)?;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).map_err(io::Error::other)?;
    // SAFETY: sched_setattr(2) reads `size` bytes of the structure, which lives until it returns; 0 is
    // the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(done)
}

/// How the calling thread is scheduled.
fn get() -> io::Result<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: sched_getattr(2) writes at most `size` bytes to the structure; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    check(done)?;
    Ok(attributes)
}

fn check(done: i64) -> io::Result<()> {
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_that_they_come_after_traffic_and_earlier_ones_do_not() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let started = std::thread::spawn(move || {
            let worker = std::thread::spawn(move || {
                told.recv().unwrap();
                get().unwrap()
            });
            after_traffic().unwrap();
            tell.send(()).unwrap();
            let other = std::thread::spawn(|| get().unwrap()).join().unwrap();
            (other, worker.join().unwrap())
        });
        let (other, worker) = started.join().unwrap();
        assert_eq!(other.sched_policy, 3, "SCHED_BATCH");
        assert_eq!(worker.sched_policy, 0, "SCHED_OTHER");
        assert_eq!(worker.sched_nice, other.sched_nice);
    }
}
