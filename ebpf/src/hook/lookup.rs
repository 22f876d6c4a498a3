//! `sk_lookup`: who takes a connection in a pod's network namespace.
//!
//! One instance per pod, with the pod's number in its read-only data: `bpf_get_netns_cookie` is not
//! allowed here. Only TCP connections that no connected socket takes get here (kernel: `sk_lookup`
//! since 5.9, `ingress_ifindex` since 5.17). Run on: 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    Addr, DirectVerdict, FLOW_WINDOW_NS, Flow, LOOPBACK_IFINDEX, ListenerKey, ListenerKind,
    OWN_ADDRESS, PROBE_WINDOW_NS, PodAddr, PortKey, Reason,
};
use aya_ebpf::{bindings::bpf_sk_lookup, helpers::bpf_ktime_get_ns, programs::SkLookupContext};

use crate::{
    inbound::{Connection, Facts, Verdict, decide},
    maps::{FLOWS, INBOUND, LISTENERS, LISTENING, PROBES, address_flags, count, verdict, worker},
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
const ENOENT: i32 = 2;
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
        seen.is_some_and(|time| is_within(time, PROBE_WINDOW_NS))
    }

    #[inline(always)]
    fn direct(&self) -> Option<DirectVerdict> {
        // SAFETY: the value is copied out at once; the note is written whole before the SYN leaves.
        let note = unsafe { FLOWS.get(&self.flow()) }.copied()?;
        if note.destination != self.pod || !is_within(note.time, FLOW_WINDOW_NS) {
            return None;
        }
        Some(verdict(note.source, self.pod, self.connection.local_port))
    }

    #[inline(always)]
    fn listening(&self) -> bool {
        let key = PortKey {
            pod: self.pod,
            port: self.connection.local_port,
            family: self.family,
        };
        // SAFETY: the value is copied out at once; it is one word.
        unsafe { LISTENING.get(&key) }.copied().unwrap_or(0) > 0
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

#[inline(always)]
fn is_within(time: u64, window: u64) -> bool {
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
        return PASS;
    }
    let context = read(raw, pod);
    // Whatever has no listener to go to is refused, never passed: see `Verdict::Agent`.
    match decide(&context.connection, &context) {
        Verdict::Pass(reason) => {
            count(reason);
            PASS
        }
        Verdict::Drop(reason) => refuse(reason),
        Verdict::Agent(kind, reason) => assign(ctx, pod, kind, reason),
    }
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
fn assign(ctx: &SkLookupContext, pod: u32, kind: ListenerKind, reason: Reason) -> u32 {
    let key = ListenerKey {
        pod,
        kind: kind as u16,
        worker: worker(),
    };
    match LISTENERS.redirect_sk_lookup(ctx, key, BPF_SK_LOOKUP_F_NO_REUSEPORT) {
        Ok(()) => {
            count(reason);
            PASS
        }
        Err(e) if e == -ENOENT => refuse(Reason::InboundNoAgent),
        Err(_) => refuse(Reason::InboundAssignFailed),
    }
}

#[inline(always)]
fn refuse(reason: Reason) -> u32 {
    count(reason);
    DROP
}
