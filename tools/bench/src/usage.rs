//! What processes and the machine have used so far, from `/proc`.
//!
//! Processor time of a process is exact to 10 ms; that of the machine is sampled at each tick, so
//! a window of a second knows it to a few percent. Work of the kernel for nobody in particular
//! (softirq out of idle) is in the machine's figure only.

use std::fs;

use serde::{Deserialize, Serialize};

/// Counters of a set of processes at one moment, or their growth between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Processes {
    /// Seconds on a processor in user space.
    pub user: f64,
    /// Seconds on a processor in the kernel.
    pub system: f64,
    /// Times that a thread waited for something.
    pub voluntary_switches: u64,
    /// Times that a thread was made to wait.
    pub involuntary_switches: u64,
    /// Resident memory in bytes; a level, not a growth.
    pub rss: u64,
    /// Resident memory that is not of files, in bytes; a level, not a growth.
    pub anonymous: u64,
}

impl Processes {
    /// Seconds on a processor.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        self.user + self.system
    }

    /// Context switches of either kind.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.voluntary_switches + self.involuntary_switches
    }
}

/// Seconds of all processors together at one moment, or their growth between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// In user space, nice ones included.
    pub user: f64,
    /// In the kernel for a process.
    pub system: f64,
    /// In interrupts and softirqs: most of the network's work.
    pub interrupts: f64,
    /// Taken by the hypervisor.
    pub stolen: f64,
    /// With nothing to do.
    pub idle: f64,
}

impl Machine {
    /// Seconds that a processor worked for this machine.
    #[must_use]
    pub fn busy(&self) -> f64 {
        self.user + self.system + self.interrupts
    }
}

/// What a window cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The mesh's data path: proxies or agents.
    pub mesh: Processes,
    /// The load itself: its server and client.
    pub load: Processes,
    /// Everything.
    pub machine: Machine,
}

impl Usage {
    /// Reads everything now.
    #[must_use]
    pub fn now(mesh: &[i32], load: &[i32]) -> Self {
        Self {
            mesh: processes(mesh),
            load: processes(load),
            machine: machine(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        }
    }

    /// The growth since `before`; levels are those of `self`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            mesh: growth(&self.mesh, &before.mesh),
            load: growth(&self.load, &before.load),
            machine: Machine {
                user: self.machine.user - before.machine.user,
                system: self.machine.system - before.machine.system,
                interrupts: self.machine.interrupts - before.machine.interrupts,
                stolen: self.machine.stolen - before.machine.stolen,
                idle: self.machine.idle - before.machine.idle,
            },
        }
    }

    /// Seconds that others had the processors: processes that are neither mesh nor load, and the
    /// hypervisor. Interrupts are nobody's and are left out.
    #[must_use]
    pub fn others(&self) -> f64 {
        let user = self.machine.user - self.mesh.user - self.load.user;
        // A process's own figure holds the softirqs that ran on its time, the machine's does not.
        let system = self.machine.system - self.mesh.system - self.load.system;
        user.max(0.0) + system.max(0.0) + self.machine.stolen.max(0.0)
    }
}

fn growth(after: &Processes, before: &Processes) -> Processes {
    Processes {
        user: after.user - before.user,
        system: after.system - before.system,
        voluntary_switches: after
            .voluntary_switches
            .saturating_sub(before.voluntary_switches),
        involuntary_switches: after
            .involuntary_switches
            .saturating_sub(before.involuntary_switches),
        rss: after.rss,
        anonymous: after.anonymous,
    }
}

/// The sum over the processes that live.
#[must_use]
pub fn processes(pids: &[i32]) -> Processes {
    let mut sum = Processes::default();
    for pid in pids {
        let directory = format!("/proc/{pid}");
        let Ok(stat) = fs::read_to_string(format!("{directory}/stat")) else {
            continue;
        };
        let (user, system) = times(&stat);
        sum.user += user;
        sum.system += system;
        let status = fs::read_to_string(format!("{directory}/status")).unwrap_or_default();
        sum.rss += number(&status, "VmRSS:") << 10;
        sum.anonymous += number(&status, "RssAnon:") << 10;
        // Switches are counted per thread.
        for thread in fs::read_dir(format!("{directory}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            sum.voluntary_switches += number(&status, "voluntary_ctxt_switches:");
            sum.involuntary_switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
    }
    sum
}

/// The most resident memory that a process ever had, in bytes.
#[must_use]
pub fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    number(&status, "VmHWM:") << 10
}

/// Fields 14 and 15 of `/proc/PID/stat`, in seconds.
fn times(stat: &str) -> (f64, f64) {
    // The command name in field 2 may hold spaces and parentheses; the rest does not.
    let mut fields = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest)
        .unwrap_or_default()
        .split_whitespace()
        .skip(11);
    let mut next = || {
        fields
            .next()
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
            / TICKS
    };
    (next(), next())
}

/// The line `cpu` of `/proc/stat`.
fn machine(stat: &str) -> Machine {
    let mut fields = [0.0; 8];
    let line = stat.lines().next().unwrap_or_default();
    for (field, text) in fields.iter_mut().zip(line.split_whitespace().skip(1)) {
        *field = text.parse::<f64>().unwrap_or(0.0) / TICKS;
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = fields;
    Machine {
        user: user + nice,
        system,
        interrupts: irq + softirq,
        stolen: steal,
        idle: idle + iowait,
    }
}

/// The number after `key` at the start of a line.
fn number(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// `USER_HZ` is 100 on every architecture that we build for.
const TICKS: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_position_and_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 200 0 0 150 50 9 9 20 0 4 0 100 1 1";
        assert_eq!(times(stat), (1.5, 0.5));
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(number(status, "VmRSS:"), 2048);
        assert_eq!(number(status, "voluntary_ctxt_switches:"), 12);
        assert_eq!(number(status, "nonvoluntary_ctxt_switches:"), 3);
        assert_eq!(number(status, "RssAnon:"), 0);
        let machine = machine("cpu  100 100 300 4000 100 50 150 20 0 0\ncpu0 1\n");
        assert_eq!(machine.busy(), 7.0);
        assert_eq!((machine.stolen, machine.idle), (0.2, 41.0));
    }

    #[test]
    fn others_are_what_is_left_of_the_machine() {
        let processes = |user, system| Processes {
            user,
            system,
            ..Processes::default()
        };
        let usage = |user, system, stolen| Usage {
            mesh: processes(1.0, 1.0),
            load: processes(0.5, 0.5),
            machine: Machine {
                user,
                system,
                stolen,
                interrupts: 9.0,
                idle: 0.0,
            },
        };
        for (usage, expected) in [
            (usage(1.5, 1.5, 0.0), 0.0),
            (usage(2.0, 1.75, 0.0), 0.75),
            // Softirqs on our time are in our figure only: that is nobody's gain.
            (usage(2.0, 1.0, 0.0), 0.5),
            (usage(1.5, 1.5, 0.25), 0.25),
        ] {
            assert!((usage.others() - expected).abs() < 1e-9, "{usage:?}");
        }
    }

    #[test]
    fn this_process_uses_memory() {
        let own = processes(&[std::process::id().cast_signed()]);
        assert!(own.rss > 0 && own.rss >= own.anonymous);
        assert_eq!(processes(&[i32::MAX]), Processes::default());
    }
}
