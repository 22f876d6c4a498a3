//! What people read: tables, a chart, a page.

mod chart;
mod page;
mod table;

pub use chart::chart;
pub use page::{update, update_part};
pub use table::{budget, details, programs, syscalls};

use crate::scenario::{Figure, Scenario};

/// A number with its unit, as short as it stays useful.
#[must_use]
pub fn quantity(figure: Figure, scenario: Scenario, value: f64) -> String {
    let bulk = scenario == Scenario::Bulk;
    match figure {
        Figure::P50 | Figure::P90 | Figure::P99 | Figure::P999 => micros(value),
        Figure::Rate => format!("{}/s", thousands(value)),
        Figure::Gigabits => format!("{value:.1} Gbit/s"),
        // Microseconds per megabyte are milliseconds per gigabyte.
        Figure::MeshCpu | Figure::AllCpu if bulk => format!("{value:.0} ms/GB"),
        // Microseconds per request are milliseconds per 1,000.
        Figure::MeshCpu | Figure::AllCpu => format!("{value:.1} ms/1k"),
        Figure::Switches if bulk => format!("{value:.1}/MB"),
        Figure::Switches => format!("{value:.2}/req"),
        Figure::Resident => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        Figure::IdleBytes => format!("{:.2} KiB", value / 1024.0),
    }
}

fn micros(value: f64) -> String {
    if value < 1000.0 {
        format!("{value:.0} us")
    } else {
        format!("{:.1} ms", value / 1000.0)
    }
}

/// A whole number with its thousands apart.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_units() {
        for (figure, scenario, value, expected) in [
            (Figure::P50, Scenario::One, 20.4, "20 us"),
            (Figure::P99, Scenario::One, 1234.0, "1.2 ms"),
            (Figure::Rate, Scenario::Many, 1_234_567.0, "1,234,567/s"),
            (Figure::Rate, Scenario::Many, 999.6, "1,000/s"),
            (Figure::Rate, Scenario::Many, 12.0, "12/s"),
            (Figure::AllCpu, Scenario::Bulk, 80.4, "80 ms/GB"),
            (Figure::MeshCpu, Scenario::Many, 80.44, "80.4 ms/1k"),
            (Figure::IdleBytes, Scenario::Idle, 1536.0, "1.50 KiB"),
        ] {
            assert_eq!(quantity(figure, scenario, value), expected);
        }
    }
}
