//! The node agent: one per node. It captures the pods of meshed namespaces with eBPF, holds their
//! identities, and carries their traffic encrypted and under policy.
//!
//! It never touches a pod's files or processes, uses no netfilter, and terminates no HTTP of
//! applications. Start reading at [`agent`], then [`enrol`] (who is captured), `carry::outbound` and
//! `carry::inbound` (the life of a connection) and [`bpf`] (the only place that names aya).
//!
//! The rooms stand in layers: a room names only rooms that are listed above it. `cargo xtask lint tidy` checks that.

pub mod host;

pub mod bpf;

pub mod telemetry;

pub mod pod;

pub mod mesh;

pub mod direct;

pub mod carry;

pub mod enrol;

pub mod succession;

pub mod agent;
