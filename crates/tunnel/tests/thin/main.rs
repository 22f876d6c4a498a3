//! The promises of [`it`](../it/main.rs) once more, kept by the framing that only agents of ours
//! speak; and what a peer that breaks it is told.
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
mod peers;
#[path = "../it/pooling.rs"]
mod pooling;
mod raw;
#[path = "../it/retiring.rs"]
mod retiring;
#[path = "../it/support.rs"]
mod support;
#[path = "../it/tunnelling.rs"]
mod tunnelling;
mod wire;

/// Who makes the records.
pub(crate) const RECORDS: tunnel::settings::RecordLayer = tunnel::settings::RecordLayer::Rustls;
