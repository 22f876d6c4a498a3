//! What every Keelson daemon needs around its own work: logs, metrics, an admin page, draining, signals and safe file writes.
//!
//! Nothing here knows of meshes, policies or certificates.

pub mod admin;
pub mod busy;
pub mod descriptors;
pub mod drain;
pub mod file;
pub mod frames;
pub mod guests;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod signals;
pub mod threads;
