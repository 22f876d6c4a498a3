//! From many runs to one number: medians, and ratios to the base mode within each repetition.

use crate::modes::BASE;
use crate::results::{Results, Run};
use crate::scenario::{Figure, Scenario};
use crate::site::Placement;

/// Several values of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub count: usize,
    /// Others had the machine during all of the runs, so that these had to be taken.
    pub disturbed: bool,
}

impl Spread {
    /// Of these values; `None` if there is none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            min,
            median: f64::midpoint(lower, upper),
            max,
            count: values.len(),
            disturbed: false,
        })
    }
}

/// A cell of the results: one mode, one traffic, one placement.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// All results.
    pub results: &'a Results,
    /// The traffic.
    pub scenario: Scenario,
    /// Where the server was.
    pub placement: Placement,
}

impl<'a> Cell<'a> {
    /// The figure itself, over the runs that nobody disturbed.
    #[must_use]
    pub fn value(self, mode: &str, figure: Figure) -> Option<Spread> {
        clean_or_all(|disturbed| {
            Spread::of(
                self.runs(mode)
                    .filter(|run| disturbed || !run.disturbed)
                    .filter_map(|run| figure.of(run)),
            )
        })
    }

    /// The figure as a multiple of the base mode's in the same repetition, over the repetitions in
    /// which nobody disturbed either.
    #[must_use]
    pub fn ratio(self, mode: &str, figure: Figure) -> Option<Spread> {
        self.ratio_to(mode, BASE, figure)
    }

    /// The same as a multiple of another mode's.
    #[must_use]
    pub fn ratio_to(self, mode: &str, base: &str, figure: Figure) -> Option<Spread> {
        self.compared([mode, base], |[one, base]| {
            Some(figure.of(one)? / figure.of(base)?)
        })
    }

    /// What a mode adds to the base mode's figure, as a multiple of what another mode adds.
    #[must_use]
    pub fn added_to(self, mode: &str, other: &str, figure: Figure) -> Option<Spread> {
        self.compared([mode, other, BASE], |[one, other, base]| {
            let base = figure.of(base)?;
            Some((figure.of(one)? - base) / (figure.of(other)? - base))
        })
    }

    /// How much more a mode has than another.
    #[must_use]
    pub fn difference(self, mode: &str, other: &str, figure: Figure) -> Option<Spread> {
        self.compared([mode, other], |[one, other]| {
            Some(figure.of(one)? - figure.of(other)?)
        })
    }

    /// A number made of one run of each mode, all of the same repetition.
    fn compared<const N: usize>(
        self,
        modes: [&str; N],
        number: impl Fn([&Run; N]) -> Option<f64>,
    ) -> Option<Spread> {
        let [first, ..] = modes.as_slice() else {
            return None;
        };
        clean_or_all(|disturbed| {
            let of = |mode: &str, repetition: u32| {
                self.runs(mode)
                    .find(|run| run.repetition == repetition && (disturbed || !run.disturbed))
            };
            let repetitions = self.runs(first).map(|run| run.repetition);
            Spread::of(repetitions.filter_map(|repetition| {
                let runs: Option<Vec<&Run>> =
                    modes.iter().map(|mode| of(mode, repetition)).collect();
                number(runs?.try_into().ok()?)
            }))
        })
    }

    /// Runs that were left out because of others, and all.
    #[must_use]
    pub fn left_out(self, mode: &str) -> (usize, usize) {
        let disturbed = self.runs(mode).filter(|run| run.disturbed).count();
        (disturbed, self.runs(mode).count())
    }

    fn runs<'m>(self, mode: &'m str) -> impl Iterator<Item = &'a Run> + use<'a, 'm> {
        self.results.runs.iter().filter(move |run| {
            run.mode == mode && run.scenario == self.scenario && run.placement == self.placement
        })
    }
}

/// Undisturbed runs if there are any, otherwise all, marked.
fn clean_or_all(spread: impl Fn(bool) -> Option<Spread>) -> Option<Spread> {
    if let Some(clean) = spread(false) {
        return Some(clean);
    }
    let all = spread(true)?;
    Some(Spread {
        disturbed: true,
        ..all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run;

    #[test]
    fn the_median_is_in_the_middle() {
        let check = |values: &[f64], expected: Option<(f64, f64, f64)>| {
            let spread = Spread::of(values.iter().copied());
            assert_eq!(
                spread.map(|spread| (spread.min, spread.median, spread.max)),
                expected,
                "{values:?}"
            );
        };
        check(&[], None);
        check(&[f64::NAN], None);
        check(&[3.0], Some((3.0, 3.0, 3.0)));
        check(&[4.0, 1.0], Some((1.0, 2.5, 4.0)));
        check(&[9.0, 1.0, 2.0, f64::INFINITY], Some((1.0, 2.0, 9.0)));
    }

    fn cell(results: &Results) -> Cell<'_> {
        Cell {
            results,
            scenario: Scenario::One,
            placement: Placement::TwoNodes,
        }
    }

    fn results(runs: Vec<Run>) -> Results {
        Results {
            runs,
            ..Results::default()
        }
    }

    #[test]
    fn ratios_pair_runs_of_one_repetition() {
        let results = results(vec![
            run("direct", Scenario::One, 0, 10.0, 100),
            run("ambient", Scenario::One, 0, 20.0, 50),
            run("direct", Scenario::One, 1, 40.0, 100),
            run("ambient", Scenario::One, 1, 60.0, 80),
            // Its direct run failed.
            run("ambient", Scenario::One, 2, 1000.0, 1),
            run("direct", Scenario::Many, 0, 1.0, 1),
        ]);
        let ratio = cell(&results).ratio("ambient", Figure::P50).unwrap();
        assert_eq!(
            (ratio.min, ratio.median, ratio.max, ratio.count),
            (1.5, 1.75, 2.0, 2)
        );
        let ratio = cell(&results).ratio("ambient", Figure::Rate).unwrap();
        assert_eq!((ratio.min, ratio.max), (0.5, 0.8));
        assert_eq!(cell(&results).ratio("sidecar", Figure::P50), None);
        assert_eq!(
            cell(&results).value("ambient", Figure::P50).unwrap().count,
            3
        );
    }

    #[test]
    fn disturbed_runs_are_left_out_unless_there_is_nothing_else() {
        let mut runs = vec![
            run("direct", Scenario::One, 0, 10.0, 100),
            run("ambient", Scenario::One, 0, 20.0, 50),
            run("direct", Scenario::One, 1, 10.0, 100),
            run("ambient", Scenario::One, 1, 90.0, 50),
        ];
        runs.last_mut().unwrap().disturbed = true;
        let some = results(runs.clone());
        let ratio = cell(&some).ratio("ambient", Figure::P50).unwrap();
        assert_eq!(
            (ratio.median, ratio.count, ratio.disturbed),
            (2.0, 1, false)
        );
        assert_eq!(cell(&some).left_out("ambient"), (1, 2));

        for run in &mut runs {
            run.disturbed = true;
        }
        let all = results(runs);
        let ratio = cell(&all).ratio("ambient", Figure::P50).unwrap();
        assert_eq!((ratio.median, ratio.count, ratio.disturbed), (5.5, 2, true));
    }
}
