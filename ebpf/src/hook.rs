//! The hooks: read a context, ask the decision, map its answer to a verdict.

pub mod connect;
mod direct_socket;
pub mod lookup;
pub mod probe;
mod sock_ops_context;
pub mod socket_ops;
pub mod veth;
