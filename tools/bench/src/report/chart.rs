//! The budget's rows as bars, in an SVG that stands on a slide: no scripts, no fonts of its own.

use std::fmt::Write as _;

use crate::budget::{ROWS, Row, Unit};
use crate::modes::{ALL, BASE};
use crate::results::Results;

/// A chart of the rows that were measured: on the left what should be long, on the right what
/// should be short.
#[must_use]
pub fn chart(results: &Results) -> String {
    let chart = Chart {
        results,
        modes: results
            .modes()
            .into_iter()
            .filter(|mode| *mode != BASE)
            .collect(),
    };
    let mut body = String::new();
    let right = WIDTH / 2.0 + MARGIN / 2.0;
    let long = chart.panel(
        &mut body,
        (MARGIN, HEAD),
        &Panel {
            title: "Share of the throughput that is left",
            hint: "longer is better",
            rows: chart.rows(|row| row.unit == Unit::Times && !row.figure.smaller_is_better()),
            together: true,
        },
    );
    let short = chart.panel(
        &mut body,
        (right, HEAD),
        &Panel {
            title: "Times the latency or processor time",
            hint: "shorter is better",
            rows: chart.rows(|row| row.unit == Unit::Times && row.figure.smaller_is_better()),
            together: true,
        },
    );
    let memory = chart.panel(
        &mut body,
        (right, short),
        &Panel {
            title: "Memory",
            hint: "shorter is better",
            rows: chart.rows(|row| row.unit != Unit::Times),
            together: false,
        },
    );
    let height = long.max(memory).max(HEAD) + FOOT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"38\" font-size=\"24\" font-weight=\"bold\" fill=\"#1a202c\">The cost of a mesh, relative to none</text>\n"
    );
    legend(&mut out, &chart.modes);
    let mark = if body.contains(MARK) {
        "; * while others had the machine: a hint"
    } else {
        ""
    };
    out.push_str(&body);
    let machine = &results.machine;
    let _ = write!(
        out,
        "<g font-size=\"12\" fill=\"#718096\"><text x=\"{MARGIN}\" y=\"{:.0}\">1 KiB requests; medians of up to {} interleaved \
         repetitions; the dark line is what Keelson must reach{mark}</text>\n\
         <text x=\"{MARGIN}\" y=\"{:.0}\">{} processors, kernel {}; Keelson {} ({} build)</text></g>\n</svg>\n",
        height - 34.0,
        results.settings.repetitions,
        height - 16.0,
        machine.processors,
        escape(&machine.kernel),
        escape(&machine.commit),
        escape(&machine.profile),
    );
    out
}

struct Chart<'a> {
    results: &'a Results,
    modes: Vec<&'a str>,
}

struct Panel {
    title: &'static str,
    hint: &'static str,
    rows: Vec<&'static Row>,
    /// Whether all rows have one scale.
    together: bool,
}

impl Chart<'_> {
    fn rows(&self, belongs: impl Fn(&Row) -> bool) -> Vec<&'static Row> {
        let rows = ROWS.iter().filter(|row| belongs(row));
        rows.filter(|row| self.largest(row).is_some()).collect()
    }

    fn largest(&self, row: &Row) -> Option<f64> {
        let measured = self
            .modes
            .iter()
            .filter_map(|mode| row.measured(self.results, mode));
        measured.map(|spread| spread.median).reduce(f64::max)
    }

    /// Draws the panel with its upper left corner there, and returns where it ends.
    fn panel(&self, out: &mut String, (x, mut y): (f64, f64), panel: &Panel) -> f64 {
        if panel.rows.is_empty() {
            return y;
        }
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{:.0}\" font-size=\"16\" font-weight=\"bold\" fill=\"#2d3748\">{} \
             <tspan font-weight=\"normal\" fill=\"#718096\">({})</tspan></text>",
            y - 14.0,
            panel.title,
            panel.hint
        );
        let all = panel.rows.iter().filter_map(|row| self.largest(row));
        let all = all.fold(1.0, f64::max);
        for row in &panel.rows {
            let own = self.largest(row).unwrap_or(all).max(row.at_least);
            let full = if panel.together { all } else { own };
            y = self.bars(out, (x, y + TITLE), row, full);
        }
        y + TITLE * 2.0
    }

    fn bars(&self, out: &mut String, (x, mut y): (f64, f64), row: &Row, full: f64) -> f64 {
        let scale = |value: f64| value / full * (WIDTH / 2.0 - MARGIN * 1.5 - VALUE);
        let promise = x + scale(row.at_least);
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{:.1}\" font-size=\"13\" fill=\"#2d3748\">{}</text>",
            y - 6.0,
            escape(row.title)
        );
        let top = y;
        for mode in &self.modes {
            if let Some(spread) = row.measured(self.results, mode) {
                let width = scale(spread.median).max(1.0);
                let mut text = x + width + 6.0;
                if y == top && text - 6.0 < promise && promise < text + VALUE {
                    text = promise + 6.0;
                }
                let _ = writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>\
                     <text x=\"{text:.1}\" y=\"{:.1}\" font-size=\"12\" fill=\"#2d3748\">{}{}</text>",
                    BAR - 3.0,
                    colour(mode),
                    y + BAR - 6.0,
                    row.format(spread.median),
                    if spread.disturbed { MARK } else { "" },
                );
            }
            y += BAR;
        }
        let _ = writeln!(
            out,
            "<line x1=\"{promise:.1}\" x2=\"{promise:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#1a202c\" stroke-width=\"1.5\"/>",
            top - 3.0,
            top + BAR
        );
        y + GAP
    }
}

fn legend(out: &mut String, modes: &[&str]) {
    let mut x = MARGIN;
    for mode in modes {
        let title = ALL
            .iter()
            .find(|known| known.name() == *mode)
            .map_or(*mode, |known| known.title());
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"54\" width=\"14\" height=\"14\" rx=\"2\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"66\" font-size=\"14\" fill=\"#2d3748\">{}</text>",
            colour(mode),
            x + 20.0,
            escape(title)
        );
        x += 50.0 + title.len() as f64 * 7.4;
    }
}

/// Ours stand out, others are quiet; told apart in grey print too.
fn colour(mode: &str) -> &'static str {
    match mode {
        "ambient" => "#0f766e",
        "ambient-mtls" => "#5eb5ac",
        "sidecar" => "#c2703d",
        "sidecar-tcp" => "#e3b48f",
        _ => "#a0aec0",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

const MARK: &str = " *";
const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 40.0;
const HEAD: f64 = 118.0;
const FOOT: f64 = 34.0;
const TITLE: f64 = 24.0;
const BAR: f64 = 18.0;
const GAP: f64 = 10.0;
const VALUE: f64 = 70.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run;
    use crate::scenario::Scenario;

    #[test]
    fn bars_are_as_long_as_their_ratio_and_nothing_leaves_the_picture() {
        let results = Results {
            runs: vec![
                run("direct", Scenario::Many, 0, 20.0, 1000),
                run("ambient", Scenario::Many, 0, 30.0, 500),
                run("sidecar", Scenario::Many, 0, 30.0, 250),
                run("direct", Scenario::One, 0, 20.0, 1000),
                run("ambient", Scenario::One, 0, 40.0, 500),
                run("sidecar", Scenario::One, 0, 400.0, 250),
            ],
            ..Results::default()
        };
        let svg = chart(&results);
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("fill=\"#0f766e\"") || line.contains("fill=\"#c2703d\""))
            .filter_map(|line| {
                line.split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .filter(|width| *width != 14.0)
            .collect();
        assert_eq!(widths.len(), 4, "{svg}");
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.01);
        assert!((widths[3] / widths[2] - 10.0).abs() < 0.1);
        assert!(widths.iter().all(|width| *width < WIDTH / 2.0));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn what_comes_from_the_machine_is_escaped() {
        let mut results = Results::default();
        results.machine.kernel = "<&>".to_owned();
        assert!(chart(&results).contains("&lt;&amp;&gt;"));
    }
}
