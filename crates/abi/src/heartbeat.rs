//! Where the workers of agents write that they are alive.

/// Workers that an agent has at most: the length of one agent's part of `HEARTBEAT`.
pub const MAX_WORKERS: u32 = 512;

/// Agents that write at the same time: the one in charge, and the one that takes over from it. An agent
/// that drains has ceased to write.
pub const BEAT_PARTS: u32 = 2;

/// How old the last beat of a worker may be, in nanoseconds, before connections that it would take are
/// refused.
pub const BEAT_WINDOW_NS: u64 = 2_000_000_000;

/// The element of `HEARTBEAT` of a worker of the agent that writes to `part`. It is the `SO_PRIORITY` of
/// that worker's listeners, so whoever finds a listener knows whose beat to look at, also while one agent's
/// listeners take the places of another's.
#[inline(always)]
#[must_use]
pub const fn beat_index(part: u32, worker: u32) -> u32 {
    part % BEAT_PARTS * MAX_WORKERS + worker % MAX_WORKERS
}

#[cfg(test)]
mod tests {
    use super::{BEAT_PARTS, MAX_WORKERS, beat_index};

    #[test]
    fn no_two_workers_share_a_beat_and_all_are_in_the_map() {
        let mut all = [false; (BEAT_PARTS * MAX_WORKERS) as usize];
        for part in 0..BEAT_PARTS {
            for worker in 0..MAX_WORKERS {
                let seen = &mut all[beat_index(part, worker) as usize];
                assert!(!*seen, "{part} {worker}");
                *seen = true;
            }
        }
        assert!(beat_index(u32::MAX, u32::MAX) < BEAT_PARTS * MAX_WORKERS);
    }
}
