//! Whether an agent can take a connection now: it listens, and the worker that would take it moves.

use abi::BEAT_WINDOW_NS;

/// What is lacking for an agent to take a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lacking {
    /// No agent listens: it has ended.
    Listener,
    /// One listens and does not move: it is stopped, starved or stuck.
    Beat,
}

/// Whether a worker whose last beat was at `beat` counts as alive at `now`, both in ns of the same clock.
/// That clock stands still while the machine sleeps, so nobody is late for having slept.
#[inline(always)]
#[must_use]
pub const fn is_alive(beat: u64, now: u64) -> bool {
    // Another processor's clock may be a little ahead of ours.
    now < beat.saturating_add(BEAT_WINDOW_NS)
}

#[cfg(test)]
mod tests {
    use super::is_alive;
    use abi::BEAT_WINDOW_NS;

    #[test]
    fn a_worker_is_alive_for_the_window_after_its_last_beat() {
        let start = 7_000_000_000_000;
        for (beat, now, alive) in [
            (start, start, true),
            (start, start + BEAT_WINDOW_NS - 1, true),
            (start, start + BEAT_WINDOW_NS, false),
            (start + 5, start, true),
            // Nobody has ever written.
            (0, start, false),
            (u64::MAX, start, true),
        ] {
            assert_eq!(is_alive(beat, now), alive, "{beat} {now}");
        }
    }
}
