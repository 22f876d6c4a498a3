//! What tests of several crates share: waiting, ports, checked transfers, peers, latencies.
//!
//! Peers are plain threads on blocking sockets: a listener made inside a namespace is served from
//! outside it, so no test needs a runtime to have somebody to talk to.

pub mod dns;
mod http;
mod latency;
mod page;
mod peer;
mod transfer;
mod wait;

pub use http::{Answer, HttpServer, Request, Response, read_response, write_request};
pub use latency::{Latencies, measure_round_trips};
pub use page::{Call, Page};
pub use peer::{Behaviour, Peer};
pub use transfer::{Pattern, duplex, receive, send};
pub use wait::{eventually, eventually_every, free_port, patient};
