//! `sock_ops` at the kubelet's cgroup: notes the connections that the kubelet opens.
//!
//! `BPF_SOCK_OPS_TCP_CONNECT_CB` runs after the source port is chosen and before the SYN leaves, so
//! the note is there when the SYN reaches a pod of this node. The kubelet is known by its cgroup,
//! never by an address: nothing is rewritten, and other traffic of the node is no probe. Run on: 6.18.

#![expect(unsafe_code, reason = "kernel helpers are raw")]

use abi::{Addr, Flow, Reason};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SockOpsContext};

use crate::maps::{PROBES, count};

const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const AF_INET: u32 = 2;
const BPF_ANY: u64 = 0;

/// The body of the program.
#[inline(always)]
pub fn note(ctx: &SockOpsContext) -> u32 {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return 1;
    }
    let v4 = ctx.family() == AF_INET;
    let flow = Flow {
        source: if v4 {
            Addr::v4(ctx.local_ip4())
        } else {
            Addr::v6(ctx.local_ip6())
        },
        destination: if v4 {
            Addr::v4(ctx.remote_ip4())
        } else {
            Addr::v6(ctx.remote_ip6())
        },
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
