//! How many refusals of one kind are told of one by one, in the log and on the page: enough for a person, and no more,
//! however many there are. The others are told of by number. Metrics count them all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use model::Reason;
use parking_lot::Mutex;

/// Of one pod for one reason: so many at once, and so many a second.
const AT_ONCE: u32 = 64;
const EACH_SECOND: u32 = 4;
/// Those that are left over are told of by number after this time.
const QUIET: Duration = Duration::from_secs(2);

/// The rations of all pods and reasons. Who is whole again is forgotten, so there are no more than pods
/// that are being refused.
#[derive(Debug, Default)]
pub(crate) struct Rations(Mutex<HashMap<Reason, HashMap<String, Ration>>>);

#[derive(Debug)]
struct Ration {
    left: u32,
    filled: Instant,
    withheld: u64,
    last: Instant,
}

impl Rations {
    /// Whether the first of `count` refusals that have just come is to be told of, and how many more
    /// with it.
    pub(crate) fn take(&self, pod: &str, reason: Reason, count: u64, now: Instant) -> Option<u64> {
        let mut reasons = self.0.lock();
        let pods = reasons.entry(reason).or_default();
        if !pods.contains_key(pod) {
            pods.insert(pod.to_owned(), Ration::new(now));
        }
        pods.get_mut(pod)?.take(count, now)
    }

    /// The refusals that were withheld and of whose kind none has come since: pod, reason and number.
    pub(crate) fn settle(&self, now: Instant) -> Vec<(String, Reason, u64)> {
        let mut settled = Vec::new();
        self.0.lock().retain(|reason, pods| {
            pods.retain(|pod, ration| {
                if ration.withheld > 0 && now.duration_since(ration.last) >= QUIET {
                    let withheld = std::mem::take(&mut ration.withheld);
                    settled.push((pod.clone(), *reason, withheld));
                }
                ration.fill(now);
                ration.withheld > 0 || ration.left < AT_ONCE
            });
            !pods.is_empty()
        });
        settled
    }
}

impl Ration {
    fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE,
            filled: now,
            withheld: 0,
            last: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let each = Duration::from_secs(1) / EACH_SECOND;
        let due = now.duration_since(self.filled).as_millis() / each.as_millis();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(due).min(AT_ONCE);
        self.filled = if self.left == AT_ONCE {
            now
        } else {
            self.filled + each * due
        };
    }

    fn take(&mut self, count: u64, now: Instant) -> Option<u64> {
        self.fill(now);
        self.last = now;
        let all = self.withheld + count;
        if self.left == 0 {
            self.withheld = all;
            return None;
        }
        self.left -= 1;
        self.withheld = 0;
        Some(all.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: Reason = Reason::PolicyDeny;

    #[test]
    fn few_are_told_of_one_by_one() {
        let (rations, now) = (Rations::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(rations.take("shop/a", REASON, 1, now), Some(0));
        }
        assert_eq!(rations.settle(now), []);
    }

    #[test]
    fn a_million_are_told_of_in_few_lines_that_add_up() {
        let (rations, start) = (Rations::default(), Instant::now());
        let (mut lines, mut told) = (0, 0);
        for step in 0..1_000_000 {
            let now = start + Duration::from_micros(10) * step;
            if let Some(more) = rations.take("shop/a", REASON, 1, now) {
                lines += 1;
                told += 1 + more;
            }
        }
        let rest = rations.settle(start + Duration::from_secs(60));
        told += rest.iter().map(|(_, _, more)| more).sum::<u64>();
        assert_eq!(told, 1_000_000);
        assert!(
            lines <= 64 + 4 * 10 && rest.len() == 1,
            "{lines} lines, {rest:?}"
        );
        assert_eq!(rations.settle(start + Duration::from_secs(120)), []);
        assert!(rations.0.lock().is_empty(), "forgotten");
    }

    #[test]
    fn a_pod_or_reason_does_not_use_up_what_is_anothers() {
        let (rations, now) = (Rations::default(), Instant::now());
        while rations.take("shop/a", REASON, 1, now).is_some() {}
        assert_eq!(rations.take("shop/b", REASON, 1, now), Some(0));
        assert_eq!(rations.take("shop/a", Reason::NoEndpoint, 1, now), Some(0));
    }

    #[test]
    fn what_comes_by_number_is_told_of_by_number() {
        let (rations, now) = (Rations::default(), Instant::now());
        assert_eq!(rations.take("shop/a", REASON, 500, now), Some(499));
        while rations.take("shop/a", REASON, 1, now).is_some() {}
        assert_eq!(rations.take("shop/a", REASON, 10, now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(rations.take("shop/a", REASON, 1, later), Some(11));
    }
}
