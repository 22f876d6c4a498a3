//! Results as text, the same for a terminal and for Markdown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::budget::{REQUEST_ROWS, ROWS, RequestRow, Row};
use crate::modes::BASE;
use crate::report::quantity;
use crate::results::{Results, Syscalls};
use crate::scenario::{Figure, Scenario};
use crate::site::Placement;
use crate::statistics::{Cell, Spread};

/// A table with padded cells between bars: Markdown that reads well without being rendered.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn print(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map(String::as_str).unwrap_or_default();
                let pad = " ".repeat(width - cell.chars().count());
                let (left, right) = if column == 0 {
                    ("", &*pad)
                } else {
                    (&*pad, "")
                };
                let _ = write!(out, "| {left}{cell}{right} ");
            }
            out.push_str("|\n");
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let end = if column == 0 { "-" } else { ":" };
                    let _ = write!(out, "|{}{end}", "-".repeat(width + 1));
                }
                out.push_str("|\n");
            }
        }
        out
    }
}

/// What was promised beside what was measured.
#[must_use]
pub fn budget(results: &Results) -> String {
    let modes: Vec<&str> = results
        .modes()
        .into_iter()
        .filter(|mode| *mode != BASE && !is_for_requests(mode))
        .collect();
    let mut table = Table::default();
    let mut head = vec!["to no mesh, median (min-max)".to_owned()];
    head.extend(modes.iter().map(|mode| (*mode).to_owned()));
    head.extend(["at least", "aim", "Keelson"].map(str::to_owned));
    table.row(head);
    let any = |row: &&Row| {
        modes
            .iter()
            .any(|mode| row.measured(results, mode).is_some())
    };
    for row in ROWS.iter().filter(any) {
        let mut cells = vec![row.title.to_owned()];
        for mode in &modes {
            let measured = row.measured(results, mode);
            cells.push(measured.map_or_else(|| "-".to_owned(), |spread| spread_text(row, spread)));
        }
        cells.extend([row.format(row.at_least), row.format(row.aim)]);
        cells.push(verdict(row, row.measured(results, KEELSON)).to_owned());
        table.row(cells);
    }
    let mut out = if table.rows.len() > 1 {
        table.print()
    } else {
        String::new()
    };
    let requests = requests(results);
    if requests.rows.len() > 1 {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &requests.print();
    }
    if out.contains(MARK) {
        let _ = writeln!(
            out,
            "\n{MARK} only measured while others had the machine: read it as a hint."
        );
    }
    out
}

/// What was promised of proxies that read requests.
fn requests(results: &Results) -> Table {
    let mut table = Table::default();
    table.row([
        "requests, median (min-max)",
        "measured",
        "at least",
        "aim",
        "Keelson",
    ]);
    for row in &REQUEST_ROWS {
        let Some(spread) = row.measured(results) else {
            continue;
        };
        let mark = if spread.disturbed { MARK } else { "" };
        let unit = row.unit();
        let [median, min, max] =
            [spread.median, spread.min, spread.max].map(|one| unit.format(one));
        let measured = format!("{median} ({min} to {max}){mark}");
        let kept = |bound| row.keeps(spread.median, bound);
        let verdict = match (kept(row.aim), kept(row.at_least)) {
            (true, _) => "aim reached",
            (false, true) => "ok",
            (false, false) => "MISSED",
        };
        table.row([
            row.title.to_owned(),
            measured,
            unit.format(row.at_least),
            unit.format(row.aim),
            verdict.to_owned(),
        ]);
    }
    table
}

/// Whether a mode has no other promises than those of [`REQUEST_ROWS`].
fn is_for_requests(mode: &str) -> bool {
    let named = |row: &RequestRow| row.mode == mode || row.to.mode() == Some(mode);
    mode != BASE && (REQUEST_ROWS.iter().any(named) || mode.starts_with("hop-envoy"))
}

fn spread_text(row: &Row, spread: Spread) -> String {
    let mark = if spread.disturbed { MARK } else { "" };
    let text = |value: f64| row.format(value);
    if spread.count == 1 {
        return format!("{}{mark}", text(spread.median));
    }
    let bare = |value: f64| {
        let text = row.format(value);
        let end = text.find(['x', ' ']).unwrap_or(text.len());
        text.get(..end).unwrap_or_default().to_owned()
    };
    format!(
        "{} ({}-{}){mark}",
        text(spread.median),
        bare(spread.min),
        bare(spread.max)
    )
}

fn verdict(row: &Row, measured: Option<Spread>) -> &'static str {
    match measured {
        None => "-",
        Some(spread) if row.keeps(spread.median, row.aim) => "aim reached",
        Some(spread) if row.keeps(spread.median, row.at_least) => "ok",
        Some(_) => "MISSED",
    }
}

/// Everything that was measured, a table per traffic and placement.
#[must_use]
pub fn details(results: &Results) -> String {
    let mut out = String::new();
    for scenario in Scenario::ALL {
        for placement in Placement::ALL {
            let cell = Cell {
                results,
                scenario,
                placement,
            };
            let table = one(cell);
            if table.rows.len() > 1 {
                let _ = writeln!(
                    out,
                    "{}, {}\n\n{}",
                    scenario.title(),
                    placement.title(),
                    table.print()
                );
            }
        }
    }
    out
}

fn one(cell: Cell<'_>) -> Table {
    let figures = columns(cell.scenario);
    let mut table = Table::default();
    let mut head = vec!["mode"];
    head.extend(figures.iter().map(|(_, title)| *title));
    head.extend(["to no mesh", "runs"]);
    table.row(head);
    for mode in cell.results.modes() {
        let (left_out, all) = cell.left_out(mode);
        if all == 0 {
            continue;
        }
        let mut cells = vec![mode.to_owned()];
        for (figure, _) in figures {
            let value = cell.value(mode, *figure);
            cells.push(value.map_or_else(
                || "-".to_owned(),
                |value| quantity(*figure, cell.scenario, value.median),
            ));
        }
        let ratio = cell.ratio(mode, cell.scenario.headline());
        cells.push(match ratio {
            Some(ratio) if mode != BASE => {
                let mark = if ratio.disturbed { MARK } else { "" };
                format!(
                    "{:.2}x ({:.2}-{:.2}){mark}",
                    ratio.median, ratio.min, ratio.max
                )
            }
            _ => "-".to_owned(),
        });
        cells.push(format!("{} of {all}", all - left_out));
        table.row(cells);
    }
    table
}

fn columns(scenario: Scenario) -> &'static [(Figure, &'static str)] {
    match scenario {
        Scenario::Bulk => &[
            (Figure::Gigabits, "throughput"),
            (Figure::MeshCpu, "CPU of mesh"),
            (Figure::AllCpu, "CPU of all"),
            (Figure::Switches, "switches"),
            (Figure::Resident, "RSS/proxy"),
        ],
        Scenario::Idle => &[(Figure::IdleBytes, "per connection and proxy")],
        _ => &[
            (Figure::Rate, "requests"),
            (Figure::P50, "p50"),
            (Figure::P90, "p90"),
            (Figure::P99, "p99"),
            (Figure::P999, "p99.9"),
            (Figure::MeshCpu, "CPU of mesh"),
            (Figure::AllCpu, "CPU of all"),
            (Figure::Switches, "switches"),
            (Figure::Resident, "RSS/proxy"),
        ],
    }
}

/// What the eBPF programs cost; empty if none were looked at.
#[must_use]
pub fn programs(results: &Results) -> String {
    if results.programs.is_empty() {
        return String::new();
    }
    let mut table = Table::default();
    table.row([
        "mode",
        "eBPF program",
        "traffic",
        "server",
        "runs per request",
        "ns per run",
        "ns per request",
    ]);
    for program in &results.programs {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let [count, nanoseconds, requests] =
            [program.count, program.nanoseconds, program.requests.max(1)].map(|count| count as f64);
        table.row([
            program.mode.clone(),
            program.name.clone(),
            program.scenario.title().to_owned(),
            program.placement.title().to_owned(),
            format!("{:.2}", count / requests),
            format!("{:.0}", nanoseconds / count.max(1.0)),
            format!("{:.0}", nanoseconds / requests),
        ]);
    }
    table.print()
}

/// How many system calls the mesh makes; empty if they were not counted.
#[must_use]
pub fn syscalls(results: &Results) -> String {
    let modes: BTreeSet<&str> = results.syscalls.iter().map(|one| &*one.mode).collect();
    if modes.is_empty() {
        return String::new();
    }
    let mut table = Table::default();
    table.row(
        ["traffic", "server"]
            .into_iter()
            .chain(modes.iter().copied()),
    );
    let kinds: BTreeSet<_> = results
        .syscalls
        .iter()
        .map(|one| (one.scenario, one.placement))
        .collect();
    for (scenario, placement) in kinds {
        let cells = modes.iter().map(|mode| {
            let found = results.syscalls.iter().find(|one| {
                one.mode == *mode && one.scenario == scenario && one.placement == placement
            });
            found.map_or_else(String::new, per_unit)
        });
        let titles = [scenario.title(), placement.title()].map(str::to_owned);
        table.row(titles.into_iter().chain(cells));
    }
    table.print()
}

/// Per request or, where there are no requests, per MB.
fn per_unit(syscalls: &Syscalls) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let [count, requests, bytes] =
        [syscalls.count, syscalls.requests, syscalls.bytes].map(|count| count as f64);
    if syscalls.scenario == Scenario::Bulk {
        format!("{:.0} per MB", count * 1e6 / bytes.max(1.0))
    } else {
        format!("{:.2} per request", count / requests.max(1.0))
    }
}

const KEELSON: &str = "ambient";
const MARK: &str = "*";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run;

    fn sample() -> Results {
        Results {
            runs: vec![
                run("direct", Scenario::One, 0, 20.0, 100),
                run("ambient", Scenario::One, 0, 30.0, 50),
                run("direct", Scenario::Many, 0, 20.0, 1000),
                run("ambient", Scenario::Many, 0, 30.0, 200),
                run("direct", Scenario::Many, 1, 20.0, 1000),
                run("ambient", Scenario::Many, 1, 30.0, 220),
            ],
            ..Results::default()
        }
    }

    #[test]
    fn the_budget_says_what_was_kept_and_what_was_missed() {
        let text = budget(&sample());
        let line = |title: &str| text.lines().find(|line| line.contains(title)).unwrap();
        let kept = line("one kept connection, two nodes");
        assert!(
            kept.contains("1.50x") && kept.contains("aim reached"),
            "{kept}"
        );
        let missed = line("32 kept connections, two nodes");
        assert!(
            missed.contains("0.21x (0.20-0.22)") && missed.contains("MISSED"),
            "{missed}"
        );
        assert!(!text.contains("bulk"), "not measured, not shown: {text}");
        assert!(!text.contains('*'));
    }

    #[test]
    fn only_disturbed_runs_are_marked() {
        let mut results = sample();
        for run in &mut results.runs {
            run.disturbed = true;
        }
        assert!(budget(&results).contains("1.50x*"));
        assert!(details(&results).contains("0 of 2"));
    }

    #[test]
    fn columns_line_up() {
        let text = details(&sample());
        let tables = text.split("\n\n").filter(|part| part.starts_with('|'));
        for table in tables {
            let widths: Vec<usize> = table.lines().map(str::len).collect();
            assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        }
    }
}
