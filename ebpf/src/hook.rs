//! The hooks: read a context, ask the decision, map its answer to a verdict.

mod agent;
pub mod answers;
pub mod connect;
mod direct_socket;
pub mod hold;
mod late_connect;
mod log;
pub mod lookup;
pub mod option;
pub mod probe;
pub mod shared;
mod sock_ops_context;
pub mod socket_ops;
pub mod veth;
mod waits;
pub mod wall;
