//! `tcx` ingress on the node's end of a pod's interface: a captured pod leaves it with its own
//! addresses only, and no pod with those of another pod of the node. Behind that stands the second wall
//! ([`super::wall`]).
//!
//! Strict `rp_filter` checks sources for IPv4 where it is set; nothing in the kernel does it for IPv6.
//! All pods share it ([`super::shared`]). Kernel: tcx since 6.6, clsact before. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{Addr, OWNED_ADDRESS, PodAddr, Reason};
use aya_ebpf::programs::TcContext;

use super::{
    log::{self, Hook},
    shared::Entered,
    wall::{self, wall},
};
use crate::{
    headers::{of_v4, of_v6},
    maps::{INBOUND, LOCAL_PODS, address_flags, count},
    source::{Frame, Own, Packet, may_leave, packet},
    wall::Way,
};

pub(super) const ETHERNET_HEADER: usize = 14;
pub(super) const IPV4_SOURCE: usize = ETHERNET_HEADER + 12;
pub(super) const IPV4_DESTINATION: usize = ETHERNET_HEADER + 16;
pub(super) const IPV6_SOURCE: usize = ETHERNET_HEADER + 8;
pub(super) const IPV6_DESTINATION: usize = ETHERNET_HEADER + 24;

/// `TCX_NEXT`, in clsact `TC_ACT_UNSPEC`: let the programs after this one decide, and the packet pass if
/// there is none.
pub const NEXT: i32 = -1;
/// `TCX_DROP`, in clsact `TC_ACT_SHOT`.
pub(super) const DROP: i32 = 2;

/// Whether the packet's source is one of these. One that cannot be read is not.
#[inline(always)]
pub fn has_source(ctx: &TcContext, own: &Own) -> bool {
    match packet(frame(ctx).ethertype) {
        Packet::Arp | Packet::Other => false,
        Packet::V4 => word(ctx, IPV4_SOURCE).is_some_and(|source| own.is_v4(source)),
        Packet::V6 => words(ctx, IPV6_SOURCE).is_some_and(|source| own.is_v6(&source)),
    }
}

/// The body of the program that all pods share. It fails closed.
#[inline(always)]
pub fn guard(ctx: &TcContext, entered: Entered) -> i32 {
    let pod = entered.pod;
    match check(ctx, entered) {
        Ok(()) => NEXT,
        Err(reason) => {
            count(reason);
            // What the wall refuses it has told of itself.
            if matches!(reason, Reason::GuardProtocol | Reason::SpoofedSource) {
                log::decided(Hook::Guard, pod, reason, &Addr::v4(0), 0);
            }
            DROP
        }
    }
}

#[inline(always)]
fn check(ctx: &TcContext, Entered { pod, own_source }: Entered) -> Result<(), Reason> {
    let frame = frame(ctx);
    if !frame.may_leave(|| is_captured(pod)) {
        return Err(Reason::GuardProtocol);
    }
    // A packet too short for its header is malformed: drop.
    match packet(frame.ethertype) {
        Packet::Arp | Packet::Other => Ok(()),
        Packet::V4 => {
            let source = word(ctx, IPV4_SOURCE).ok_or(Reason::SpoofedSource)?;
            let addr = Addr::v4(source);
            if !own_source && !may_leave(&addr, |addr| may_use(pod, addr)) {
                return Err(Reason::SpoofedSource);
            }
            let peer = word(ctx, IPV4_DESTINATION).ok_or(Reason::SpoofedSource)?;
            let transport = of_v4(&wall::Skb(ctx), ETHERNET_HEADER);
            wall(ctx, Way::Out, pod, addr, Addr::v4(peer), transport)
        }
        Packet::V6 => {
            let source = words(ctx, IPV6_SOURCE).ok_or(Reason::SpoofedSource)?;
            let addr = Addr::v6(source);
            if !own_source && !may_leave(&addr, |addr| may_use(pod, addr)) {
                return Err(Reason::SpoofedSource);
            }
            let peer = words(ctx, IPV6_DESTINATION).ok_or(Reason::SpoofedSource)?;
            let transport = of_v6(&wall::Skb(ctx), ETHERNET_HEADER);
            wall(ctx, Way::Out, pod, addr, Addr::v6(peer), transport)
        }
    }
}

#[inline(always)]
pub(super) fn frame(ctx: &TcContext) -> Frame {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel passes a valid context; `protocol` is the EtherType in network order.
    let (ethertype, tagged, tag) = unsafe {
        (
            (&raw const (*skb).protocol).read_volatile(),
            (&raw const (*skb).vlan_present).read_volatile(),
            (&raw const (*skb).vlan_tci).read_volatile(),
        )
    };
    Frame {
        ethertype: u16::from_be(ethertype as u16),
        tag: (tagged != 0).then_some(tag as u16),
    }
}

/// A word of the packet, from the packet itself where it lies in one piece; a helper call costs more than
/// all the rest.
#[inline(always)]
pub(super) fn word(ctx: &TcContext, at: usize) -> Option<u32> {
    if ctx.data() + at + 4 <= ctx.data_end() {
        // SAFETY: the verifier has seen the comparison; the place is aligned as the kernel aligns
        // headers, and need not be.
        return Some(unsafe { ((ctx.data() + at) as *const u32).read_unaligned() });
    }
    ctx.load::<u32>(at).ok()
}

/// As [`word`], an IPv6 address.
#[inline(always)]
pub(super) fn words(ctx: &TcContext, at: usize) -> Option<[u32; 4]> {
    if ctx.data() + at + 16 <= ctx.data_end() {
        let word = |i: usize| {
            // SAFETY: as above.
            unsafe { ((ctx.data() + at + 4 * i) as *const u32).read_unaligned() }
        };
        return Some([word(0), word(1), word(2), word(3)]);
    }
    ctx.load::<[u32; 4]>(at).ok()
}

/// Whether the pod belongs to the mesh.
#[inline(always)]
pub(super) fn is_captured(pod: u32) -> bool {
    // SAFETY: only the entry's presence is read.
    unsafe { INBOUND.get(&pod).is_some() }
}

/// A captured pod uses its own addresses only. Another pod is the cluster's business, but for the
/// addresses of other pods of this node.
#[inline(always)]
fn may_use(pod: u32, addr: &Addr) -> bool {
    if address_flags(&PodAddr { pod, addr: *addr }) & OWNED_ADDRESS != 0 {
        return true;
    }
    // In this order: asked for both at once, the compiler combines pointers, which the verifier refuses.
    if is_captured(pod) {
        return false;
    }
    // SAFETY: only the entry's presence is read.
    unsafe { LOCAL_PODS.get(addr).is_none() }
}
