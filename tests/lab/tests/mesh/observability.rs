//! What an operator sees: metrics with Istio's names, one log line a connection, the admin pages.

mod admin;
mod log;
mod mesh;
mod telemetry;
