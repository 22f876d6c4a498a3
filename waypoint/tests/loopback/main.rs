//! The waypoint's workers over loopback: real clients, real servers, configurations made of l7's own resources.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests"
)]

mod changes;
mod connect;
mod deadlines;
mod doors;
mod early;
mod gateway;
mod hostile;
mod hosts;
mod idle;
mod limits;
mod originate;
mod passing;
mod policy;
mod protocols;
mod resilience;
mod routing;
mod rules;
mod smuggling;
mod support;
mod traces;
mod websocket;
