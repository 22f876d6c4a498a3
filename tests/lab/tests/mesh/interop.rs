//! Foreign peers, written from the facts: whoever speaks HBONE and delta xDS can take part.

mod client;
mod forged;
mod framing;
mod server;
mod succession;
mod xds;
