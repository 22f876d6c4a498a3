//! The node agent.
pub mod bpf;
pub mod netlink;
pub mod netns;
pub mod pod_net;
pub mod sock_diag;
