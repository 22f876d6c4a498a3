//! What a run of the load says when it is over, as one JSON object.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::usage::Usage;

/// What was observed in one window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Length of the window, in seconds.
    pub seconds: f64,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were not: refused, broken off, or answered with an error.
    pub errors: u64,
    /// Bytes of bulk data that arrived.
    pub bytes: u64,
    /// How long answers took; `None` where there are none.
    pub latency: Option<Quantiles>,
    /// What the window cost.
    pub usage: Usage,
    /// The congestion control of the client's sockets.
    pub congestion: String,
    /// Connections that were open at the end, for a load that is about them.
    pub connections: u64,
}

impl LoadReport {
    /// Answers per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Gigabits of bulk data per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// A distribution of latencies, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// What nine of ten do not exceed.
    pub p90: f64,
    /// What 99 of 100 do not exceed.
    pub p99: f64,
    /// What 999 of 1,000 do not exceed.
    pub p999: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

/// Latencies as they come, to three significant digits.
#[derive(Debug)]
pub(crate) struct Recorder {
    nanoseconds: Histogram<u64>,
}

impl Recorder {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let nanoseconds = Histogram::new_with_bounds(100, LONGEST, 3)?;
        Ok(Self { nanoseconds })
    }

    pub(crate) fn record(&mut self, latency: std::time::Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    pub(crate) fn quantiles(&self) -> Option<Quantiles> {
        if self.nanoseconds.is_empty() {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "at most a minute of nanoseconds"
        )]
        let at = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        Some(Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            mean: self.nanoseconds.mean() / 1e3,
        })
    }

    pub(crate) fn clear(&mut self) {
        self.nanoseconds.reset();
    }
}

/// A minute, in nanoseconds: longer ones count as this.
const LONGEST: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut recorder = Recorder::new().unwrap();
        assert_eq!(recorder.quantiles(), None);
        for micros in 1..=1000 {
            recorder.record(Duration::from_micros(micros));
        }
        let quantiles = recorder.quantiles().unwrap();
        for (value, expected) in [
            (quantiles.p50, 500.0),
            (quantiles.p90, 900.0),
            (quantiles.p99, 990.0),
            (quantiles.p999, 999.0),
            (quantiles.max, 1000.0),
            (quantiles.mean, 500.5),
        ] {
            assert!((value / expected - 1.0).abs() < 0.002, "{value} {expected}");
        }
    }
}
