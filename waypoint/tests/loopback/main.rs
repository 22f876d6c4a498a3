//! The waypoint's workers over loopback: real clients, real servers, configurations made of l7's own resources.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests"
)]

mod changes;
mod doors;
mod gateway;
mod hostile;
mod hosts;
mod originate;
mod passing;
mod policy;
mod protocols;
mod resilience;
mod routing;
mod support;
mod traces;
