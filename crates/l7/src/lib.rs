//! What happens to a request: routes, backends and policies with HTTP parts, compiled, and the decisions on them.
//! Everything here is pure: no I/O, no clock, no wire format.
//!
//! A [`Store`] takes resources and gives a [`Config`], which never changes; a request is decided with one of them from
//! beginning to end. [`Config::decide`] finds the rule, [`Config::cluster`] the endpoints of one of its backends, and
//! [`Config::authorize`] says whether the client may reach the endpoint that was chosen.

pub mod backend;
pub mod config;
mod connections;
pub mod listener;
mod matching;
mod origin;
pub mod path;
pub mod policy;
pub mod request;
pub mod rewrite;
pub mod route;
pub mod service;
pub mod table;
pub mod text;
mod weight;

pub use backend::{Cluster, ClusterKey, Endpoint, TrafficPolicy};
pub use config::{Config, Decision, NoRoute, Resource, ResourceName, Store};
pub use listener::{HostPattern, Listener};
pub use origin::{Kind, Origin};
pub use path::Path;
pub use policy::{Policy, Verdict};
pub use request::{Client, Destination, Protocol, Request};
pub use route::{Action, Rule};
pub use service::Service;
