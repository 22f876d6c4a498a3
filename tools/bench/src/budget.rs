//! What was promised: the performance budget of the design, row by row, and how a row is measured.

use crate::results::Results;
use crate::scenario::{Figure, Scenario};
use crate::site::Placement;
use crate::statistics::{Cell, Spread};

use Figure::{AllCpu, Gigabits, IdleBytes, P50, Rate, Resident};
use Placement::{SameNode, TwoNodes};
use Scenario::{Bulk, Connect, Idle, Many, One};
use Unit::{Kibibytes, Mebibytes, Times};

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What is measured.
    pub title: &'static str,
    /// With which traffic.
    pub scenario: Scenario,
    /// Where the server is.
    pub placement: Placement,
    /// Which number.
    pub figure: Figure,
    /// In what it is said.
    pub unit: Unit,
    /// Envoy pairs with HTTP and with TCP, and ztunnel, as they were measured for the design.
    pub peers: [&'static str; 3],
    /// What Keelson must reach.
    pub at_least: f64,
    /// What it aims at.
    pub aim: f64,
}

/// In what a row's number is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A multiple of the base mode's number in the same repetition.
    Times,
    /// MiB.
    Mebibytes,
    /// KiB.
    Kibibytes,
}

impl Row {
    /// What was measured for a mode.
    #[must_use]
    pub fn measured(&self, results: &Results, mode: &str) -> Option<Spread> {
        let cell = Cell {
            results,
            scenario: self.scenario,
            placement: self.placement,
        };
        match self.unit {
            Times => cell.ratio(mode, self.figure),
            Mebibytes => Some(scaled(cell.value(mode, self.figure)?, MIB)),
            Kibibytes => Some(scaled(cell.value(mode, self.figure)?, KIB)),
        }
    }

    /// Whether `value` keeps the promise `bound`.
    #[must_use]
    pub fn keeps(&self, value: f64, bound: f64) -> bool {
        if self.figure.smaller_is_better() {
            value <= bound
        } else {
            value >= bound
        }
    }

    /// A number as the row says it.
    #[must_use]
    pub fn format(&self, value: f64) -> String {
        match self.unit {
            Times if value < 10.0 => format!("{value:.2}x"),
            Times => format!("{value:.1}x"),
            Mebibytes => format!("{value:.1} MiB"),
            Kibibytes => format!("{value:.1} KiB"),
        }
    }
}

fn scaled(spread: Spread, unit: f64) -> Spread {
    Spread {
        min: spread.min / unit,
        median: spread.median / unit,
        max: spread.max / unit,
        ..spread
    }
}

const fn row(
    title: &'static str,
    (scenario, placement, figure, unit): (Scenario, Placement, Figure, Unit),
    peers: [&'static str; 3],
    (at_least, aim): (f64, f64),
) -> Row {
    Row {
        title,
        scenario,
        placement,
        figure,
        unit,
        peers,
        at_least,
        aim,
    }
}

/// The rows that this benchmark measures.
pub const ROWS: [Row; 11] = [
    row(
        "one kept connection, same node, p50",
        (One, SameNode, P50, Times),
        ["6.2x", "2.7x", "2.8x"],
        (1.10, 1.02),
    ),
    row(
        "one kept connection, two nodes, p50",
        (One, TwoNodes, P50, Times),
        ["6.3x", "2.6x", "2.5x"],
        (2.0, 1.7),
    ),
    row(
        "32 kept connections, same node, requests/s",
        (Many, SameNode, Rate, Times),
        ["0.07x", "0.18x", "0.17x"],
        (0.90, 0.97),
    ),
    row(
        "32 kept connections, two nodes, requests/s",
        (Many, TwoNodes, Rate, Times),
        ["0.08x", "0.21x", "0.21x"],
        (0.27, 0.33),
    ),
    row(
        "a connection per request, same node, per second",
        (Connect, SameNode, Rate, Times),
        ["0.20x", "0.07x", "0.18x"],
        (0.80, 0.95),
    ),
    row(
        "a connection per request, two nodes, per second",
        (Connect, TwoNodes, Rate, Times),
        ["0.20x", "0.07x", "0.16x"],
        (0.28, 0.45),
    ),
    row(
        "one bulk stream, same node",
        (Bulk, SameNode, Gigabits, Times),
        ["0.19x", "0.19x", "0.22x"],
        (0.95, 1.0),
    ),
    row(
        "one bulk stream, two nodes",
        (Bulk, TwoNodes, Gigabits, Times),
        ["0.26x", "0.22x", "0.24x"],
        (0.38, 0.5),
    ),
    row(
        "CPU of everything per request, two nodes, full load",
        (Many, TwoNodes, AllCpu, Times),
        ["13.3x", "4.7x", "4.5x"],
        (3.5, 3.0),
    ),
    row(
        "resident memory of a proxy",
        (One, TwoNodes, Resident, Mebibytes),
        ["71 MiB", "68 MiB", "21-28 MiB"],
        (16.0, 10.0),
    ),
    row(
        "an idle proxied connection",
        (Idle, TwoNodes, IdleBytes, Kibibytes),
        ["-", "-", "3.8 KiB"],
        (3.0, 1.5),
    ),
];

const MIB: f64 = 1024.0 * 1024.0;
const KIB: f64 = 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aim_is_the_harder_promise() {
        for row in &ROWS {
            assert!(row.keeps(row.aim, row.at_least), "{}", row.title);
            assert!(!row.keeps(row.at_least, row.aim), "{}", row.title);
        }
    }
}
