//! When a certificate is renewed, and how long to wait after a failure. Pure: times and a random number in, times out.

use std::time::{Duration, SystemTime};

/// How a store asks for, renews and forgets certificates.
#[derive(Clone, Debug)]
pub struct RotationPolicy {
    /// Renewal begins when this share of the life is left. A certificate whose life is so short that two requests
    /// do not fit into that share is renewed earlier.
    pub renew_at_remaining: f64,
    /// Renewal begins earlier by up to this share of the life, at random: a fleet that was started at once does not
    /// ask at once.
    pub jitter: f64,
    /// Waits between failed attempts.
    pub backoff: Backoff,
    /// An attempt without an answer for this long has failed.
    pub request_timeout: Duration,
    /// How long [`super::SvidStore::get`] waits for a first certificate: connections of a new pod are held that long.
    pub get_timeout: Duration,
    /// An identity without users is kept for this long, so that a restarted pod does not need a new certificate.
    pub linger: Duration,
    /// Requests to the authority at the same time.
    pub concurrency: usize,
}

impl Default for RotationPolicy {
    fn default() -> Self {
        Self {
            renew_at_remaining: 0.25,
            jitter: 0.10,
            backoff: Backoff::default(),
            request_timeout: Duration::from_secs(10),
            get_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(60),
            concurrency: 8,
        }
    }
}

/// Exponential waits, each shortened at random by up to half.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait: an authority that comes back is noticed within this time.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(15),
        }
    }
}

impl Backoff {
    /// The wait after this many failures in a row; `random` is in 0..1.
    #[must_use]
    pub fn wait(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let wait = self.first.saturating_mul(1_u32 << doublings).min(self.max);
        wait.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }
}

impl RotationPolicy {
    /// When to ask for the successor of a certificate that was obtained and ends at these times, by an authority that
    /// took `round_trip` to answer; `random` is in 0..1.
    pub(super) fn renewal(
        &self,
        obtained: SystemTime,
        not_after: SystemTime,
        round_trip: Duration,
        random: f64,
    ) -> SystemTime {
        let life = not_after.duration_since(obtained).unwrap_or_default();
        let two_requests = (ROUND_TRIP_FLOOR + round_trip)
            .saturating_mul(2)
            .min(life / 2);
        let share = life.mul_f64(self.renew_at_remaining.clamp(0.0, 1.0));
        let early = life.mul_f64((self.jitter * random).clamp(0.0, 1.0));
        let left = (share.max(two_requests) + early).min(life.mul_f64(0.75));
        not_after - left
    }

    /// The wait after a failure: the backoff, but never so long that fewer than four attempts fit into what is left
    /// of the certificate in use.
    pub(super) fn retry(&self, failures: u32, left: Option<Duration>, random: f64) -> Duration {
        let wait = self.backoff.wait(failures, random);
        match left {
            Some(left) if !left.is_zero() => wait.min((left / 4).max(self.backoff.first)),
            _ => wait,
        }
    }
}

/// An authority that answered at once may be slower the next time.
const ROUND_TRIP_FLOOR: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn renewal_leaves_a_quarter_of_life_and_time_for_two_requests() {
        let policy = RotationPolicy::default();
        let ms = Duration::from_millis;
        for (life, round_trip, random, left) in [
            (ms(100_000), ms(0), 0.0, ms(25_000)),
            (ms(100_000), ms(0), 1.0, ms(35_000)),
            (ms(10_000), ms(3_000), 0.0, ms(5_000)),
            (ms(3_000), ms(0), 0.0, ms(1_000)),
            (ms(2_000), ms(100), 0.0, ms(1_000)),
            (ms(2_000), ms(100), 1.0, ms(1_200)),
            (ms(0), ms(100), 1.0, ms(0)),
        ] {
            let end = UNIX_EPOCH + life;
            let renewal = policy.renewal(UNIX_EPOCH, end, round_trip, random);
            assert_eq!(
                end.duration_since(renewal).unwrap(),
                left,
                "life {life:?}, round trip {round_trip:?}"
            );
        }
    }

    #[test]
    fn waits_grow_to_a_bound_and_shrink_near_the_end() {
        let policy = RotationPolicy::default();
        let ms = Duration::from_millis;
        for (failures, left, random, wait) in [
            (1, None, 0.0, ms(100)),
            (1, None, 1.0, ms(50)),
            (3, None, 0.0, ms(400)),
            (60, None, 0.0, ms(15_000)),
            (60, Some(ms(4_000)), 0.0, ms(1_000)),
            (60, Some(ms(40)), 0.0, ms(100)),
            (60, Some(ms(0)), 0.0, ms(15_000)),
        ] {
            assert_eq!(
                policy.retry(failures, left, random),
                wait,
                "{failures} {left:?}"
            );
        }
    }
}
