//! The whole controller over loopback TLS, spoken to by generated clients.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, also where clippy does not see it"
)]

mod admission;
mod certificates;
mod discovery;
mod restart;
mod silence;
mod support;
mod waypoints;
