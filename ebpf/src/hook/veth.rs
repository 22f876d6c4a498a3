//! `tcx` ingress on the node's end of a pod's interface: a captured pod leaves it with its own
//! addresses only, and no pod with those of another pod of the node.
//!
//! Strict `rp_filter` does this for IPv4 where it is set; nothing in the kernel does it for IPv6.
//! One instance per pod, with the pod's number in its read-only data. Kernel: tcx since 6.6. Run on:
//! 6.18.

#![expect(unsafe_code, reason = "kernel helpers are raw")]

use abi::{Addr, OWNED_ADDRESS, PodAddr, Reason};
use aya_ebpf::programs::TcContext;

use crate::{
    maps::{INBOUND, LOCAL_PODS, address_flags, count},
    source::{Own, Packet, may_leave, packet},
};

const ETHERNET_HEADER: usize = 14;
const IPV4_SOURCE: usize = ETHERNET_HEADER + 12;
const IPV6_SOURCE: usize = ETHERNET_HEADER + 8;

/// `TCX_NEXT`: let the programs after this one decide, and the packet pass if there is none.
const NEXT: i32 = -1;
/// `TCX_DROP`.
const DROP: i32 = 2;

/// The body of the program for the pod numbered `pod`, whose addresses are `own`.
#[inline(always)]
pub fn guard(ctx: &TcContext, pod: u32, own: &Own) -> i32 {
    // SAFETY: the kernel passes a valid context; `protocol` is the EtherType in network order.
    let ethertype = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let source = match packet(ethertype) {
        Packet::Other => return NEXT,
        Packet::V4 => match source_v4(ctx) {
            Some(word) if own.is_v4(word) => return NEXT,
            source => source.map(Addr::v4),
        },
        Packet::V6 => match source_v6(ctx) {
            Some(words) if own.is_v6(&words) => return NEXT,
            source => source.map(Addr::v6),
        },
    };
    // A packet too short for its header is malformed: drop.
    match source {
        Some(source) if may_leave(&source, |addr| may_use(pod, addr)) => NEXT,
        _ => {
            count(Reason::SpoofedSource);
            DROP
        }
    }
}

/// The source of an IPv4 packet, from the packet itself where it lies in one piece; a helper call
/// costs more than all the rest.
#[inline(always)]
fn source_v4(ctx: &TcContext) -> Option<u32> {
    if ctx.data() + IPV4_SOURCE + 4 <= ctx.data_end() {
        // SAFETY: the verifier has seen the comparison; the place is aligned as the kernel aligns
        // headers, and need not be.
        return Some(unsafe { ((ctx.data() + IPV4_SOURCE) as *const u32).read_unaligned() });
    }
    ctx.load::<u32>(IPV4_SOURCE).ok()
}

/// As [`source_v4`], of an IPv6 packet.
#[inline(always)]
fn source_v6(ctx: &TcContext) -> Option<[u32; 4]> {
    if ctx.data() + IPV6_SOURCE + 16 <= ctx.data_end() {
        let word = |i: usize| {
            // SAFETY: as above.
            unsafe { ((ctx.data() + IPV6_SOURCE + 4 * i) as *const u32).read_unaligned() }
        };
        return Some([word(0), word(1), word(2), word(3)]);
    }
    ctx.load::<[u32; 4]>(IPV6_SOURCE).ok()
}

/// A captured pod uses its own addresses only. Another pod is the cluster's business, but for the
/// addresses of other pods of this node.
#[inline(always)]
fn may_use(pod: u32, addr: &Addr) -> bool {
    if address_flags(&PodAddr { pod, addr: *addr }) & OWNED_ADDRESS != 0 {
        return true;
    }
    // SAFETY: only the entries' presence is read.
    let (captured, taken) =
        unsafe { (INBOUND.get(&pod).is_some(), LOCAL_PODS.get(addr).is_some()) };
    !captured && !taken
}
