//! What each eBPF program has cost so far, as the kernel counts it for all programs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::loaded_programs;

/// One program's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) nanoseconds: u64,
}

/// All programs of this machine by their id. Programs that go meanwhile are left out.
pub(crate) fn programs() -> BTreeMap<u32, Counters> {
    let mut programs = BTreeMap::new();
    for info in loaded_programs().flatten() {
        let Ok(fd) = info.fd() else { continue };
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let Some(id) = number(&text, "prog_id:").and_then(|id| u32::try_from(id).ok()) else {
            continue;
        };
        let counters = Counters {
            name: info.name_as_str().unwrap_or("?").to_owned(),
            count: number(&text, "run_cnt:").unwrap_or(0),
            nanoseconds: number(&text, "run_time_ns:").unwrap_or(0),
        };
        programs.insert(id, counters);
    }
    programs
}

/// What the programs with these ids cost between two looks, those of one name together.
pub(crate) fn growth(
    ids: &[u32],
    before: &BTreeMap<u32, Counters>,
    after: &BTreeMap<u32, Counters>,
) -> Vec<Counters> {
    let mut by_name: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for id in ids {
        let (Some(before), Some(after)) = (before.get(id), after.get(id)) else {
            continue;
        };
        let sum = by_name.entry(&after.name).or_default();
        sum.0 += after.count.saturating_sub(before.count);
        sum.1 += after.nanoseconds.saturating_sub(before.nanoseconds);
    }
    by_name
        .into_iter()
        .map(|(name, (count, nanoseconds))| Counters {
            name: name.to_owned(),
            count,
            nanoseconds,
        })
        .collect()
}

fn number(fdinfo: &str, key: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_adds_up_programs_of_one_name() {
        let counters = |name: &str, count, nanoseconds| Counters {
            name: name.to_owned(),
            count,
            nanoseconds,
        };
        let before = BTreeMap::from([
            (1, counters("connect4", 10, 1000)),
            (2, counters("lookup", 0, 0)),
            (3, counters("lookup", 5, 50)),
            (9, counters("theirs", 1, 1)),
        ]);
        let after = BTreeMap::from([
            (1, counters("connect4", 11, 1500)),
            (2, counters("lookup", 2, 20)),
            (3, counters("lookup", 6, 60)),
            (9, counters("theirs", 9, 9)),
        ]);
        assert_eq!(
            growth(&[1, 2, 3, 4], &before, &after),
            [counters("connect4", 1, 500), counters("lookup", 3, 30)]
        );
    }

    #[test]
    fn fdinfo_is_read_by_name() {
        let text = "pos:\t0\nprog_id:\t42\nrun_time_ns:\t7\nrun_cnt:\t3\n";
        assert_eq!(number(text, "prog_id:"), Some(42));
        assert_eq!(number(text, "run_cnt:"), Some(3));
        assert_eq!(number(text, "missing:"), None);
    }
}
