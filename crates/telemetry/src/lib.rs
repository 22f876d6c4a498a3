//! What every program that carries connections tells of them: metrics with Istio's names and labels, the access log, and
//! each refusal with its reason.
//!
//! Node agents and waypoints share it, so that one query and one log filter find what either of them did. What only one
//! of them counts (capture, requests) is its own.

mod connections;
mod labels;
mod ration;
mod recorder;
mod refusals;

pub use connections::{ConnectionMetrics, Flow};
pub use labels::{Asked, Party, PartyLabels, Reporter, TcpLabels, Text};
pub use recorder::{Closed, Recorder, milliseconds};
pub use refusals::{Refusal, Refusals};
