//! Captured pods of one node that talk socket to socket: who is reached, who is refused, what is told of it,
//! and how soon a change counts.

mod choice;
mod hamlet;
mod impostors;
mod refusals;
mod revocation;
mod setting;
mod sockets;
mod told;
