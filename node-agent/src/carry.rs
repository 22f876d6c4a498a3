//! The connections that the agent carries in user space: accepted, found out where to, authorised, copied, ended.
//!
//! `worker` is one thread and what it holds; `accept` hands what came to `outbound` (a captured pod opens) or
//! `inbound` (a captured pod is reached), and `hold` opens connections whose SYN still waits in the kernel.

pub(crate) mod accept;
mod admission;
pub(crate) mod hold;
mod identity;
pub(crate) mod inbound;
pub mod lobby;
mod openings;
pub(crate) mod outbound;
mod session;
mod silence;
pub(crate) mod syn;
pub mod thread;
mod waypoint;
pub mod worker;
