//! Captured pods of one node that talk socket to socket: who is reached, who is refused, what is told of it,
//! and how soon a change counts.

mod affinity;
mod choice;
mod impostors;
mod mesh;
mod refusals;
mod revocation;
mod setting;
mod sockets;
mod told;
