//! `tcx` ingress on a captured pod's `lo`: the SYN of a carried connection goes to the agent, and comes back when the
//! other half is open.
//!
//! Its sender does not notice that it is dropped here, and would send it again after a second. All pods
//! share it ([`super::shared`]). What cannot be held passes, and is accepted before the far side is known; what nobody
//! would answer is refused. Kernel: tcx since 6.6, clsact before. Run on: 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    Addr, Flow, Held, HeldKey, HeldState, ListenerKind, OWN_ADDRESS, PodAddr, Reason, SYN_BYTES,
    Syn,
};
use aya_ebpf::{
    bindings::BPF_F_CURRENT_CPU,
    helpers::{bpf_ktime_get_ns, bpf_perf_event_output},
    programs::TcContext,
};

use super::{
    agent::with_listener,
    veth::{
        DROP, ETHERNET_HEADER, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE, NEXT,
        word, words,
    },
    wall::Skb,
};
use crate::{
    headers::{Bytes, Transport, of_v4, of_v6},
    hold::{self, Syn as Seen, Verdict, decide, is_carried},
    liveness::Lacking,
    maps::{HELD, SYNS, address_flags, count, generation, may_tell_syn, worker},
    source::{Packet, packet},
};

/// Offsets of a TCP header behind an IP header without options or extensions.
const TCP_V4: usize = ETHERNET_HEADER + 20;
const TCP_V6: usize = ETHERNET_HEADER + 40;
/// What is where in a TCP header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const OFFSET: usize = 12;
const CHECKSUM: usize = 16;
const RST_ACK: u8 = 0x14;
const BPF_ANY: u64 = 0;
const ENOENT: i64 = 2;
const EOPNOTSUPP: i64 = 95;

/// A first segment.
struct First {
    v4: bool,
    tcp: usize,
    isn: u32,
    key: HeldKey,
}

impl hold::Facts for First {
    #[inline(always)]
    fn to_self(&self) -> bool {
        let addr = self.key.flow.destination;
        let own = PodAddr {
            pod: self.key.pod,
            addr,
        };
        addr.is_loopback() || address_flags(&own) & OWN_ADDRESS != 0
    }

    #[inline(always)]
    fn held(&self) -> Option<Held> {
        // SAFETY: the value is copied out at once.
        unsafe { HELD.get(&self.key) }.copied()
    }

    #[inline(always)]
    fn agent(&self) -> Result<(), Lacking> {
        with_listener(self.key.pod, ListenerKind::Outbound, |_| ())
    }
}

impl First {
    /// Whether the agent can be shown all headers.
    #[inline(always)]
    fn fits(&self) -> bool {
        const LONGEST_TCP: usize = 60;
        self.tcp + LONGEST_TCP <= SYN_BYTES as usize
    }
}

/// Whether the packet is of a connection that is carried: of those on `lo` few are, and the others go on at once.
#[inline(always)]
pub fn concerns(ctx: &TcContext) -> bool {
    is_carried(mark(ctx))
}

#[inline(always)]
fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (&raw const (*ctx.skb.skb).mark).read_volatile() }
}

/// The body of the program that all pods share, for a packet that it concerns.
#[inline(always)]
pub fn opening(ctx: &TcContext, pod: u32) -> i32 {
    let mark = mark(ctx);
    let Some(first) = first(ctx, pod) else {
        return NEXT;
    };
    let seen = Seen {
        mark,
        isn: first.isn,
        generation: generation(),
        // SAFETY: the helper takes no argument.
        now: unsafe { bpf_ktime_get_ns() },
    };
    match decide(&seen, &first) {
        Verdict::Pass => NEXT,
        Verdict::PutBack => {
            note_open(&first);
            NEXT
        }
        Verdict::Hold if !first.fits() => {
            count(Reason::OutboundUnheld);
            NEXT
        }
        Verdict::Hold => hold(ctx, &seen, &first),
        Verdict::Drop => {
            count(Reason::OutboundHeldAgain);
            DROP
        }
        Verdict::Refuse(reason) => {
            count(reason);
            // It may not be there.
            let _known = HELD.remove(&first.key).is_ok();
            refuse(ctx, &first).unwrap_or(DROP)
        }
    }
}

/// The segment, if it is the first of a connection.
#[inline(always)]
fn first(ctx: &TcContext, pod: u32) -> Option<First> {
    // SAFETY: the kernel passes a valid context; `protocol` is the EtherType in network order.
    let ethertype = unsafe { (&raw const (*ctx.skb.skb).protocol).read_volatile() };
    let v4 = match packet(u16::from_be(ethertype as u16)) {
        Packet::V4 => true,
        Packet::V6 => false,
        Packet::Arp | Packet::Other => return None,
    };
    let transport = if v4 {
        of_v4(&Skb(ctx), ETHERNET_HEADER)
    } else {
        of_v6(&Skb(ctx), ETHERNET_HEADER)
    };
    let Transport::Tcp(tcp) = transport else {
        return None;
    };
    let [_, flags, ..] = match tcp {
        TCP_V4 => Skb(ctx).fixed(TCP_V4 + OFFSET),
        TCP_V6 => Skb(ctx).fixed(TCP_V6 + OFFSET),
        _ => Skb(ctx).four(tcp + OFFSET),
    }?;
    if !hold::opens(flags) {
        return None;
    }
    let [a, b, c, d] = Skb(ctx).four(tcp)?;
    let isn = u32::from_be_bytes(Skb(ctx).four(tcp + SEQUENCE)?);
    let (source, destination) = if v4 {
        let from = Addr::v4(word(ctx, IPV4_SOURCE)?);
        (from, Addr::v4(word(ctx, IPV4_DESTINATION)?))
    } else {
        let from = Addr::v6(words(ctx, IPV6_SOURCE)?);
        (from, Addr::v6(words(ctx, IPV6_DESTINATION)?))
    };
    let flow = Flow {
        source,
        destination,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
    };
    Some(First {
        v4,
        tcp,
        isn,
        key: HeldKey { pod, flow },
    })
}

/// Hands the segment to the agent.
#[inline(always)]
fn hold(ctx: &TcContext, seen: &Seen, first: &First) -> i32 {
    let held = Held {
        isn: seen.isn,
        state: HeldState::Opening as u32,
        worker: worker().into(),
        generation: seen.generation,
        since: seen.now,
    };
    if !may_tell_syn(first.key.pod) {
        count(Reason::OutboundHoldLost);
        return DROP;
    }
    if HELD.insert(&first.key, held, BPF_ANY).is_err() {
        count(Reason::OutboundUnheld);
        return NEXT;
    }
    match tell(ctx, seen, first) {
        0 => {
            count(Reason::OutboundHeld);
            DROP
        }
        error => {
            // Nobody else removes it.
            let _made = HELD.remove(&first.key).is_ok();
            // The agent has no buffer for this processor (yet).
            if error == -ENOENT || error == -EOPNOTSUPP {
                count(Reason::OutboundUnheld);
                return NEXT;
            }
            count(Reason::OutboundHoldLost);
            DROP
        }
    }
}

#[inline(always)]
fn tell(ctx: &TcContext, seen: &Seen, first: &First) -> i64 {
    let length = ctx.len().min(SYN_BYTES);
    let mut syn = Syn {
        pod: first.key.pod,
        mark: seen.mark,
        length,
        tcp: first.tcp as u32,
        generation: seen.generation,
    };
    let flags = u64::from(length) << 32 | BPF_F_CURRENT_CPU;
    // SAFETY: the map is the map's own symbol, the event lives on this stack frame and its size is given; the
    // packet is as long as is asked for.
    unsafe {
        bpf_perf_event_output(
            ctx.skb.skb.cast(),
            (&raw const SYNS).cast_mut().cast(),
            flags,
            (&raw mut syn).cast(),
            size_of::<Syn>() as u64,
        )
    }
}

/// From now on the segment passes when it is sent again.
#[inline(always)]
fn note_open(first: &First) {
    let Some(held) = HELD.get_ptr_mut(&first.key) else {
        return;
    };
    // SAFETY: the kernel gave a pointer to a live element; both are words.
    unsafe {
        if (*held).isn == first.isn {
            (*held).state = HeldState::Open as u32;
        }
    }
}

/// Makes the reset of the segment that answers it. Addresses and ports change places, which changes no checksum.
#[inline(always)]
fn refuse(ctx: &TcContext, first: &First) -> Option<i32> {
    let (from, to) = (first.key.flow.source, first.key.flow.destination);
    if first.v4 {
        ctx.store(IPV4_SOURCE, &to.words[3], 0).ok()?;
        ctx.store(IPV4_DESTINATION, &from.words[3], 0).ok()?;
    } else {
        ctx.store(IPV6_SOURCE, &to.words, 0).ok()?;
        ctx.store(IPV6_DESTINATION, &from.words, 0).ok()?;
    }
    let tcp = first.tcp;
    let [a, b, c, d] = Skb(ctx).four(tcp)?;
    ctx.store(tcp, &[c, d, a, b], 0).ok()?;
    // The sequence number becomes nothing, and is acknowledged.
    let isn = first.isn.to_be();
    let acknowledged = first.isn.wrapping_add(1).to_be();
    let before = Skb(ctx).four(tcp + ACKNOWLEDGEMENT)?;
    let [offset, flags] = ctx.load::<[u8; 2]>(tcp + OFFSET).ok()?;
    let flags = [
        u16::from_ne_bytes([offset, flags]),
        u16::from_ne_bytes([offset, RST_ACK]),
    ];
    let sum = tcp + CHECKSUM;
    ctx.l4_csum_replace(sum, isn.into(), 0, 4).ok()?;
    let acknowledgement = u32::from_ne_bytes(before);
    ctx.l4_csum_replace(sum, acknowledgement.into(), acknowledged.into(), 4)
        .ok()?;
    ctx.l4_csum_replace(sum, flags[0].into(), flags[1].into(), 2)
        .ok()?;
    ctx.store(tcp + SEQUENCE, &0_u32, 0).ok()?;
    ctx.store(tcp + ACKNOWLEDGEMENT, &acknowledged, 0).ok()?;
    ctx.store(tcp + OFFSET + 1, &RST_ACK, 0).ok()?;
    Some(NEXT)
}
