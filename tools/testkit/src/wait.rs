//! Waiting for a condition instead of a time, and ports nobody uses.

use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Tries again, every ten milliseconds, until it works.
///
/// # Errors
/// It did not within `timeout`; the last failure is the source.
pub fn eventually<T>(
    what: &str,
    timeout: Duration,
    attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    eventually_every(Duration::from_millis(10), what, timeout, attempt)
}

/// The same for what is dear to ask: there is a pause between two tries.
///
/// # Errors
/// As [`eventually`].
pub fn eventually_every<T>(
    pause: Duration,
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let timeout = patient(timeout);
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(anyhow!("{what}: not within {timeout:?}")));
            }
            Err(_) => thread::sleep(pause),
        }
    }
}

/// How long to wait for what should take no longer than `limit` on a machine as fast as most: `KEELSON_PATIENCE`
/// times as long, where that is set, as it is on a machine without acceleration.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("KEELSON_PATIENCE").ok();
    limit * factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// A TCP port that was free on loopback of the calling thread's namespace a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_told() {
        let mut tries = 0;
        let value = eventually("it works", Duration::from_secs(5), || {
            tries += 1;
            if tries < 3 {
                Err(anyhow!("try {tries}"))
            } else {
                Ok(tries)
            }
        });
        assert_eq!(value.unwrap(), 3);
        let late = eventually("it works", Duration::ZERO, || -> Result<()> {
            Err(anyhow!("no"))
        });
        assert_eq!(
            format!("{:#}", late.unwrap_err()),
            "it works: not within 0ns: no"
        );
    }
}
