//! For how long a process has run.

use std::{fs, path::Path, time::Duration};

/// That of the process whose namespace has this path, `/proc/PID/ns/net`; none where that cannot be told.
pub(super) fn of_process(namespace: &Path) -> Option<Duration> {
    let process = namespace.parent()?.parent()?;
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    age(&stat, &uptime)
}

/// From the files of proc(5).
fn age(stat: &str, uptime: &str) -> Option<Duration> {
    // The name may have spaces and brackets in it; the start is the 22nd field, the third is the first behind the name.
    let (_, fields) = stat.rsplit_once(") ")?;
    let began: u64 = fields.split(' ').nth(22 - 3)?.parse().ok()?;
    let began = Duration::from_millis(began.checked_mul(1000 / TICKS)?);
    let now: f64 = uptime.split(' ').next()?.parse().ok()?;
    let now = Duration::try_from_secs_f64(now).ok()?;
    Some(now.saturating_sub(began))
}

/// `USER_HZ`: ticks a second of what the kernel tells user space, on every machine that we know of.
const TICKS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_counted_from_the_start() {
        let stat = "77 (a b) (c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1";
        let found = age(stat, "130.50 99.99\n").unwrap();
        assert_eq!(found.as_millis(), 130_500 - 123_450);
        assert_eq!(age("77 (a) S", "1.0 1.0"), None);
        let own = of_process(Path::new("/proc/self/ns/net")).unwrap();
        assert!(own < Duration::from_secs(3600), "{own:?}");
        assert_eq!(of_process(Path::new("/nowhere/ns/net")), None);
    }
}
