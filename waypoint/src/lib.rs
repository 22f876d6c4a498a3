//! The waypoint: HTTP between the pods of a mesh, where users have attached it.
//!
//! A waypoint is a captured pod that holds no mesh key: node agents do all mutual TLS, to it and from it. Modules are
//! the phases of a request: `accept` says who calls (`edge`, where that is a client from outside), `serve` routes,
//! `balance` chooses, `authorize` asks policy with the client's identity, `fault` makes things go wrong, `forward`
//! sends. Start reading at [`program`].

mod accept;
pub mod active;
mod admin;
mod authority;
mod authorize;
mod balance;
mod caller;
mod cors;
mod doors;
mod edge;
mod explain;
mod fault;
mod feed;
mod forward;
mod live;
mod local;
mod memory;
mod names;
pub mod options;
pub mod program;
mod quota;
mod reply;
pub mod run;
mod serve;
mod shown;
mod tcp;
mod telemetry;
pub mod trace;
mod upstream;
mod websocket;
mod worker;

pub use worker::Limits;
