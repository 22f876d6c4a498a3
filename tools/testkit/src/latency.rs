//! How long a request and its answer take on a kept connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Samples of one kind, to be asked for quantiles.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    samples: Vec<Duration>,
}

impl Latencies {
    /// Adds samples.
    pub fn extend(&mut self, samples: impl IntoIterator<Item = Duration>) {
        self.samples.extend(samples);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// The value that `share` (0 to 1) of the samples do not exceed; zero without samples.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index below the number of samples"
        )]
        let index = ((last as f64) * share.clamp(0.0, 1.0)).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }
}

/// Sends `size` bytes to an echo and waits for them to come back, `count` times.
///
/// # Errors
/// The connection breaks.
pub fn measure_round_trips(stream: &TcpStream, size: usize, count: usize) -> Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    let (mut writer, mut reader) = (stream, stream);
    let request = vec![b'x'; size];
    let mut answer = vec![0; size];
    (0..count)
        .map(|_| {
            let start = Instant::now();
            writer.write_all(&request)?;
            reader.read_exact(&mut answer)?;
            Ok(start.elapsed())
        })
        .collect::<std::io::Result<_>>()
        .context("measuring round trips")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        latencies.extend((1..=101).rev().map(Duration::from_micros));
        assert_eq!(latencies.quantile(0.5), Duration::from_micros(51));
        assert_eq!(latencies.quantile(0.99), Duration::from_micros(100));
        assert_eq!(latencies.quantile(1.0), Duration::from_micros(101));
    }
}
