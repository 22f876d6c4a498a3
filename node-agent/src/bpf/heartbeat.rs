//! The beats of this agent's workers, where the kernel half reads them: stores into mapped memory, no
//! system call.

#![expect(unsafe_code, reason = "memory that the kernel reads is written")]

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use abi::{BEAT_PARTS, MAX_WORKERS, beat_index};
use aya::maps::MapData;

use super::mapping::Mapping;

/// Where workers say that they are alive.
pub struct Heartbeat {
    /// Keeps the map open.
    _map: MapData,
    beats: Mapping,
    part: u32,
}

// SAFETY: the mapping is only used for atomic stores and loads.
unsafe impl Sync for Heartbeat {}

impl Heartbeat {
    /// Maps the beats; those of `part` are this agent's from now on, and fresh.
    pub(super) fn new(map: MapData, part: u32) -> io::Result<Self> {
        let length = size_of::<u64>() * (BEAT_PARTS * MAX_WORKERS) as usize;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let heartbeat = Self {
            beats: Mapping::new(map.fd().as_fd(), length, 0, access)?,
            _map: map,
            part,
        };
        (0..MAX_WORKERS).for_each(|worker| heartbeat.beat(worker));
        Ok(heartbeat)
    }

    /// By which the kernel half knows the worker's beat: the priority of its listeners.
    #[must_use]
    pub fn index(&self, worker: u32) -> u32 {
        beat_index(self.part, worker)
    }

    /// The worker is alive.
    pub fn beat(&self, worker: u32) {
        self.of(worker).store(now(), Ordering::Relaxed);
    }

    /// How long ago the worker was alive last.
    #[must_use]
    pub fn age(&self, worker: u32) -> Duration {
        let beat = self.of(worker).load(Ordering::Relaxed);
        Duration::from_nanos(now().saturating_sub(beat))
    }

    fn of(&self, worker: u32) -> &AtomicU64 {
        let index = self.index(worker) as usize;
        // SAFETY: indices are below the number of elements that are mapped, each a double word.
        let beat = unsafe { self.beats.start.cast::<AtomicU64>().add(index) };
        // SAFETY: the mapping lives as long as `self`, and everybody reads and writes it atomically.
        unsafe { beat.as_ref() }
    }
}

/// Ns of `CLOCK_MONOTONIC`, which stands still while the machine sleeps: the clock of `bpf_ktime_get_ns`.
fn now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the structure, which lives on this frame.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    debug_assert_eq!(read, 0, "this clock is always there");
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
