//! The datapath of a real mesh on two nodes: what applications see, and what the wire carries.
//!
//! Asserted against the requirements, never against the code: A, P and F ids are those of the
//! requirements list. Needs root; build the programs first (`cargo xtask build`).

#![expect(clippy::unwrap_used, reason = "a failed assertion ends a test")]

mod addresses;
mod bypass;
mod enrolment;
mod flow;
mod listeners;
mod load;
mod maps;
mod matrix;
mod newcomers;
mod ports;
mod probes;
mod scale;
mod sockets;
mod spoofing;
mod succession;
mod support;
