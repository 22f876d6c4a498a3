//! The datapath of a real mesh on two nodes: what applications see, and what the wire carries.
//!
//! Asserted against the requirements, never against the code: A, P and F ids are those of the
//! requirements list. Needs root; build the programs first (`cargo xtask build`).

#![expect(clippy::unwrap_used, reason = "a failed assertion ends a test")]

mod addresses;
mod bypass;
mod claims;
mod clsact;
mod ebpf_log;
mod enrolment;
mod flow;
mod hooks;
mod listeners;
mod load;
mod maps;
mod matrix;
mod newcomers;
mod older;
mod opening;
mod options;
mod ports;
mod probes;
mod rivals;
mod scale;
mod silence;
mod sockets;
mod spoofing;
mod standstill;
mod succession;
mod support;
mod truth;
mod wall;
