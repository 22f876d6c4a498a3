//! How the programs that all pods share are told of the pod.
//!
//! The verifier takes 10 ms and more for one of them, so a pod has entries of its own instead, of a few instructions:
//! an entry writes the pod's number to the packet's control buffer and calls on. The buffer is the packet's alone
//! until it is sent on (`struct qdisc_skb_cb`, include/net/sch_generic.h), and no other program runs in between.
//! Kernel: tail calls since 4.2. Run on: 6.1, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::Shared;
use aya_ebpf::programs::TcContext;

use super::veth::DROP;
use crate::maps::SHARED;

/// Places in the control buffer.
const POD: usize = 0;
const OWN_SOURCE: usize = 1;

/// What an entry says of a packet.
#[derive(Clone, Copy)]
pub struct Entered {
    /// The number of the pod.
    pub pod: u32,
    /// The source is the address that almost all of the pod's packets have, so no map is asked.
    pub own_source: bool,
}

/// The body of an entry. Fails closed: without the program that it calls the packet is dropped.
#[inline(always)]
pub fn enter(ctx: &TcContext, entered: Entered, shared: Shared) -> i32 {
    // SAFETY: the kernel passes a valid context, and lets these fields be written; the entries of the array are
    // programs of the same type.
    unsafe {
        let buffer = (&raw mut (*ctx.skb.skb).cb).cast::<u32>();
        buffer.add(POD).write_volatile(entered.pod);
        buffer
            .add(OWN_SOURCE)
            .write_volatile(entered.own_source as u32);
        SHARED.tail_call(ctx, shared as u32);
    }
    DROP
}

/// What the entry has said. Whoever comes after us finds the buffer empty.
#[inline(always)]
pub fn entered(ctx: &TcContext) -> Entered {
    // SAFETY: as above.
    unsafe {
        let buffer = (&raw mut (*ctx.skb.skb).cb).cast::<u32>();
        let entered = Entered {
            pod: buffer.add(POD).read_volatile(),
            own_source: buffer.add(OWN_SOURCE).read_volatile() != 0,
        };
        buffer.add(POD).write_volatile(0);
        buffer.add(OWN_SOURCE).write_volatile(0);
        entered
    }
}
