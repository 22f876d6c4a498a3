//! What was promised: the performance budget of the design, row by row, and how a row is measured.

use crate::modes::BASE;
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
            unit => Some(unit.of(cell.value(mode, self.figure)?)),
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
        self.unit.format(value)
    }
}

impl Unit {
    /// A number as the unit says it.
    #[must_use]
    pub fn format(self, value: f64) -> String {
        match self {
            Times if value < 10.0 => format!("{value:.2}x"),
            Times => format!("{value:.1}x"),
            Mebibytes => format!("{value:.1} MiB"),
            Kibibytes => format!("{value:.1} KiB"),
        }
    }

    /// Bytes in this unit; multiples as they are.
    fn of(self, spread: Spread) -> Spread {
        match self {
            Times => spread,
            Mebibytes => scaled(spread, MIB),
            Kibibytes => scaled(spread, KIB),
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

/// A promise about requests that pass a proxy which reads them.
#[derive(Debug, Clone, Copy)]
pub struct RequestRow {
    /// What is measured.
    pub title: &'static str,
    /// With which traffic.
    pub scenario: Scenario,
    /// Where the server is.
    pub placement: Placement,
    /// Which number.
    pub figure: Figure,
    /// Of which mode.
    pub mode: &'static str,
    /// Compared with what.
    pub to: To,
    /// What Keelson must reach.
    pub at_least: f64,
    /// What it aims at.
    pub aim: f64,
}

/// What a number is a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Another mode's.
    Mode(&'static str),
    /// What another mode adds to the base mode's; the number is what the mode adds itself.
    Added(&'static str),
    /// Nothing: the number itself, in this unit.
    Nothing(Unit),
    /// What a mode with [`FEW_ROUTES`] uses; the number is what each further of [`MANY_ROUTES`] takes in addition.
    EachRoute(&'static str),
}

/// Routes to each server, of a proxy that is measured with many.
pub const MANY_ROUTES: usize = 10_000;
/// Routes of the others.
pub const FEW_ROUTES: usize = 10;

impl To {
    /// The other mode, where there is one.
    #[must_use]
    pub fn mode(self) -> Option<&'static str> {
        match self {
            Self::Mode(mode) | Self::Added(mode) | Self::EachRoute(mode) => Some(mode),
            Self::Nothing(_) => None,
        }
    }
}

impl RequestRow {
    /// What was measured.
    #[must_use]
    pub fn measured(&self, results: &Results) -> Option<Spread> {
        let cell = Cell {
            results,
            scenario: self.scenario,
            placement: self.placement,
        };
        match self.to {
            To::Mode(base) => cell.ratio_to(self.mode, base, self.figure),
            To::Added(other) => cell.added_to(self.mode, other, self.figure),
            To::Nothing(unit) => Some(unit.of(cell.value(self.mode, self.figure)?)),
            To::EachRoute(few) => {
                // As many for each of the two servers.
                let further = 2 * u32::try_from(MANY_ROUTES - FEW_ROUTES).ok()?;
                let grown = cell.difference(self.mode, few, self.figure)?;
                Some(Kibibytes.of(scaled(grown, f64::from(further))))
            }
        }
    }

    /// In what the number is said.
    #[must_use]
    pub fn unit(&self) -> Unit {
        match self.to {
            To::Mode(_) | To::Added(_) => Times,
            To::Nothing(unit) => unit,
            To::EachRoute(_) => Kibibytes,
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
}

const fn request(
    title: &'static str,
    (scenario, placement, figure): (Scenario, Placement, Figure),
    (mode, to): (&'static str, To),
    (at_least, aim): (f64, f64),
) -> RequestRow {
    RequestRow {
        title,
        scenario,
        placement,
        figure,
        mode,
        to,
        at_least,
        aim,
    }
}

/// What was promised of waypoints.
pub const REQUEST_ROWS: [RequestRow; 14] = [
    request(
        "waypoint, one node, p50, to no mesh",
        (One, SameNode, P50),
        (WAYPOINT, To::Mode(BASE)),
        (2.6, 1.9),
    ),
    request(
        "waypoint, two nodes, p50, to no mesh",
        (One, TwoNodes, P50),
        (WAYPOINT, To::Mode(BASE)),
        (3.2, 2.3),
    ),
    request(
        "waypoint, one node, added p50, to Envoy in its place",
        (One, SameNode, P50),
        (WAYPOINT, To::Added(WAYPOINT_ENVOY)),
        (0.5, 0.3),
    ),
    request(
        "waypoint, two nodes, added p50, to Envoy in its place",
        (One, TwoNodes, P50),
        (WAYPOINT, To::Added(WAYPOINT_ENVOY)),
        (0.5, 0.3),
    ),
    request(
        "waypoint, one node, requests/s at 32, to Envoy in its place",
        (Many, SameNode, Rate),
        (WAYPOINT, To::Mode(WAYPOINT_ENVOY)),
        (1.6, 2.2),
    ),
    request(
        "waypoint, two nodes, requests/s at 32, to Envoy in its place",
        (Many, TwoNodes, Rate),
        (WAYPOINT, To::Mode(WAYPOINT_ENVOY)),
        (1.6, 2.2),
    ),
    request(
        "one plain hop, CPU a request at 32, to bare hyper",
        (Many, SameNode, Figure::MeshCpu),
        (HOP, To::Mode(HOP_FLOOR)),
        (1.3, 1.1),
    ),
    request(
        "one plain hop, requests/s at 32, to bare hyper",
        (Many, SameNode, Rate),
        (HOP, To::Mode(HOP_FLOOR)),
        (1.0 / 1.3, 1.0 / 1.1),
    ),
    request(
        "one plain hop, added p50, to bare hyper",
        (One, SameNode, P50),
        (HOP, To::Added(HOP_FLOOR)),
        (1.3, 1.1),
    ),
    request(
        "one plain hop, p50 at 10,000 prefix routes, to 10",
        (One, SameNode, P50),
        (HOP_MANY, To::Mode(HOP)),
        (1.1, 1.02),
    ),
    request(
        "one plain hop, requests/s at 10,000 prefix routes, to 10",
        (Many, SameNode, Rate),
        (HOP_MANY, To::Mode(HOP)),
        (0.95, 1.0),
    ),
    request(
        "memory of a route",
        (One, SameNode, Resident),
        (HOP_MANY, To::EachRoute(HOP)),
        (2.0, 0.7),
    ),
    request(
        "resident memory of the process",
        (One, SameNode, Resident),
        (HOP, To::Nothing(Mebibytes)),
        (8.0, 4.0),
    ),
    request(
        "an idle plain HTTP/1.1 connection",
        (Idle, TwoNodes, IdleBytes),
        (HOP, To::Nothing(Kibibytes)),
        (20.0, 8.0),
    ),
];

const WAYPOINT: &str = "waypoint";
const WAYPOINT_ENVOY: &str = "waypoint-envoy";
const HOP: &str = "hop-waypoint";
const HOP_MANY: &str = "hop-waypoint-10k";
const HOP_FLOOR: &str = "hop-bare";
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
        for row in &REQUEST_ROWS {
            assert!(row.keeps(row.aim, row.at_least), "{}", row.title);
            assert!(!row.keeps(row.at_least, row.aim), "{}", row.title);
        }
    }

    #[test]
    fn every_mode_that_is_promised_something_exists() {
        let exists = |name: &str| crate::modes::ALL.iter().any(|mode| mode.name() == name);
        for row in &REQUEST_ROWS {
            let other = row.to.mode();
            assert!(
                exists(row.mode) && other.is_none_or(exists),
                "{}",
                row.title
            );
        }
    }
}
