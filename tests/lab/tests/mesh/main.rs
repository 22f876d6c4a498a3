//! Whole agents and a controller on two or three nodes: who is let in, on whose word, and who can read about it.
//!
//! Asserted against the wire facts and the requirements, with peers that share no code with the mesh.

mod api;
mod authority;
mod budget;
mod controller_down;
mod departing;
mod direct;
mod estate;
mod fixture;
mod hbone;
mod interop;
mod mtls;
mod observability;
mod policy;
mod records;
mod small_maps;
mod translation;
mod verifier;
