//! `sock_ops` at the kubelet's cgroup: notes the connections that the kubelet opens.
//!
//! `BPF_SOCK_OPS_TCP_CONNECT_CB` runs after the source port is chosen and before the SYN leaves, so
//! the note is there when the SYN reaches a pod of this node. The kubelet is known by its cgroup,
//! never by an address: nothing is rewritten, and other traffic of the node is no probe. Run on: 6.18.

#![expect(unsafe_code, reason = "kernel helpers are raw")]

use abi::{Flow, Reason};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SockOpsContext};

use super::sock_ops_context::{local, remote};
use crate::maps::{PROBES, count};

const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const BPF_ANY: u64 = 0;

/// The body of the program.
#[inline(always)]
pub fn note(ctx: &SockOpsContext) -> u32 {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return 1;
    }
    let flow = Flow {
        source: local(ctx),
        destination: remote(ctx),
        source_port: ctx.local_port() as u16,
        // The context holds it in network order in the upper half of the word.
        destination_port: u32::from_be(ctx.remote_port()) as u16,
    };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    match PROBES.insert(&flow, now, BPF_ANY) {
        Ok(()) => count(Reason::ProbeNoted),
        Err(_) => count(Reason::ProbeLost),
    }
    1
}
