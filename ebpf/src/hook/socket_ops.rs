//! `sock_ops` at the root of the cgroup tree: which ports a pod's applications listen on, and the
//! life of direct connections.
//!
//! Sockets bound to loopback are not counted: nobody outside reaches them without a mesh either. Nor are
//! those of pods outside the mesh. A pod has a share of the map, so that none fills it for the others;
//! what found no room is noted, and the agent looks again.
//! Listeners older than the pod's enrolment are added by the agent. Kernel: `bpf_get_netns_cookie`
//! here since 5.15. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{LISTENER_CLOSED, LISTENER_OPENED, PodState, PortKey, Reason};
use aya_ebpf::{helpers::bpf_get_netns_cookie, programs::SockOpsContext};

use super::{
    direct_socket as direct,
    sock_ops_context::{is_v4, local},
};
use crate::maps::{BPF_NOEXIST, LISTENING, add, count, pod, ports_per_pod, share};

const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB: u32 = 4;
const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;
const BPF_SOCK_OPS_STATE_CB: u32 = 10;
const BPF_SOCK_OPS_TCP_LISTEN_CB: u32 = 11;
const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const BPF_TCP_SYN_SENT: u32 = 2;
const BPF_TCP_CLOSE: u32 = 7;
const BPF_TCP_LISTEN: u32 = 10;

/// The body of the program. Its return value means nothing to the kernel for these operations.
#[inline(always)]
pub fn track(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => on_listen(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_LISTEN => on_close(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            if ctx.arg(0) == BPF_TCP_SYN_SENT {
                direct::on_given_up(ctx);
            }
            direct::on_close(ctx);
        }
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
        if add_to(key, LISTENER_OPENED) {
            return;
        }
        let Some(used) = share(key.pod) else {
            return count(Reason::ListeningLost);
        };
        // SAFETY: the kernel gave a pointer to a live element; the addresses of its fields are taken.
        let (ports, lost) = unsafe { (&raw mut (*used).ports, &raw mut (*used).ports_lost) };
        // SAFETY: as above.
        if unsafe { *ports } >= ports_per_pod() {
            add(lost, 1);
            return count(Reason::ListeningShare);
        }
        add(ports, 1);
        if LISTENING.insert(key, LISTENER_OPENED, BPF_NOEXIST).is_ok() {
            return;
        }
        add(ports, u64::MAX);
        // Another processor was faster, or there is no room.
        if add_to(key, LISTENER_OPENED) {
            return;
        }
        add(lost, 1);
        count(Reason::ListeningLost);
    });
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG).is_err() {
        count(Reason::ListeningLost);
    }
}

/// An entry that counts nothing stays: another processor may be about to count in it. The agent, which can
/// look at the sockets afterwards, removes it.
#[inline(always)]
fn on_close(ctx: &SockOpsContext) {
    for_each_key(ctx, |key| {
        // A socket without entry was never counted.
        let _counted = add_to(key, LISTENER_CLOSED);
    });
}

/// Adds to an entry atomically; says whether there is one.
#[inline(always)]
fn add_to(key: &PortKey, value: u64) -> bool {
    let Some(sockets) = LISTENING.get_ptr_mut(key) else {
        return false;
    };
    add(sockets, value);
    true
}

/// Calls `each` with the keys under which the socket counts: none for sockets outside the mesh's pods
/// and for loopback, two for an IPv6 socket bound to `::`, which takes IPv4 as well.
#[inline(always)]
fn for_each_key(ctx: &SockOpsContext, each: impl Fn(&PortKey)) {
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let Some(pod) = pod(cookie) else {
        return;
    };
    // Nobody asks which ports a pod outside the mesh listens on.
    if matches!(PodState::from_raw(pod.state), PodState::Exempt) {
        return;
    }
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
