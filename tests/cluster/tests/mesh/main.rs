//! The mesh on a cluster of `cargo xtask cluster`: it is installed, labels and policies by kubectl take effect, the link
//! between nodes is read, and what is left when it is uninstalled is looked for on the nodes.
//!
//! Tests that take long, or need Helm or a network that enforces NetworkPolicy, are ignored but for
//! `cargo xtask test --cluster --nightly`.
//!
//! One installation at a time: these tests wait for each other.

mod anywhere;
mod application;
mod audit;
mod away;
mod bookinfo;
mod command_line;
mod conformance;
mod documented;
mod drain;
mod faults;
mod figures;
mod fixtures;
mod gateway;
mod hostile;
mod ingress;
mod installed;
mod istiod;
mod kinds;
mod leaving;
mod lifecycle;
mod live;
mod network_policy;
mod ordinary;
mod pair;
mod profiles;
mod rendered;
mod replicas;
mod rights;
mod root;
mod scale;
mod skew;
mod sock_shop;
mod taint;
mod traffic;
mod trouble;
mod waypoint;
