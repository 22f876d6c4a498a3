//! The mesh on a cluster of `cargo xtask cluster`: Helm installs it, labels and policies by kubectl take effect, the link
//! between nodes is read, and what `helm uninstall` leaves is looked for on the nodes.
//!
//! One installation at a time: these tests wait for each other.

mod away;
mod command_line;
mod gateway;
mod installed;
mod kinds;
mod lifecycle;
mod live;
mod network_policy;
mod pair;
mod rendered;
mod replicas;
mod root;
mod taint;
mod waypoint;
