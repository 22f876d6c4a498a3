//! The second wall, both halves: on the node's end of a pod's interface for what leaves (called by the
//! guard), and by `tcx` ingress on the pod's own end for what arrives, since `redirect_peer` and netkit
//! skip the node's end.
//!
//! Fails closed for a captured pod: TCP that cannot be read is dropped. Kernel: as the guard. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{Addr, Flow, Reason, Wall};
use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};

use super::{
    log::{self, Hook},
    veth::{
        DROP, ETHERNET_HEADER, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE, NEXT,
        frame, is_captured, word, words,
    },
};
use crate::{
    headers::{Bytes, Transport, of_v4, of_v6},
    maps::{ASKED, PLAIN_FLOWS, WALLED_ADDRS, WALLED_PODS, count, is_waypoint_only},
    source::{Packet, packet},
    wall::{Facts, Ports, Verdict, Way, decide, is_tunnel},
};

/// Offsets of a TCP header behind an IP header without options or extensions.
const TCP_V4: usize = ETHERNET_HEADER + 20;
const TCP_V6: usize = ETHERNET_HEADER + 40;
/// Where a TCP header has its flags, and those of a first segment.
const FLAGS: usize = 12;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The body of the program on the pod's own interface.
#[inline(always)]
pub fn arriving(ctx: &TcContext, pod: u32) -> i32 {
    match arrives(ctx, pod) {
        Some(Err(reason)) => {
            count(reason);
            DROP
        }
        // What is too short for its header is nobody's.
        None | Some(Ok(())) => NEXT,
    }
}

#[inline(always)]
fn arrives(ctx: &TcContext, pod: u32) -> Option<Result<(), Reason>> {
    match packet(frame(ctx).ethertype) {
        Packet::Arp | Packet::Other => None,
        Packet::V4 => {
            let transport = of_v4(&Skb(ctx), ETHERNET_HEADER);
            let peer = Addr::v4(word(ctx, IPV4_SOURCE)?);
            let own = Addr::v4(word(ctx, IPV4_DESTINATION)?);
            Some(wall(ctx, Way::In, pod, own, peer, transport))
        }
        Packet::V6 => {
            let transport = of_v6(&Skb(ctx), ETHERNET_HEADER);
            let peer = Addr::v6(words(ctx, IPV6_SOURCE)?);
            let own = Addr::v6(words(ctx, IPV6_DESTINATION)?);
            Some(wall(ctx, Way::In, pod, own, peer, transport))
        }
    }
}

/// Whether a packet between the pod's address `own` and `peer` passes the wall.
#[inline(always)]
pub(super) fn wall(
    ctx: &TcContext,
    way: Way,
    pod: u32,
    own: Addr,
    peer: Addr,
    transport: Transport,
) -> Result<(), Reason> {
    let at = match transport {
        Transport::Other => return Ok(()),
        Transport::Udp(at) => {
            if way == Way::Out {
                note_asked(ctx, pod, own, peer, at);
            }
            return Ok(());
        }
        Transport::Uncarried if is_captured(pod) => {
            return refuse(pod, Reason::WallTransport, &peer, 0);
        }
        Transport::Uncarried => return Ok(()),
        Transport::Hidden => return hidden(way, pod, &peer),
        Transport::Tcp(at) => at,
    };
    let Some(ports) = ports(ctx, at) else {
        return hidden(way, pod, &peer);
    };
    if is_tunnel(ports, || opens(ctx, at)) {
        return Ok(());
    }
    let (own_port, peer_port) = match way {
        Way::Out => (ports.source, ports.destination),
        Way::In => (ports.destination, ports.source),
    };
    let facts = Maps {
        pod,
        flow: Flow {
            source: own,
            destination: peer,
            source_port: own_port,
            destination_port: peer_port,
        },
    };
    match decide(way, &facts) {
        Verdict::Pass => Ok(()),
        Verdict::Count(reason) => {
            count(reason);
            log::decided(Hook::Wall, pod, reason, &peer, peer_port);
            Ok(())
        }
        Verdict::Drop(reason) => refuse(pod, reason, &peer, peer_port),
    }
}

/// Notes what a pod sends that is reached by a waypoint only: to that an answer may come ([`crate::datagram`]).
#[inline(always)]
fn note_asked(ctx: &TcContext, pod: u32, own: Addr, peer: Addr, at: usize) {
    if !is_waypoint_only(pod) {
        return;
    }
    let Some(ports) = ports(ctx, at) else {
        return;
    };
    let flow = Flow {
        source: own,
        destination: peer,
        source_port: ports.source,
        destination_port: ports.destination,
    };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // Where there is no room the answer is refused.
    let _noted = ASKED.insert(&flow, now, 0).is_ok();
}

#[inline(always)]
fn refuse(pod: u32, reason: Reason, peer: &Addr, port: u16) -> Result<(), Reason> {
    log::decided(Hook::Wall, pod, reason, peer, port);
    Err(reason)
}

/// TCP that cannot be read. A captured pod sends none; from outside it may come in fragments, but not from
/// where tunnels come.
#[inline(always)]
fn hidden(way: Way, pod: u32, peer: &Addr) -> Result<(), Reason> {
    let refused = match way {
        Way::Out => is_captured(pod),
        Way::In => {
            wall_of_address(peer) == Some(Wall::Enforce) && wall_of_pod(pod) == Some(Wall::Enforce)
        }
    };
    if refused {
        return refuse(pod, Reason::WallHeaders, peer, 0);
    }
    Ok(())
}

#[inline(always)]
fn ports(ctx: &TcContext, at: usize) -> Option<Ports> {
    let skb = Skb(ctx);
    let [a, b, c, d] = match at {
        TCP_V4 => skb.fixed(TCP_V4),
        TCP_V6 => skb.fixed(TCP_V6),
        _ => skb.four(at),
    }?;
    Some(Ports {
        source: u16::from_be_bytes([a, b]),
        destination: u16::from_be_bytes([c, d]),
    })
}

/// Whether a segment is the first of its connection. One that cannot be read is taken for that.
#[inline(always)]
fn opens(ctx: &TcContext, at: usize) -> bool {
    Skb(ctx)
        .four(at + FLAGS)
        .is_none_or(|[_, flags, ..]| flags & (SYN | ACK) == SYN)
}

/// The bytes of a packet.
pub(super) struct Skb<'c>(pub(super) &'c TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn fixed(&self, at: usize) -> Option<[u8; 4]> {
        word(self.0, at).map(u32::to_ne_bytes)
    }

    #[inline(always)]
    fn four(&self, at: usize) -> Option<[u8; 4]> {
        self.0.load::<u32>(at).ok().map(u32::to_ne_bytes)
    }
}

struct Maps {
    pod: u32,
    flow: Flow,
}

impl Facts for Maps {
    #[inline(always)]
    fn peer(&self) -> Option<Wall> {
        wall_of_address(&self.flow.destination)
    }

    #[inline(always)]
    fn pod(&self) -> Option<Wall> {
        wall_of_pod(self.pod)
    }

    #[inline(always)]
    fn older(&self) -> bool {
        // SAFETY: only the entry's presence is read.
        unsafe { PLAIN_FLOWS.get(&self.flow).is_some() }
    }
}

#[inline(always)]
fn wall_of_address(addr: &Addr) -> Option<Wall> {
    // SAFETY: the value is copied out at once; it is one word.
    unsafe { WALLED_ADDRS.get(addr) }
        .copied()
        .map(Wall::from_raw)
}

#[inline(always)]
fn wall_of_pod(pod: u32) -> Option<Wall> {
    // SAFETY: as above.
    unsafe { WALLED_PODS.get(&pod) }
        .copied()
        .map(Wall::from_raw)
}
