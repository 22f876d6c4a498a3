//! The traffic: a server and a client, each one thread that waits in epoll, small enough not to be
//! what is measured.
//!
//! Requests and answers are HTTP/1.1 messages of [`MESSAGE`] bytes, head included, so that proxies
//! that speak HTTP and proxies that do not carry the same bytes.

mod bulk;
mod closed;
mod connection;
mod connects;
mod idle;
pub(crate) mod message;
mod paced;
mod pin;
mod report;
mod server;
mod window;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

pub use message::{MESSAGE, PLAINTEXT};
pub use report::{LoadReport, Quantiles};
pub use server::serve;
pub use window::Watched;

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// This many kept connections, each sending its next request when it has its answer.
    Closed {
        /// How many.
        connections: usize,
    },
    /// This many kept connections, requests due at a fixed rate. Latency is counted from when a
    /// request was due, not from when it could be sent: a server that stands still is seen by all
    /// requests that would have been sent meanwhile ("coordinated omission").
    Paced {
        /// How many.
        connections: usize,
        /// Requests per second, over all connections.
        rate: u32,
    },
    /// A connection per request, by this many clients at once.
    Connects {
        /// How many.
        clients: usize,
    },
    /// One answer without end on one connection.
    Bulk,
    /// This many connections that have had one answer each and then do nothing.
    Idle {
        /// How many.
        connections: usize,
    },
}

/// When and with what a [`Load`] is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What.
    pub load: Load,
    /// Whom to ask.
    pub server: SocketAddr,
    /// How long the load runs before anything is counted.
    pub warm_up: Duration,
    /// How long it is then counted.
    pub window: Duration,
    /// Whether everything that takes part runs on one processor.
    pub pinned: bool,
    /// Whose resources are looked at when the window opens and closes.
    pub watched: Watched,
}

/// Runs a plan in the calling process, which should do nothing else.
///
/// # Errors
/// Nobody answers, or the system refuses a socket. Single failures are counted in the report.
pub fn run(plan: &Plan) -> Result<LoadReport> {
    let watched = &plan.watched;
    let _pinned = if plan.pinned {
        pin::Pinned::new(watched.mesh.iter().chain(&watched.load).copied())?
    } else {
        pin::Pinned::default()
    };
    match plan.load {
        Load::Closed { connections } => closed::run(plan, connections),
        Load::Paced { connections, rate } => paced::run(plan, connections, rate),
        Load::Connects { clients } => connects::run(plan, clients),
        Load::Bulk => bulk::run(plan),
        Load::Idle { connections } => idle::run(plan, connections),
    }
}
