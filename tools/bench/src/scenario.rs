//! The kinds of traffic that are measured, and which figure says how well each went.

use serde::{Deserialize, Serialize};

use crate::load::Load;
use crate::results::Run;

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// One kept connection, closed loop: what a hop costs in time.
    One,
    /// The same with everything on one processor: what a hop costs in work.
    Pinned,
    /// 16 kept connections at a fixed rate, open loop: latency under a load that all can bear.
    Paced,
    /// 32 kept connections, closed loop: what the machine can do.
    Many,
    /// A connection per request, 8 at once.
    Connect,
    /// One bulk stream.
    Bulk,
    /// Connections that do nothing: memory.
    Idle,
}

/// Sizes that `--quick` makes smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Requests per second of [`Scenario::Paced`].
    pub rate: u32,
    /// Connections of [`Scenario::Idle`].
    pub idle: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            rate: 2000,
            idle: 10_000,
        }
    }
}

impl Scenario {
    /// All, in the order in which they run.
    pub const ALL: [Self; 7] = [
        Self::One,
        Self::Pinned,
        Self::Paced,
        Self::Many,
        Self::Connect,
        Self::Bulk,
        Self::Idle,
    ];

    /// As `--scenarios` and results name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Pinned => "pinned",
            Self::Paced => "paced",
            Self::Many => "many",
            Self::Connect => "connect",
            Self::Bulk => "bulk",
            Self::Idle => "idle",
        }
    }

    /// The scenario of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }

    /// As tables name it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::One => "one kept connection",
            Self::Pinned => "one kept connection, all on one processor",
            Self::Paced => "16 kept connections, fixed rate",
            Self::Many => "32 kept connections",
            Self::Connect => "a connection per request, 8 clients",
            Self::Bulk => "one bulk stream",
            Self::Idle => "idle connections",
        }
    }

    /// What the client does.
    #[must_use]
    pub fn load(self, sizes: Sizes) -> Load {
        match self {
            Self::One | Self::Pinned => Load::Closed { connections: 1 },
            Self::Paced => Load::Paced {
                connections: 16,
                rate: sizes.rate,
            },
            Self::Many => Load::Closed { connections: 32 },
            Self::Connect => Load::Connects { clients: 8 },
            Self::Bulk => Load::Bulk,
            Self::Idle => Load::Idle {
                connections: sizes.idle,
            },
        }
    }

    /// The figure that is compared first.
    #[must_use]
    pub fn headline(self) -> Figure {
        match self {
            Self::One | Self::Pinned | Self::Paced => Figure::P50,
            Self::Many | Self::Connect => Figure::Rate,
            Self::Bulk => Figure::Gigabits,
            Self::Idle => Figure::IdleBytes,
        }
    }
}

/// Something that a run says in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Median latency, microseconds.
    P50,
    /// Latency that nine of ten do not exceed, microseconds.
    P90,
    /// Latency that 99 of 100 do not exceed, microseconds.
    P99,
    /// Latency that 999 of 1,000 do not exceed, microseconds.
    P999,
    /// Answers per second.
    Rate,
    /// Gigabits per second.
    Gigabits,
    /// Processor time of the mesh's processes: microseconds per request, or milliseconds per GB.
    MeshCpu,
    /// Processor time of everything, the kernel's work for nobody in particular included.
    AllCpu,
    /// Context switches of the mesh's processes per request, or per MB.
    Switches,
    /// Resident memory per process of the mesh, bytes.
    Resident,
    /// Resident bytes of a process of the mesh per idle connection.
    IdleBytes,
}

impl Figure {
    /// Whether a smaller number is better.
    #[must_use]
    pub fn smaller_is_better(self) -> bool {
        !matches!(self, Self::Rate | Self::Gigabits)
    }

    /// The number, where the run has it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn of(self, run: &Run) -> Option<f64> {
        let report = &run.report;
        let latency = |pick: fn(&crate::load::Quantiles) -> f64| report.latency.as_ref().map(pick);
        // Requests, or megabytes for a stream.
        let units = match run.scenario {
            Scenario::Bulk => report.bytes as f64 / 1e6,
            _ => report.requests as f64,
        };
        let per_unit = |amount: f64| (units > 0.0).then(|| amount / units);
        let meshed = run.mesh_processes > 0;
        match self {
            Self::P50 => latency(|latency| latency.p50),
            Self::P90 => latency(|latency| latency.p90),
            Self::P99 => latency(|latency| latency.p99),
            Self::P999 => latency(|latency| latency.p999),
            Self::Rate => (report.requests > 0).then(|| report.rate()),
            Self::Gigabits => (report.bytes > 0).then(|| report.gigabits()),
            Self::MeshCpu if meshed => per_unit(report.usage.mesh.cpu() * 1e6),
            Self::AllCpu => per_unit(report.usage.machine.busy() * 1e6),
            Self::Switches if meshed => per_unit(report.usage.mesh.switches() as f64),
            Self::Resident if meshed && report.usage.mesh.rss > 0 => {
                Some(report.usage.mesh.rss as f64 / run.mesh_processes as f64)
            }
            // Each connection goes through all of them.
            Self::IdleBytes if meshed && report.connections > 0 => {
                let ends = report.connections as f64 * run.mesh_processes as f64;
                Some(report.usage.mesh.rss as f64 / ends)
            }
            _ => None,
        }
    }
}
