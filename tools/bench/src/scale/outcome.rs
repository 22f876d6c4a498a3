//! What was measured of a cluster, and how it stands beside what was promised.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What subscribers have seen, as their program writes it (JSON).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// From the first subscriber's connect until it had everything, alone.
    pub first_snapshot_seconds: f64,
    /// From the others' connect until the last of them had everything.
    pub all_snapshots_seconds: f64,
    /// Bytes on the wire for one snapshot, in packets, TLS and all.
    pub snapshot_bytes: u64,
    /// From a change until the last subscriber sent its ACK, median, milliseconds.
    pub change_p50: f64,
    /// The same for 99 of 100 changes.
    pub change_p99: f64,
    /// The same for all.
    pub change_max: f64,
    /// Between the first and the last ACK of a change, median, milliseconds.
    pub fan_out_p50: f64,
    /// Bytes on the wire per change, for all subscribers together.
    pub change_bytes: f64,
    /// How many changes were seen.
    pub changes: usize,
}

/// What came to all subscribers together while others changed objects, as their program writes it (JSON).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// Responses of the controller.
    pub responses: u64,
    /// Workloads and services in them.
    pub addresses: u64,
}

/// One cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its pods.
    pub pods: usize,
    /// Its services.
    pub services: usize,
    /// Its policies.
    pub policies: usize,
    /// Agents that subscribed.
    pub subscribers: usize,
    /// From the controller's start until it was ready: everything was read and compiled.
    pub ready_seconds: f64,
    /// Resident memory of the controller before anybody subscribed, bytes.
    pub controller_alone: u64,
    /// Resident memory of the controller with all subscribers, bytes.
    pub controller_rss: u64,
    /// The most that it ever was, bytes.
    pub controller_peak: u64,
    /// Resident memory of an agent that holds all of it, bytes.
    pub agent_rss: u64,
    /// From that agent's start until it was ready.
    pub agent_seconds: f64,
    /// What the subscribers saw.
    pub report: Report,
}

/// All clusters as a table, beside the goals.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "byte counts far below 2^52")]
pub fn table(outcomes: &[Outcome]) -> String {
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / MIB);
    let seconds = |seconds: f64| format!("{seconds:.2} s");
    let millis = |millis: f64| format!("{millis:.0} ms");
    type Column = (&'static str, Box<dyn Fn(&Outcome) -> String>, &'static str);
    let lines: [Column; 11] = [
        (
            "controller ready after its start",
            Box::new(move |one| seconds(one.ready_seconds)),
            "",
        ),
        (
            "first snapshot at a subscriber",
            Box::new(move |one| seconds(one.report.first_snapshot_seconds)),
            "",
        ),
        (
            "the same at all, who come at once",
            Box::new(move |one| seconds(one.report.all_snapshots_seconds)),
            "",
        ),
        (
            "bytes on the wire for one snapshot",
            Box::new(move |one| mib(one.report.snapshot_bytes)),
            "",
        ),
        (
            "change to last ACK, p50",
            Box::new(move |one| millis(one.report.change_p50)),
            "",
        ),
        (
            "change to last ACK, p99",
            Box::new(move |one| millis(one.report.change_p99)),
            "100 ms at 100 agents",
        ),
        (
            "bytes on the wire for one change, all",
            Box::new(|one| format!("{:.0} KiB", one.report.change_bytes / 1024.0)),
            "",
        ),
        (
            "controller, resident, before anybody subscribes",
            Box::new(move |one| mib(one.controller_alone)),
            "",
        ),
        (
            "controller, resident with all (peak)",
            Box::new(move |one| {
                format!("{} ({})", mib(one.controller_rss), mib(one.controller_peak))
            }),
            "1024 MiB with 50,000 pods",
        ),
        (
            "agent, resident",
            Box::new(move |one| mib(one.agent_rss)),
            "64 MiB with 10,000 pods",
        ),
        (
            "agent ready after its start",
            Box::new(move |one| seconds(one.agent_seconds)),
            "",
        ),
    ];
    let mut out = String::from("| |");
    for one in outcomes {
        let _ = write!(
            out,
            " {} pods, {} services, {} policies |",
            one.pods, one.services, one.policies
        );
    }
    out.push_str(" goal |\n|-|");
    out.push_str(&"-:|".repeat(outcomes.len() + 1));
    out.push('\n');
    for (title, text, goal) in lines {
        let _ = write!(out, "| {title} |");
        for one in outcomes {
            let _ = write!(out, " {} |", text(one));
        }
        let _ = writeln!(out, " {goal} |");
    }
    out
}

const MIB: f64 = 1024.0 * 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_a_cell_per_cluster_and_one_for_the_goal() {
        let outcomes = [
            Outcome::default(),
            Outcome {
                pods: 10_000,
                agent_rss: 64 << 20,
                ..Outcome::default()
            },
        ];
        let table = table(&outcomes);
        assert!(
            table.lines().all(|line| line.matches('|').count() == 5),
            "{table}"
        );
        assert!(
            table.contains("| 0 MiB | 64 MiB | 64 MiB with 10,000 pods |"),
            "{table}"
        );
    }
}
