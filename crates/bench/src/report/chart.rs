//! The budget's rows as bars, in an SVG that stands on a slide: no scripts, no fonts of its own.

use std::fmt::Write as _;

use crate::budget::{ROWS, Row, Unit};
use crate::modes::{ALL, BASE};
use crate::results::Results;

/// A chart of all rows that compare with no mesh: on the left what should be short, on the right
/// what should be long.
#[must_use]
pub fn chart(results: &Results) -> String {
    let modes: Vec<&str> = results
        .modes()
        .into_iter()
        .filter(|mode| *mode != BASE)
        .collect();
    let rows = |slow: bool| -> Vec<&Row> {
        ROWS.iter()
            .filter(|row| row.unit == Unit::Times && row.figure.smaller_is_better() == slow)
            .filter(|row| {
                modes
                    .iter()
                    .any(|mode| row.measured(results, mode).is_some())
            })
            .collect()
    };
    let (long, short) = (rows(false), rows(true));
    let band = modes.len() as f64 * BAR + GAP;
    let height = HEAD + long.len().max(short.len()) as f64 * (band + TITLE) + FOOT;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
         <rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"38\" font-size=\"24\" font-weight=\"bold\" fill=\"#1a202c\">The cost of a mesh, relative to none</text>\n"
    );
    legend(&mut out, &modes);
    let right = WIDTH / 2.0 + MARGIN / 2.0;
    panel(
        &mut out,
        results,
        &modes,
        &long,
        &Panel {
            x: MARGIN,
            title: "Share of the throughput that is left",
            hint: "longer is better",
            largest: 1.0,
        },
    );
    let worst = short
        .iter()
        .flat_map(|row| modes.iter().filter_map(|mode| row.measured(results, mode)))
        .map(|spread| spread.median)
        .fold(2.0, f64::max);
    panel(
        &mut out,
        results,
        &modes,
        &short,
        &Panel {
            x: right,
            title: "Times the latency or processor time",
            hint: "shorter is better",
            largest: worst,
        },
    );
    let machine = &results.machine;
    let _ = write!(
        out,
        "<text x=\"{MARGIN}\" y=\"{:.0}\" font-size=\"12\" fill=\"#718096\">1 KiB requests; medians of up to {} interleaved repetitions; {} processors, kernel {}; Keelson {} ({}); the dark line is what Keelson must reach</text>\n</svg>\n",
        height - 18.0,
        results.settings.repetitions,
        machine.processors,
        escape(&machine.kernel),
        escape(&machine.commit),
        escape(&machine.profile),
    );
    out
}

struct Panel {
    x: f64,
    title: &'static str,
    hint: &'static str,
    /// What a full bar means.
    largest: f64,
}

fn panel(out: &mut String, results: &Results, modes: &[&str], rows: &[&Row], panel: &Panel) {
    if rows.is_empty() {
        return;
    }
    let width = WIDTH / 2.0 - MARGIN * 1.5 - VALUE;
    let scale = |value: f64| (value / panel.largest).min(1.05) * width;
    let x = panel.x;
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{:.0}\" font-size=\"16\" font-weight=\"bold\" fill=\"#2d3748\">{} <tspan font-weight=\"normal\" fill=\"#718096\">({})</tspan></text>",
        HEAD - 14.0,
        panel.title,
        panel.hint
    );
    let mut y = HEAD;
    for row in rows {
        y += TITLE;
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{:.1}\" font-size=\"13\" fill=\"#2d3748\">{}</text>",
            y - 6.0,
            escape(row.title)
        );
        let top = y;
        for mode in modes {
            let measured = row.measured(results, mode);
            if let Some(spread) = measured {
                let mark = if spread.disturbed { " *" } else { "" };
                let _ = writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" fill=\"#2d3748\">{}{mark}</text>",
                    scale(spread.median).max(1.0),
                    BAR - 3.0,
                    colour(mode),
                    x + scale(spread.median).max(1.0) + 6.0,
                    y + BAR - 6.0,
                    row.format(spread.median),
                );
            }
            y += BAR;
        }
        let promise = x + scale(row.at_least);
        let _ = writeln!(
            out,
            "<line x1=\"{promise:.1}\" x2=\"{promise:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#1a202c\" stroke-width=\"1.5\"/>",
            top - 3.0,
            top + BAR
        );
        y += GAP;
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

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 40.0;
const HEAD: f64 = 118.0;
const FOOT: f64 = 44.0;
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
