//! `sock_ops` at the root of the cgroup tree: which ports a pod's applications listen on, and the
//! life of direct connections.
//!
//! Sockets bound to loopback are not counted: nobody outside reaches them without a mesh either.
//! Listeners older than the pod's enrolment are added by the agent. Kernel: `bpf_get_netns_cookie`
//! here since 5.15. Run on: 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{PortKey, Reason};
use aya_ebpf::{helpers::bpf_get_netns_cookie, programs::SockOpsContext};

use super::{
    direct_socket as direct,
    sock_ops_context::{is_v4, local},
};
use crate::maps::{LISTENING, count, pod};

const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB: u32 = 4;
const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;
const BPF_SOCK_OPS_STATE_CB: u32 = 10;
const BPF_SOCK_OPS_TCP_LISTEN_CB: u32 = 11;
const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const BPF_TCP_CLOSE: u32 = 7;
const BPF_TCP_LISTEN: u32 = 10;
const BPF_NOEXIST: u64 = 1;

/// The body of the program. Its return value means nothing to the kernel for these operations.
#[inline(always)]
pub fn track(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => on_listen(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_LISTEN => on_close(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => direct::on_close(ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => direct::on_connect(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => direct::on_established(ctx),
        // An accepted socket inherits the listener's flags; its own states are of no interest.
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if ctx.cb_flags() != 0 && ctx.set_cb_flags(0).is_err() {
                return 1;
            }
            direct::on_accepted(ctx);
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn on_listen(ctx: &SockOpsContext) {
    for_each_key(ctx, |key| {
        if let Some(sockets) = LISTENING.get_ptr_mut(key) {
            add(sockets, 1);
        } else if LISTENING.insert(key, 1, BPF_NOEXIST).is_err() {
            count(Reason::ListeningLost);
        }
    });
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG).is_err() {
        count(Reason::ListeningLost);
    }
}

#[inline(always)]
fn on_close(ctx: &SockOpsContext) {
    for_each_key(ctx, |key| {
        let Some(sockets) = LISTENING.get_ptr_mut(key) else {
            return;
        };
        // SAFETY: the kernel gave a pointer into a live element.
        if unsafe { *sockets } <= 1 {
            if LISTENING.remove(key).is_err() {
                count(Reason::ListeningLost);
            }
            return;
        }
        add(sockets, u64::MAX);
    });
}

/// Adds to an element atomically. `core::sync::atomic` has no addition for this target, whose
/// instruction set has one (`lock *(u64 *) += src`).
#[inline(always)]
fn add(element: *mut u64, value: u64) {
    // SAFETY: the kernel gave a pointer to an aligned, live element of the map.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            element, value,
        );
    }
}

/// Calls `each` with the keys under which the socket counts: none for sockets outside known pods
/// and for loopback, two for an IPv6 socket bound to `::`, which takes IPv4 as well.
#[inline(always)]
fn for_each_key(ctx: &SockOpsContext, each: impl Fn(&PortKey)) {
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let Some(pod) = pod(cookie) else {
        return;
    };
    let v4 = is_v4(ctx);
    let local = local(ctx);
    let unspecified = local.words[3] == 0 && local.is_loopback();
    if local.is_loopback() && !unspecified {
        return;
    }
    let port = ctx.local_port() as u16;
    if v4 || unspecified || local.is_v4() {
        each(&PortKey {
            pod: pod.id,
            port,
            family: 4,
        });
    }
    if !v4 && !local.is_v4() {
        each(&PortKey {
            pod: pod.id,
            port,
            family: 6,
        });
    }
}
