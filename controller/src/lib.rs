//! The controller: turns configuration into what node agents need, and serves it.
//!
//! source -> store and index -> snapshot -> delta xDS, beside it the certificate authority. Everything between source
//! and snapshot is pure.

pub mod app;
pub mod diagnostics;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod index;
pub mod metrics;
pub mod options;
mod pages;
pub mod pipeline;
pub mod resource;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod store;
