//! The promises of [`thin`](../thin/main.rs) once more, with TLS records of our own.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../it/copying.rs"]
mod copying;
#[path = "../it/ending.rs"]
mod ending;
#[path = "../it/memory.rs"]
mod memory;
#[path = "../thin/peers.rs"]
mod peers;
#[path = "../it/pooling.rs"]
mod pooling;
#[path = "../thin/raw.rs"]
mod raw;
#[path = "../it/retiring.rs"]
mod retiring;
#[path = "../it/support.rs"]
mod support;
#[path = "../it/tunnelling.rs"]
mod tunnelling;
#[path = "../thin/wire.rs"]
mod wire;

/// Who makes the records.
pub(crate) const RECORDS: tunnel::settings::RecordLayer = tunnel::settings::RecordLayer::Own;
