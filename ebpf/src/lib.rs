//! What the kernel does with a connection of a captured pod, decided in plain functions.
//!
//! [`outbound`], [`option`], [`direct`], [`inbound`], [`datagram`], [`answers`], [`hold`], [`liveness`], [`source`], [`headers`] and [`wall`] hold
//! the decisions: they see facts, not contexts, and run in host tests. The files under `hook` read a kernel context, ask the decision and map its answer
//! to a verdict in one visible `match`. All of them fail closed: what cannot be decided is refused
//! and counted.
#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "atomic addition")
)]

pub mod answers;
pub mod datagram;
pub mod direct;
pub mod headers;
pub mod hold;
pub mod inbound;
pub mod liveness;
pub mod option;
pub mod outbound;
pub mod source;
pub mod wall;

#[cfg(target_arch = "bpf")]
pub mod hook;
#[cfg(target_arch = "bpf")]
pub mod maps;
