//! `sk_lookup`: who takes a connection in a pod's network namespace.
//!
//! One instance per pod, with the pod's number in its read-only data: `bpf_get_netns_cookie` is not
//! allowed here. Only TCP connections and datagrams that no connected socket takes get here (kernel: `sk_lookup`
//! since 5.9, `ingress_ifindex` since 5.17). Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    ANSWER_WINDOW_NS, Addr, FLOW_WINDOW_NS, Flow, HeldKey, LEG_SOURCE, LOOPBACK_IFINDEX,
    ListenerKind, OWN_ADDRESS, PROBE_WINDOW_NS, PodAddr, PortKey, Reason, is_waypoint_port,
};
use aya_ebpf::{
    bindings::bpf_sk_lookup,
    helpers::{bpf_ktime_get_ns, bpf_sk_assign},
    programs::SkLookupContext,
};

use super::{
    agent::with_listener_of,
    log::{self, Hook},
};
use crate::{
    datagram,
    inbound::{Connection, Facts, Noted, Verdict, decide},
    liveness::Lacking,
    maps::{
        ASKED, FLOWS, HELD, INBOUND, PROBE_PORTS, PROBES, address_flags, count, is_listening,
        is_waypoint_only, verdict, verdict_led, worker,
    },
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
/// Otherwise a reuseport group may pick the listener of an agent that is leaving.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

const PASS: u32 = 1;
const DROP: u32 = 0;

struct Context {
    pod: u32,
    family: u16,
    connection: Connection,
    remote_port: u16,
}

impl Facts for Context {
    #[inline(always)]
    fn own_address(&self, addr: &Addr) -> bool {
        address_flags(&PodAddr {
            pod: self.pod,
            addr: *addr,
        }) & OWN_ADDRESS
            != 0
    }

    #[inline(always)]
    fn mode(&self) -> Option<u32> {
        // SAFETY: the value is copied out at once; it is one word.
        unsafe { INBOUND.get(&self.pod) }.copied()
    }

    #[inline(always)]
    fn probe(&self) -> bool {
        // SAFETY: the value is copied out at once; it is one double word.
        let seen = unsafe { PROBES.get(&self.flow()) }.copied();
        if !seen.is_some_and(|time| is_within(time, PROBE_WINDOW_NS)) {
            return false;
        }
        let key = PortKey {
            pod: self.pod,
            port: self.connection.local_port,
            family: 0,
        };
        // SAFETY: only the entry's presence is read.
        let declared = unsafe { PROBE_PORTS.get(&key) }.is_some();
        if !declared {
            count(Reason::ProbeUndeclared);
        }
        declared
    }

    #[inline(always)]
    fn noted(&self) -> Option<Noted> {
        // SAFETY: the value is copied out at once; the note is written whole before the SYN leaves.
        let note = unsafe { FLOWS.get(&self.flow()) }.copied()?;
        if note.destination != self.pod || !is_within(note.time, FLOW_WINDOW_NS) {
            return None;
        }
        if note.source == LEG_SOURCE {
            return Some(Noted::Leg);
        }
        let port = self.connection.local_port;
        Some(Noted::Direct(if is_waypoint_port(port) {
            verdict_led(note.source, self.pod)
        } else {
            verdict(note.source, self.pod, port)
        }))
    }

    #[inline(always)]
    fn listening(&self) -> bool {
        is_listening(self.pod, self.connection.local_port, self.family)
    }
}

impl Context {
    /// The connection as the side that opened it sees it.
    #[inline(always)]
    fn flow(&self) -> Flow {
        Flow {
            source: self.connection.remote,
            destination: self.connection.local,
            source_port: self.remote_port,
            destination_port: self.connection.local_port,
        }
    }
}

/// Whether a time is not longer ago than the window.
#[inline(always)]
pub fn is_within(time: u64, window: u64) -> bool {
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // Another processor's clock may be a little ahead.
    now < time.wrapping_add(window)
}

/// The body of the program for the pod numbered `pod`.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext, pod: u32) -> u32 {
    let raw = ctx.lookup;
    // SAFETY: the kernel passes a valid context; the verifier checks offset and width.
    if unsafe { (&raw const (*raw).protocol).read_volatile() } != IPPROTO_TCP {
        return datagram(raw, pod);
    }
    let context = read(raw, pod);
    // Whatever has no listener to go to is refused, never passed: see `Verdict::Agent`.
    let (verdict, reason) = match decide(&context.connection, &context) {
        Verdict::Pass(reason) => (PASS, reason),
        Verdict::Drop(reason) => (DROP, reason),
        Verdict::Agent(kind, reason) => {
            let opener = match kind {
                ListenerKind::Outbound => opener(&context),
                _ => None,
            };
            match assign(ctx, pod, opener.unwrap_or_else(worker), kind) {
                Ok(()) => (PASS, reason),
                Err(reason) => (DROP, reason),
            }
        }
    };
    count(reason);
    let (peer, port) = (&context.connection.remote, context.remote_port);
    log::decided(Hook::Lookup, pod, reason, peer, port);
    verdict
}

/// The kernel looks up TCP and UDP only.
#[inline(always)]
fn datagram(raw: *mut bpf_sk_lookup, pod: u32) -> u32 {
    if !is_waypoint_only(pod) {
        return PASS;
    }
    let context = read(raw, pod);
    if datagram::passes(&context.connection, &context) {
        return PASS;
    }
    count(Reason::InboundDatagram);
    let (peer, port) = (&context.connection.remote, context.remote_port);
    log::decided(Hook::Lookup, pod, Reason::InboundDatagram, peer, port);
    DROP
}

impl datagram::Facts for Context {
    #[inline(always)]
    fn own_address(&self, addr: &Addr) -> bool {
        Facts::own_address(self, addr)
    }

    #[inline(always)]
    fn asked(&self) -> bool {
        let sent = Flow {
            source: self.connection.local,
            destination: self.connection.remote,
            source_port: self.connection.local_port,
            destination_port: self.remote_port,
        };
        // SAFETY: the value is copied out at once; it is one double word.
        let time = unsafe { ASKED.get(&sent) }.copied();
        time.is_some_and(|time| is_within(time, ANSWER_WINDOW_NS))
    }
}

/// The worker that has opened the other half of the connection.
#[inline(always)]
fn opener(context: &Context) -> Option<u16> {
    let key = HeldKey {
        pod: context.pod,
        flow: context.flow(),
    };
    // SAFETY: the value is copied out at once.
    let held = unsafe { HELD.get(&key) }.copied()?;
    Some(held.worker as u16)
}

#[inline(always)]
fn read(raw: *mut bpf_sk_lookup, pod: u32) -> Context {
    // SAFETY: as in `lookup`; each field is read with its own width.
    unsafe {
        let family = (&raw const (*raw).family).read_volatile();
        // Both forms are read before the family is looked at: reads in two branches would be merged
        // into one with a computed offset, which the verifier refuses.
        let remote4 = (&raw const (*raw).remote_ip4).read_volatile();
        let local4 = (&raw const (*raw).local_ip4).read_volatile();
        let remote6 = words(&raw const (*raw).remote_ip6);
        let local6 = words(&raw const (*raw).local_ip6);
        let v4 = family == AF_INET;
        let (remote, local) = if v4 {
            (Addr::v4(remote4), Addr::v4(local4))
        } else {
            (Addr::v6(remote6), Addr::v6(local6))
        };
        Context {
            pod,
            family: if v4 { 4 } else { 6 },
            remote_port: u16::from_be((&raw const (*raw).remote_port).read_volatile()),
            connection: Connection {
                local,
                local_port: (&raw const (*raw).local_port).read_volatile() as u16,
                remote,
                on_loopback: (&raw const (*raw).ingress_ifindex).read_volatile()
                    == LOOPBACK_IFINDEX,
            },
        }
    }
}

#[inline(always)]
unsafe fn words(field: *const [u32; 4]) -> [u32; 4] {
    let word = field.cast::<u32>();
    // SAFETY: the caller passes an array field of the context; one aligned word is read at a time.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, pod: u32, worker: u16, kind: ListenerKind) -> Result<(), Reason> {
    let assigned = with_listener_of(worker, pod, kind, |socket| {
        // SAFETY: the kernel passes a valid context, and the socket is referenced during the call.
        unsafe { bpf_sk_assign(ctx.lookup.cast(), socket, BPF_SK_LOOKUP_F_NO_REUSEPORT) }
    });
    match assigned {
        Ok(0) => Ok(()),
        Ok(_) => Err(Reason::InboundAssignFailed),
        Err(Lacking::Listener) => Err(Reason::InboundNoAgent),
        Err(Lacking::Beat) => Err(Reason::InboundAgentHung),
    }
}
