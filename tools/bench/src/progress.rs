//! One line for a person after each measurement.

use std::time::{Duration, Instant};

use crate::output::line;
use crate::report::quantity;
use crate::results::{Failed, Run};
use crate::scenario::Figure;

/// How far it is.
#[derive(Debug)]
pub(crate) struct Progress {
    done: usize,
    all: usize,
    start: Instant,
}

impl Progress {
    pub(crate) fn new(all: usize) -> Self {
        line(format_args!(""));
        Self {
            done: 0,
            all,
            start: Instant::now(),
        }
    }

    /// Something has to be done again.
    pub(crate) fn more(&mut self, measurements: usize) {
        self.all += measurements;
    }

    pub(crate) fn started(mode: &str, took: Duration) {
        line(format_args!(
            "  {mode:<14} stands ({:.1} s)",
            took.as_secs_f64()
        ));
    }

    pub(crate) fn skipped(mode: &str, reason: &str) {
        line(format_args!("  {mode:<14} takes no part: {reason}"));
    }

    pub(crate) fn measured(&mut self, run: &Run) {
        let mut said = Vec::new();
        for figure in [
            run.scenario.headline(),
            Figure::P50,
            Figure::P99,
            Figure::AllCpu,
        ] {
            let value = figure
                .of(run)
                .map(|value| quantity(figure, run.scenario, value));
            said.extend(value.filter(|value| !said.contains(value)));
        }
        if run.report.errors > 0 {
            said.push(format!("{} errors", run.report.errors));
        }
        if run.disturbed {
            said.push(format!("others had {:.2} processors: left out", run.others));
        }
        let prefix = self.prefix();
        line(format_args!(
            "{prefix} {:<9} {:<8} {:<14} {}",
            run.placement.title(),
            run.scenario.name(),
            run.mode,
            said.join("  ")
        ));
    }

    pub(crate) fn failed(&mut self, failed: &Failed) {
        let prefix = self.prefix();
        line(format_args!(
            "{prefix} {:<9} {:<8} {:<14} FAILED: {}",
            failed.placement.title(),
            failed.scenario.name(),
            failed.mode,
            failed.error
        ));
    }

    /// How many are done, and how long the rest will take at this pace.
    fn prefix(&mut self) -> String {
        self.done += 1;
        let left = self.all.saturating_sub(self.done);
        let each = self.start.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        let left = (each * u32::try_from(left).unwrap_or(0)).as_secs();
        format!(
            "{:>4}/{} -{:02}:{:02} ",
            self.done,
            self.all,
            left / 60,
            left % 60
        )
    }
}
