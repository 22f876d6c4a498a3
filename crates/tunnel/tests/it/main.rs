//! What a tunnel, its streams, its copies and its pool promise, over loopback and in memory.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod copying;
mod ending;
mod expiry;
mod foreign;
mod memory;
mod mtls;
mod pooling;
mod retiring;
mod support;
mod tunnelling;
mod wire;
