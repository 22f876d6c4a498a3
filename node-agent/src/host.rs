//! What the agent asks of Linux on this node without eBPF: namespaces, cgroups, netlink, sockets of others.

pub mod cgroup;
pub(crate) mod conntrack;
pub(crate) mod kernel_version;
pub mod netlink;
pub mod netns;
pub mod pod_net;
pub mod sock_diag;
pub(crate) mod turns;
pub(crate) mod veth;
