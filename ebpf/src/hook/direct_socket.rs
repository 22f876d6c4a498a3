//! The life of a direct connection, and of one that is left alone, as `sock_ops` sees it at the client's
//! socket.
//!
//! When the source port is chosen and before the SYN leaves, the connection is noted in `FLOWS`:
//! the server's `sk_lookup` takes only connections that are noted there, so that a packet with a
//! forged source address proves nothing. The note goes when the connection is accepted, and with the
//! client's socket at the latest. Opening and end are told to the agent.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    APP_MARK, APP_MARK_MASK, DirectFlow, DirectSocket, Event, EventKind, Flow, HeldKey, LEG_SOURCE,
    NOBODY, Reason,
};
use aya_ebpf::{
    helpers::{
        bpf_get_netns_cookie, bpf_getsockopt, bpf_ktime_get_ns, bpf_setsockopt, bpf_sk_storage_get,
    },
    programs::SockOpsContext,
};
use core::ffi::c_void;

use super::{
    late_connect,
    sock_ops_context::{local, remote},
    waits,
};
use crate::{
    direct::{CUBIC, must_become_cubic, payload},
    maps::{FLOWS, HELD, SOCKETS, count, pod, tell},
};

const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const BPF_TCP_SYN_SENT: u32 = 2;
const BPF_ANY: u64 = 0;
const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

/// Notes a direct connection before its SYN leaves, and asks to be called at its end.
#[inline(always)]
pub fn on_connect(ctx: &SockOpsContext) {
    let Some(socket) = stored(ctx) else {
        late_connect::on_connect(ctx);
        if late_connect::is_carried(ctx) {
            // Where this fails the agent learns late of a client that gives up.
            let _called = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG).is_ok();
        }
        return;
    };
    if socket.destination != NOBODY {
        note(ctx, &socket);
    }
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG).is_err() {
        count(Reason::EventLost);
    }
}

#[inline(always)]
fn note(ctx: &SockOpsContext, socket: &DirectSocket) {
    // SAFETY: the helper takes no argument.
    let time = unsafe { bpf_ktime_get_ns() };
    let note = DirectFlow::new(time, socket.source, socket.destination);
    if FLOWS.insert(&flow(ctx), note, BPF_ANY).is_err() {
        count(Reason::FlowLost);
    }
}

/// Tells of an established connection.
#[inline(always)]
pub fn on_established(ctx: &SockOpsContext) {
    match stored(ctx) {
        Some(socket) => tell_of(ctx, &socket, EventKind::Opened),
        None if late_connect::is_carried(ctx) => waits::on_established(ctx, &flow(ctx)),
        None => {}
    }
}

/// Lets go of a connection whose SYN is held and whose client will not have it any more.
#[inline(always)]
pub fn on_given_up(ctx: &SockOpsContext) {
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    if let Some(pod) = pod(cookie) {
        let key = HeldKey {
            pod: pod.id,
            flow: flow(ctx),
        };
        // Most connections are not held.
        let _held = HELD.remove(&key).is_ok();
    }
}

/// Takes the note of a connection that nobody accepted, and tells of the end of one that was established.
#[inline(always)]
pub fn on_close(ctx: &SockOpsContext) {
    let Some(socket) = stored(ctx) else {
        return waits::on_close(&flow(ctx));
    };
    if socket.destination != NOBODY {
        // That there is none (any more) is as good.
        let _taken = FLOWS.remove(&flow(ctx)).is_ok();
    }
    if ctx.arg(0) != BPF_TCP_SYN_SENT {
        tell_of(ctx, &socket, EventKind::Closed);
    }
}

/// Takes the note of a connection that is accepted, which nobody else shall find, and gives the
/// server's socket the congestion control of a local path, unless its application chose.
#[inline(always)]
pub fn on_accepted(ctx: &SockOpsContext) {
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let Some(pod) = pod(cookie) else {
        return;
    };
    let own = flow(ctx);
    let towards_us = Flow {
        source: own.destination,
        destination: own.source,
        source_port: own.destination_port,
        destination_port: own.source_port,
    };
    if FLOWS.remove(&towards_us).is_err() {
        // The application's end of an agent's leg takes over the leg's mark (tcp_fwmark_accept).
        if late_connect::is_carried(ctx) {
            waits::on_established(ctx, &own);
        }
        return;
    }
    let mut current = [0_u8; 8];
    // SAFETY: the buffer lives on this stack frame and its size is given.
    let read = unsafe {
        bpf_getsockopt(
            ctx.ops.cast(),
            SOL_TCP,
            TCP_CONGESTION,
            (&raw mut current).cast(),
            8,
        )
    };
    if read == 0 && must_become_cubic(current, pod.congestion) {
        let mut cubic = CUBIC;
        // SAFETY: as above. A failure costs speed only.
        unsafe {
            bpf_setsockopt(
                ctx.ops.cast(),
                SOL_TCP,
                TCP_CONGESTION,
                (&raw mut cubic).cast(),
                6,
            )
        };
    }
}

#[inline(always)]
fn tell_of(ctx: &SockOpsContext, socket: &DirectSocket, kind: EventKind) {
    // A pod that reached itself through its own service is nobody's connection; a leg is a part of one.
    if socket.source == socket.destination || socket.source == LEG_SOURCE {
        return;
    }
    // SAFETY: the helper takes no argument; the kernel passes a valid context.
    let (now, sent, received) = unsafe {
        (
            bpf_ktime_get_ns(),
            (&raw const (*ctx.ops).bytes_acked).read_volatile(),
            (&raw const (*ctx.ops).bytes_received).read_volatile(),
        )
    };
    // At the end the context's first argument is the state before.
    let (sent, received) = payload(sent, received, ctx.arg(0));
    tell(&Event {
        kind: kind as u32,
        source: socket.source,
        destination: socket.destination,
        flow: flow(ctx),
        dialled: socket.dialled,
        reserved: 0,
        sent,
        received,
        duration: now.wrapping_sub(socket.started),
    });
}

#[inline(always)]
fn flow(ctx: &SockOpsContext) -> Flow {
    Flow {
        source: local(ctx),
        destination: remote(ctx),
        source_port: ctx.local_port() as u16,
        // The context holds it in network order in the upper half of the word.
        destination_port: u32::from_be(ctx.remote_port()) as u16,
    }
}

#[inline(always)]
fn stored(ctx: &SockOpsContext) -> Option<DirectSocket> {
    // SAFETY: the kernel passes a valid context; the socket may be null.
    let socket = unsafe { (&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile() };
    if socket.is_null() {
        return None;
    }
    let map = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the socket is valid during the hook; nothing is created.
    let stored = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) };
    if stored.is_null() {
        return None;
    }
    // SAFETY: the kernel gave a pointer to the socket's live storage of this type.
    let stored = unsafe { *stored.cast::<DirectSocket>() };
    // Left alone by us and captured by another version of ours, which is asked as well and tells of it.
    // SAFETY: the socket is valid during the hook.
    let mark = unsafe { (&raw const (*socket).mark).read_volatile() };
    if stored.destination == NOBODY && mark & APP_MARK_MASK == APP_MARK {
        return None;
    }
    Some(stored)
}
