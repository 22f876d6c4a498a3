//! What a node agent asks of a controller: configuration (delta ADS), certificates (Istio's CA API) and the report of
//! what it captured. It knows names, versions and bytes of resources, not their meaning.

pub mod ca;
pub mod client;
pub mod controller;
pub mod node;
pub mod snapshot;
pub mod status;

#[cfg(test)]
mod testing;

pub use ca::CaClient;
pub use client::{Client, Config, Flusher, Handler, RawResource, Rejection};
pub use controller::{ConnectError, Controller};
pub use node::{NodeClient, NodeInfo};
pub use status::{Status, TypeStatus};

use std::error::Error;

/// An error and its causes in one line, for a status page.
#[must_use]
pub fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // tonic and hyper repeat a cause in the error above it.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}
