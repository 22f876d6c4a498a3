//! The controller: turns configuration into what node agents need, and serves it.
//!
//! source -> snapshot -> delta xDS, beside it the certificate authority. What is between source and snapshot is pure, and
//! has a crate of its own: [`compile`].

pub mod app;
pub mod captures;
mod companions;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gateways;
mod installation;
mod marks;
pub mod metrics;
pub mod options;
mod pages;
pub mod pipeline;
mod root;
pub mod serve;
pub mod settings;
pub mod signer;
pub mod source;
pub mod status;
mod taint;
mod webhook;
