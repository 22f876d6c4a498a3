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
    /// Processors that others used meanwhile.
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
}

impl Turn {
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
    let mut out =
        String::from("| | | without | with | ratio, median | min to max |\n|-|-|-:|-:|-:|-:|\n");
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
            let ratio = Spread::of(used.iter().filter_map(|turn| turn.ratio(pick)));
            let (median, range) = ratio.map_or_else(Default::default, |ratio| {
                let range = format!("{:.2} to {:.2}", ratio.min, ratio.max);
                (format!("{:.2}{mark}", ratio.median), range)
            });
            let _ = writeln!(
                out,
                "| {} | {name} | {} | {} | {median} | {range} |",
                placement.title(),
                side(|turn| &turn.still),
                side(|turn| &turn.pushed),
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
        .map(|turn| turn.still.report.errors + turn.pushed.report.errors)
        .sum();
    let left_out = turns.iter().filter(|turn| turn.disturbed).count();
    let _ = write!(
        out,
        "\n{changes:.0} changed objects per second, {acks:.0} responses per second accepted by the two agents; {errors} \
         requests failed; {left_out} of {} turns were left out because others had the machine.\n",
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
        let turn = |disturbed, still, pushed| Turn {
            placement: Placement::SameNode,
            repetition: 0,
            disturbed,
            still: side(still),
            pushed: side(pushed),
        };
        let table = table(&[turn(false, 100.0, 110.0), turn(true, 100.0, 900.0)]);
        assert!(
            table.contains("| same node | p99 | 100 us | 110 us | 1.10 | 1.10 to 1.10 |"),
            "{table}"
        );
        assert!(
            table.contains("1000 changed objects per second, 50 responses"),
            "{table}"
        );
        assert!(table.contains("1 of 2 turns"), "{table}");
    }
}
