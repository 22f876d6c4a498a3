//! How many threads serve: as many as CPUs that this process may use, by its affinity and by its cgroup's quota.

use std::fs;

/// At least one.
pub(crate) fn workers() -> usize {
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    let quota = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|own| {
            let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
            let directory = format!("/sys/fs/cgroup{path}");
            fs::read_to_string(format!("{directory}/cpu.max")).ok()
        });
    // In a cgroup namespace the own cgroup is the root.
    let quota = quota.or_else(|| fs::read_to_string("/sys/fs/cgroup/cpu.max").ok());
    quota
        .as_deref()
        .and_then(parse)
        .map_or(affinity, |most| most.min(affinity))
        .max(1)
}

/// CPUs of a quota, rounded up: two quarters of a CPU are one thread.
fn parse(text: &str) -> Option<usize> {
    let mut words = text.split_whitespace();
    let quota: usize = words.next()?.parse().ok()?;
    let period: usize = words.next()?.parse().ok()?;
    Some(quota.div_ceil(period.max(1)).max(1))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_quota_is_rounded_up_and_none_is_none() {
        assert_eq!(parse("max 100000\n"), None);
        assert_eq!(parse("50000 100000\n"), Some(1));
        assert_eq!(parse("150000 100000\n"), Some(2));
        assert_eq!(parse("200000 100000\n"), Some(2));
    }
}
