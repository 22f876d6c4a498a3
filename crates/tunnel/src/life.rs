//! How long a tunnel takes new streams: until it is old, and never after one of its certificates has ended.
//!
//! A tunnel is authenticated once, when it is made. Whoever has lost an identity would keep it for as long as
//! an old tunnel takes streams, so each end stops by itself, by its own clock. Streams that are open go on.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tls::Clock;
use tokio::time::Instant;

/// Which end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// The certificates of both sides.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    /// When the first of them ends.
    pub(crate) ends: SystemTime,
    /// What that is compared with.
    pub(crate) clock: Arc<dyn Clock>,
}

/// When a tunnel takes no more streams.
#[derive(Debug)]
pub(crate) struct Life {
    /// From then on it is replaced, in good time.
    pub(crate) retires: Instant,
    certificates: Option<Certificates>,
}

impl Life {
    /// A tunnel that begins now. `certificates` are missing where the caller has made the TLS connection.
    pub(crate) fn new(side: Side, max_age: Duration, certificates: Option<Certificates>) -> Self {
        let left = certificates.as_ref();
        let left = left.map_or(Duration::MAX, Certificates::left);
        let random = rand::random_range(0.0..1.0);
        let now = Instant::now();
        let retires = now.checked_add(retirement(side, max_age, left, random));
        Self {
            retires: retires.unwrap_or(now + FAR),
            certificates,
        }
    }

    /// Whether the tunnel takes no new streams.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.retires || self.has_ended()
    }

    /// Whether a certificate has ended: by the wall clock, also after the machine was suspended.
    pub(crate) fn has_ended(&self) -> bool {
        self.certificates
            .as_ref()
            .is_some_and(|certificates| certificates.left().is_zero())
    }
}

impl Certificates {
    fn left(&self) -> Duration {
        let left = self.ends.duration_since(self.clock.now());
        left.unwrap_or_default()
    }
}

/// The age at which a tunnel is replaced. `left` is what is left of its certificates, `random` is in 0..1:
/// tunnels that were made at once are not replaced at once.
///
/// The client is the first, because nothing of it is on its way then; a server's GOAWAY may cross a request.
fn retirement(side: Side, max_age: Duration, left: Duration, random: f64) -> Duration {
    let Range { start, end } = match side {
        Side::Client => CLIENT_SHARE,
        Side::Server => SERVER_SHARE,
    };
    let share = start + (end - start) * random.clamp(0.0, 1.0);
    max_age.min(left).min(FAR).mul_f64(share)
}

/// Shares of the age that a tunnel may have.
const CLIENT_SHARE: Range<f64> = 0.75..0.9;
const SERVER_SHARE: Range<f64> = 0.9..1.0;

/// As good as never.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_replaced_before_its_age_and_its_certificates_end_and_by_the_client_first() {
        let secs = Duration::from_secs;
        for (max_age, left, client, server) in [
            (secs(1000), secs(86_400), (750, 900), (900, 1000)),
            (secs(1000), secs(100), (75, 90), (90, 100)),
            (secs(1000), Duration::ZERO, (0, 0), (0, 0)),
            (Duration::MAX, secs(1000), (750, 900), (900, 1000)),
        ] {
            for (side, (first, last)) in [(Side::Client, client), (Side::Server, server)] {
                for (random, age) in [(0.0, first), (1.0, last)] {
                    let retires = retirement(side, max_age, left, random);
                    assert_eq!(retires, secs(age), "{side:?}, {max_age:?}, {left:?}");
                }
            }
        }
        assert!(retirement(Side::Server, Duration::MAX, Duration::MAX, 1.0) <= FAR);
    }
}
