//! What came out with and without changes, as a table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::load::{LoadReport, Quantiles};
use crate::report::quantity;
use crate::scenario::{Figure, Scenario};
use crate::site::Placement;
use crate::statistics::Spread;

/// Traffic in one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// What the client saw.
    pub report: LoadReport,
    /// Processors that others used meanwhile: neither traffic, mesh and controller, nor the measurement itself.
    pub others: f64,
    /// Objects that changed.
    pub changes: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// Responses that agents accepted while traffic ran.
    pub acks: u64,
}

/// The same traffic without and with changes, one right after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Where the server was.
    pub placement: Placement,
    /// Which repetition.
    pub repetition: u32,
    /// Whether others had too much of the machine.
    pub disturbed: bool,
    /// Without changes.
    pub still: Side,
    /// With changes.
    pub pushed: Side,
    /// With the same changes of another mesh, all of which is in the idle class.
    pub elsewhere: Side,
}

/// Processors that changes take: of agents, controller and writer.
#[must_use]
pub fn work(still: &Side, pushed: &Side) -> f64 {
    let used =
        |side: &Side| side.report.usage.mesh.cpu() / side.report.seconds.max(f64::MIN_POSITIVE);
    (used(pushed) - used(still)).max(0.0)
}

impl Turn {
    /// Processors that changes took.
    #[must_use]
    pub fn work(&self) -> f64 {
        work(&self.still, &self.pushed)
    }

    /// How many times as long a quantile is with changes as with changes of another mesh.
    #[must_use]
    pub fn beyond_elsewhere(&self, pick: fn(&Quantiles) -> f64) -> Option<f64> {
        let (elsewhere, pushed) = (self.elsewhere.report.latency, self.pushed.report.latency);
        Some(pick(&pushed?) / pick(&elsewhere?))
    }

    /// How many times as long a quantile is with changes.
    #[must_use]
    pub fn ratio(&self, pick: fn(&Quantiles) -> f64) -> Option<f64> {
        let (still, pushed) = (self.still.report.latency, self.pushed.report.latency);
        Some(pick(&pushed?) / pick(&still?))
    }
}

/// All turns that nobody disturbed, or all where there are no others, which are marked.
#[must_use]
pub fn table(turns: &[Turn]) -> String {
    let mut out = String::from(
        "| | | without | with | ratio, median | min to max | changes elsewhere | here to elsewhere, median | min to max |\n|-|-|-:|-:|-:|-:|-:|-:|-:|\n",
    );
    for placement in Placement::ALL {
        let here: Vec<&Turn> = turns
            .iter()
            .filter(|turn| turn.placement == placement)
            .collect();
        let clean: Vec<&Turn> = here
            .iter()
            .copied()
            .filter(|turn| !turn.disturbed)
            .collect();
        let (used, mark) = if clean.is_empty() {
            (&here, "*")
        } else {
            (&clean, "")
        };
        for (figure, name, pick) in FIGURES {
            let side = |of: fn(&Turn) -> &Side| {
                let values = used
                    .iter()
                    .filter_map(|turn| Some(pick(&of(turn).report.latency?)));
                let median = Spread::of(values).map(|spread| spread.median);
                median.map_or_else(String::new, |median| {
                    quantity(figure, Scenario::Paced, median)
                })
            };
            let cells = |ratio: Option<Spread>| {
                ratio.map_or_else(Default::default, |ratio| {
                    let range = format!("{:.2} to {:.2}", ratio.min, ratio.max);
                    (format!("{:.2}{mark}", ratio.median), range)
                })
            };
            let (median, range) =
                cells(Spread::of(used.iter().filter_map(|turn| turn.ratio(pick))));
            let beyond = used.iter().filter_map(|turn| turn.beyond_elsewhere(pick));
            let (beyond, beyond_range) = cells(Spread::of(beyond));
            let _ = writeln!(
                out,
                "| {} | {name} | {} | {} | {median} | {range} | {} | {beyond} | {beyond_range} |",
                placement.title(),
                side(|turn| &turn.still),
                side(|turn| &turn.pushed),
                side(|turn| &turn.elsewhere),
            );
        }
    }
    let rate = |amount: fn(&Side) -> f64| {
        Spread::of(turns.iter().map(|turn| amount(&turn.pushed)))
            .map_or(0.0, |spread| spread.median)
    };
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let changes = rate(|side| side.changes as f64 / side.seconds.max(f64::MIN_POSITIVE));
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let acks = rate(|side| side.acks as f64 / side.report.seconds.max(f64::MIN_POSITIVE));
    let errors: u64 = turns
        .iter()
        .flat_map(|turn| [&turn.still, &turn.pushed, &turn.elsewhere])
        .map(|side| side.report.errors)
        .sum();
    let work = Spread::of(turns.iter().map(Turn::work)).map_or(0.0, |spread| spread.median);
    let left_out = turns.iter().filter(|turn| turn.disturbed).count();
    let _ = write!(
        out,
        "\n{changes:.0} changed objects per second, {acks:.0} responses per second accepted by the two agents; agents, \
         controller and writer used {work:.2} processors for it; {errors} requests failed; {left_out} of {} turns were left out because others had the machine.\n",
        turns.len()
    );
    out
}

type Pick = (Figure, &'static str, fn(&Quantiles) -> f64);

const FIGURES: [Pick; 3] = [
    (Figure::P50, "p50", |latency| latency.p50),
    (Figure::P99, "p99", |latency| latency.p99),
    (Figure::P999, "p99.9", |latency| latency.p999),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn side(p99: f64) -> Side {
        let latency = Quantiles {
            p99,
            ..Quantiles::default()
        };
        Side {
            report: LoadReport {
                latency: Some(latency),
                seconds: 2.0,
                ..LoadReport::default()
            },
            others: 0.0,
            changes: 2000,
            seconds: 2.0,
            acks: 100,
        }
    }

    #[test]
    fn ratios_are_within_a_turn_and_disturbed_turns_do_not_count() {
        let turn = |disturbed, still, pushed, elsewhere| Turn {
            placement: Placement::SameNode,
            repetition: 0,
            disturbed,
            still: side(still),
            pushed: side(pushed),
            elsewhere: side(elsewhere),
        };
        let table = table(&[
            turn(false, 100.0, 110.0, 88.0),
            turn(true, 100.0, 900.0, 100.0),
        ]);
        assert!(
            table.contains("| same node | p99 | 100 us | 110 us | 1.10 | 1.10 to 1.10 | 88 us | 1.25 | 1.25 to 1.25 |"),
            "{table}"
        );
        assert!(
            table.contains("1000 changed objects per second, 50 responses"),
            "{table}"
        );
        assert!(table.contains("1 of 2 turns"), "{table}");
    }
}
