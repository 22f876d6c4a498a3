//! Connections whose first SYN leaves after their pod was captured, although `connect` was called before:
//! that of a socket with `TCP_FASTOPEN_CONNECT` leaves with the first bytes.
//!
//! `BPF_SOCK_OPS_TCP_CONNECT_CB` runs before the route is looked up again and before the SYN is made. A
//! connection that no hook has decided about is marked there, so that it goes to the agent like any other.
//! It fails closed: what cannot be marked is bound to `lo`, where nobody takes it. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{APP_MARK, APP_MARK_MASK, LOOPBACK_IFINDEX, OWN_ADDRESS, PodAddr, PodState, Reason};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::SockOpsContext,
};

use super::sock_ops_context::remote;
use crate::maps::{address_flags, count, pod};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;

/// Marks a connection that no hook has decided about.
#[inline(always)]
pub fn on_connect(ctx: &SockOpsContext) {
    let Some((mark, device)) = socket(ctx) else {
        return;
    };
    if abi::is_decided(mark) {
        return;
    }
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let Some(pod) = pod(cookie) else {
        return;
    };
    if matches!(
        PodState::from_raw(pod.state),
        PodState::Exempt | PodState::Joining
    ) {
        return;
    }
    let addr = remote(ctx);
    let own = || address_flags(&PodAddr { pod: pod.id, addr }) & OWN_ADDRESS != 0;
    if addr.is_loopback() || own() {
        return;
    }
    let unbound = device == 0 || set(ctx, SO_BINDTOIFINDEX, 0);
    if unbound && set(ctx, SO_MARK, APP_MARK) {
        count(Reason::OutboundLate);
        return;
    }
    count(Reason::OutboundMarkFailed);
    set(ctx, SO_BINDTOIFINDEX, LOOPBACK_IFINDEX);
}

/// Whether the connection goes to the agent.
#[inline(always)]
pub fn is_carried(ctx: &SockOpsContext) -> bool {
    socket(ctx).is_some_and(|(mark, _)| mark & APP_MARK_MASK == APP_MARK)
}

/// Mark and device of the socket.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<(u32, u32)> {
    // SAFETY: the kernel passes a valid context; the socket may be null.
    let socket: *mut bpf_sock =
        unsafe { (&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile() };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the socket is valid during the hook; the verifier checks offset and width.
    Some(unsafe {
        (
            (&raw const (*socket).mark).read_volatile(),
            (&raw const (*socket).bound_dev_if).read_volatile(),
        )
    })
}

#[inline(always)]
fn set(ctx: &SockOpsContext, option: i32, value: u32) -> bool {
    let mut value = value;
    // SAFETY: the option's value is a 32-bit word on this stack frame and its size is given.
    unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            4,
        ) == 0
    }
}
