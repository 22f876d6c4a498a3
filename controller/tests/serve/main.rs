//! The whole controller over loopback TLS, spoken to by generated clients.

mod certificates;
mod discovery;
mod restart;
mod support;
