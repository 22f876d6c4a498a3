//! The node agent: one per node. It captures the pods of meshed namespaces with eBPF, holds their
//! identities, and carries their traffic encrypted and under policy.
//!
//! It never touches a pod's files or processes, uses no netfilter, and terminates no HTTP of
//! applications. Start reading at [`agent`], then [`enrol`] (who is captured), `outbound` and
//! `inbound` (the life of a connection) and [`bpf`] (the only place that names aya).

mod accept;
pub mod admin;
pub mod agent;
mod bound;
pub mod bpf;
pub mod budget;
pub mod cgroup;
pub mod cleanup;
pub mod cni;
pub mod config;
mod conntrack;
pub mod direct;
pub mod enrol;
mod explain;
mod hold;
mod identity;
mod inbound;
mod kernel_version;
pub mod lobby;
pub mod mesh;
pub mod metrics;
pub mod native;
pub mod netlink;
pub mod netns;
pub mod older;
mod openings;
mod outbound;
pub mod plugin;
pub mod pod;
pub mod pod_net;
pub mod presence;
pub mod ration;
pub mod record;
pub mod refusal;
mod session;
mod silence;
pub mod sock;
pub mod sock_diag;
pub mod succession;
mod syn;
mod translation;
mod turns;
mod veth;
mod wall;
pub mod worker;
