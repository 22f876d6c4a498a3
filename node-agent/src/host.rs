//! What the agent asks of Linux on this node without eBPF: namespaces, cgroups, netlink, sockets of others.

pub mod cgroup;
pub(crate) mod conntrack;
pub(crate) mod kernel_version;
pub mod netlink;
pub mod netns;
pub mod pod_net;
pub mod readers;
pub mod sock_diag;
pub(crate) mod turns;
pub(crate) mod veth;

use std::{io, net::SocketAddr};

/// An error and its causes on one line.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// IPv4 addresses of dual-stack sockets, as what they are.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a call failed for want of a descriptor: `EMFILE`, `ENFILE`.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
