//! How long the applications of carried connections wait for a silent peer. Their own sockets cannot notice one:
//! the agent, which is their peer, always answers. So the agent is told, and notices in their place.
//!
//! What is set before a connection is established is read then, what is set later when it is set. Kernel:
//! `bpf_getsockopt` of these options since 6.1 (`sol_socket_sockopt`, `sol_tcp_sockopt`). Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{Addr, Flow, OWN_ADDRESS, PodAddr, Reason};
use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    helpers::{bpf_get_netns_cookie, bpf_getsockopt},
    programs::SockOpsContext,
};
use core::ffi::c_void;

use crate::{
    maps::{WAITS, address_flags, count, pod},
    option::{
        Facts, SO_KEEPALIVE, Set, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_USER_TIMEOUT,
    },
};

const AF_INET: u32 = 2;
const BPF_ANY: u64 = 0;
const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;

/// Notes what the application has set before its connection was established, and asks to be called at its end.
/// Most have set nothing.
#[inline(always)]
pub fn on_established(ctx: &SockOpsContext, flow: &Flow) {
    let raw: *mut c_void = ctx.ops.cast();
    let (Some(keepalive), Some(user_timeout)) = (
        get(raw, SOL_SOCKET, SO_KEEPALIVE),
        get(raw, SOL_TCP, TCP_USER_TIMEOUT),
    ) else {
        return;
    };
    if keepalive == 0 && user_timeout == 0 {
        // An earlier connection with the same ports may have left its note.
        return on_close(flow);
    }
    // An agent's leg has the same mark; it comes from its client's address, which is not the pod's.
    // SAFETY: the helper accepts the context of this program type.
    let Some(pod) = pod(unsafe { bpf_get_netns_cookie(raw) }) else {
        return;
    };
    let own = PodAddr {
        pod: pod.id,
        addr: flow.source,
    };
    if address_flags(&own) & OWN_ADDRESS == 0 {
        return;
    }
    if let Some(set) = read(raw, keepalive, user_timeout) {
        note(flow, &set);
        // Where this fails the note stays until others need its place.
        let _called = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG).is_ok();
    }
}

/// Takes the note of a connection that has ended.
#[inline(always)]
pub fn on_close(flow: &Flow) {
    // Most have none.
    let _noted = WAITS.remove(flow).is_ok();
}

/// Notes what the application of an established connection is about to set.
#[inline(always)]
pub fn on_set(raw: *mut bpf_sockopt, level: i32, name: i32, value: &impl Facts) {
    let mut bytes = [0_u8; 4];
    for (at, byte) in bytes.iter_mut().enumerate() {
        match value.byte(at) {
            Some(read) => *byte = read,
            // The kernel refuses it.
            None => return,
        }
    }
    // SAFETY: the kernel passes a valid context; its socket has been found valid.
    let socket = unsafe { (&raw const (*raw).__bindgen_anon_1.sk).read_volatile() };
    if socket.is_null() {
        return;
    }
    let (Some(keepalive), Some(user_timeout)) = (
        get(socket.cast(), SOL_SOCKET, SO_KEEPALIVE),
        get(socket.cast(), SOL_TCP, TCP_USER_TIMEOUT),
    ) else {
        return;
    };
    let Some(set) = read(socket.cast(), keepalive, user_timeout) else {
        return;
    };
    if let Some(set) = set.with(level, name, i32::from_ne_bytes(bytes)) {
        note(&flow(socket), &set);
    }
}

#[inline(always)]
fn note(flow: &Flow, set: &Set) {
    if WAITS.insert(flow, set.waits(), BPF_ANY).is_ok() {
        count(Reason::WaitsNoted);
    }
}

#[inline(always)]
fn read(from: *mut c_void, keepalive: i32, user_timeout: i32) -> Option<Set> {
    Some(Set {
        keepalive,
        idle: get(from, SOL_TCP, TCP_KEEPIDLE)?,
        interval: get(from, SOL_TCP, TCP_KEEPINTVL)?,
        probes: get(from, SOL_TCP, TCP_KEEPCNT)?,
        user_timeout,
    })
}

/// An option of a context or a socket, whichever the program's helper takes.
#[inline(always)]
fn get(from: *mut c_void, level: i32, name: i32) -> Option<i32> {
    let mut value = 0_i32;
    // SAFETY: the value lives on this stack frame and its size is given.
    let read = unsafe { bpf_getsockopt(from, level, name, (&raw mut value).cast(), 4) };
    (read == 0).then_some(value)
}

/// A connection as its socket has it. Both forms of an address are read before the family is looked at, see
/// [`super::sock_ops_context`].
#[inline(always)]
fn flow(socket: *mut bpf_sock) -> Flow {
    // SAFETY: the socket is valid during the hook; the verifier checks offset and width of each read.
    unsafe {
        let family = (&raw const (*socket).family).read_volatile();
        let source_v4 = (&raw const (*socket).src_ip4).read_volatile();
        let source_v6 = words((&raw const (*socket).src_ip6).cast());
        let destination_v4 = (&raw const (*socket).dst_ip4).read_volatile();
        let destination_v6 = words((&raw const (*socket).dst_ip6).cast());
        let source_port = (&raw const (*socket).src_port).read_volatile() as u16;
        let destination_port = u16::from_be((&raw const (*socket).dst_port).read_volatile() as u16);
        let (source, destination) = if family == AF_INET {
            (Addr::v4(source_v4), Addr::v4(destination_v4))
        } else {
            (Addr::v6(source_v6), Addr::v6(destination_v6))
        };
        Flow {
            source,
            destination,
            source_port,
            destination_port,
        }
    }
}

#[inline(always)]
unsafe fn words(first: *const u32) -> [u32; 4] {
    // SAFETY: the caller passes the first of four words of the socket.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    }
}
