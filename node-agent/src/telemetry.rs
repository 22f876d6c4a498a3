//! What is counted and told of connections: metrics with Istio's names, the access log, and every refusal with its reason.

pub mod metrics;
pub mod record;
pub mod refusal;
