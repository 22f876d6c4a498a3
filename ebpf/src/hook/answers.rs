//! `tcx` egress on a captured pod's own interface: who is behind the pod answers nobody whom policy was not asked
//! about.
//!
//! Almost every packet is one of the pod's own sockets and passes after one comparison. Fails closed: an answer
//! that is not known to be allowed becomes a reset. Kernel: tcx since 6.6. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "kernel helpers are raw")]

use abi::{Addr, DirectVerdict, FLOW_WINDOW_NS, Flow, PROBE_WINDOW_NS, PortKey, Reason};
use aya_ebpf::programs::TcContext;

use super::{
    log::{self, Hook},
    lookup::is_within,
};
use crate::{
    answers::{Facts, RST_ACK, Verdict, decide},
    maps::{FLOWS, INBOUND, PROBE_PORTS, PROBES, count, verdict},
    source::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
const IPPROTO_TCP: u8 = 6;
/// Where flags and checksum are in a TCP header.
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;

/// `TCX_NEXT`: let the programs after this one decide, and the packet pass if there is none.
const NEXT: i32 = -1;
/// `TCX_DROP`.
const DROP: i32 = 2;

/// An answer, as the client of the connection sees it.
struct Answer {
    pod: u32,
    flow: Flow,
}

impl Facts for Answer {
    #[inline(always)]
    fn mode(&self) -> Option<u32> {
        // SAFETY: the value is copied out at once; it is one word.
        unsafe { INBOUND.get(&self.pod) }.copied()
    }

    #[inline(always)]
    fn probe(&self) -> bool {
        // SAFETY: the value is copied out at once; it is one double word.
        let seen = unsafe { PROBES.get(&self.flow) }.copied();
        let declared = PortKey {
            pod: self.pod,
            port: self.flow.destination_port,
            family: 0,
        };
        // SAFETY: only the entry's presence is read.
        let is_declared = unsafe { PROBE_PORTS.get(&declared) }.is_some();
        is_declared && seen.is_some_and(|time| is_within(time, PROBE_WINDOW_NS))
    }

    #[inline(always)]
    fn direct(&self) -> Option<DirectVerdict> {
        // SAFETY: the value is copied out at once; the note is written whole before the SYN leaves.
        let note = unsafe { FLOWS.get(&self.flow) }.copied()?;
        if note.destination != self.pod || !is_within(note.time, FLOW_WINDOW_NS) {
            return None;
        }
        Some(verdict(note.source, self.pod, self.flow.destination_port))
    }
}

/// The body of the program for the pod numbered `pod`.
#[inline(always)]
pub fn leaving(ctx: &TcContext, pod: u32) -> i32 {
    // SAFETY: the kernel passes a valid context. A packet of a socket of this namespace came in nowhere.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } == 0 {
        return NEXT;
    }
    let Some((tcp, from, to)) = addresses(ctx) else {
        return NEXT;
    };
    let (Ok(flags), Ok(from_port), Ok(to_port)) = (
        ctx.load::<u8>(tcp + TCP_FLAGS),
        ctx.load::<u16>(tcp),
        ctx.load::<u16>(tcp + 2),
    ) else {
        return NEXT;
    };
    let flow = Flow {
        source: to,
        destination: from,
        source_port: u16::from_be(to_port),
        destination_port: u16::from_be(from_port),
    };
    match decide(flags, &Answer { pod, flow }) {
        Verdict::Pass => NEXT,
        Verdict::Reset => {
            let reason = Reason::InboundForwarded;
            count(reason);
            log::decided(Hook::Answers, pod, reason, &to, flow.source_port);
            reset(ctx, tcp)
        }
    }
}

/// Makes a reset of an answer: its acknowledgement is what makes the client take it.
#[inline(always)]
fn reset(ctx: &TcContext, tcp: usize) -> i32 {
    // The checksum is over words of two bytes: offset and flags.
    let Ok([offset, flags]) = ctx.load::<[u8; 2]>(tcp + TCP_FLAGS - 1) else {
        return DROP;
    };
    let (from, to) = (
        u16::from_ne_bytes([offset, flags]),
        u16::from_ne_bytes([offset, RST_ACK]),
    );
    let changed = ctx
        .l4_csum_replace(tcp + TCP_CHECKSUM, from.into(), to.into(), 2)
        .and_then(|()| ctx.store(tcp + TCP_FLAGS, &RST_ACK, 0));
    if changed.is_ok() { NEXT } else { DROP }
}

/// Where the TCP header is, and the packet's source and destination; none if it is no TCP.
#[inline(always)]
fn addresses(ctx: &TcContext) -> Option<(usize, Addr, Addr)> {
    // SAFETY: the kernel passes a valid context; `protocol` is the EtherType in network order.
    let ethertype = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let at = ETHERNET_HEADER;
    match ethertype {
        ETHERTYPE_IPV4 => {
            let length = usize::from(ctx.load::<u8>(at).ok()? & 0x0f) * 4;
            if ctx.load::<u8>(at + 9).ok()? != IPPROTO_TCP {
                return None;
            }
            let [from, to] = [12, 16].map(|offset| ctx.load::<u32>(at + offset));
            Some((at + length, Addr::v4(from.ok()?), Addr::v4(to.ok()?)))
        }
        ETHERTYPE_IPV6 => {
            if ctx.load::<u8>(at + 6).ok()? != IPPROTO_TCP {
                return None;
            }
            let [from, to] = [8, 24].map(|offset| ctx.load::<[u32; 4]>(at + offset));
            Some((at + IPV6_HEADER, Addr::v6(from.ok()?), Addr::v6(to.ok()?)))
        }
        _ => None,
    }
}
