//! `cgroup/connect4` and `connect6`: capture of what a pod's applications dial.
//!
//! The address is not rewritten. The socket gets a mark; a rule in the pod's namespace routes the
//! mark to `lo`, where `sk_lookup` hands the connection to the agent, which reads the original
//! destination with `getsockname`. Kernel: `bpf_setsockopt` here since 5.8, `SO_BINDTOIFINDEX` in it
//! since 6.1, `bpf_set_retval` since 5.18. Run on: 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{APP_MARK, Addr, ListenerKey, ListenerKind, OWN_ADDRESS, Pod, PodAddr, PodState, Reason};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_set_retval,
        bpf_setsockopt, bpf_sk_release,
    },
};
use core::ffi::c_void;

use crate::{
    maps::{AGENTS, LISTENERS, address_flags, count, pod, worker},
    outbound::{Facts, Verdict, decide},
};

const IPPROTO_TCP: u32 = 6;
/// Subflows are seen with protocol 6; the MPTCP socket itself may show this.
const IPPROTO_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const ECONNREFUSED: i32 = 111;

const ALLOW: i32 = 1;
const REJECT: i32 = 0;

struct Context {
    raw: *mut bpf_sock_addr,
    pod: Pod,
}

impl Facts for Context {
    #[inline(always)]
    fn by_agent(&self) -> bool {
        // SAFETY: the helper takes no argument; the id is that of the calling task.
        let cgroup = unsafe { bpf_get_current_cgroup_id() };
        // SAFETY: only the entry's presence is read.
        unsafe { AGENTS.get(&cgroup) }.is_some()
    }

    #[inline(always)]
    fn own_address(&self, addr: &Addr) -> bool {
        address_flags(&PodAddr {
            pod: self.pod.id,
            addr: *addr,
        }) & OWN_ADDRESS
            != 0
    }

    #[inline(always)]
    fn agent_listens(&self) -> bool {
        let key = ListenerKey {
            pod: self.pod.id,
            kind: ListenerKind::Outbound as u16,
            worker: worker(),
        };
        let map = (&raw const LISTENERS).cast_mut().cast::<c_void>();
        // SAFETY: `map` is the map's own symbol and `key` lives on this stack frame.
        let socket = unsafe { bpf_map_lookup_elem(map, (&raw const key).cast()) };
        if socket.is_null() {
            return false;
        }
        // SAFETY: a non-null result of a lookup in a socket map is a referenced socket.
        unsafe { bpf_sk_release(socket) };
        true
    }
}

/// The body of `connect4`.
#[inline(always)]
pub fn connect4(raw: *mut bpf_sock_addr) -> i32 {
    // SAFETY: the kernel passes a valid context; the verifier checks offset and width of each read.
    let word = unsafe { (&raw const (*raw).user_ip4).read_volatile() };
    connect(raw, &Addr::v4(word))
}

/// The body of `connect6`.
#[inline(always)]
pub fn connect6(raw: *mut bpf_sock_addr) -> i32 {
    let word = |i: usize| {
        // SAFETY: as in `connect4`; `i` is below 4.
        unsafe { (&raw const (*raw).user_ip6[i]).read_volatile() }
    };
    connect(raw, &Addr::v6([word(0), word(1), word(2), word(3)]))
}

#[inline(always)]
fn connect(raw: *mut bpf_sock_addr, destination: &Addr) -> i32 {
    // SAFETY: as in `connect4`.
    let (kind, protocol) = unsafe {
        (
            (&raw const (*raw).type_).read_volatile(),
            (&raw const (*raw).protocol).read_volatile(),
        )
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return ALLOW;
    }
    // SAFETY: the helper accepts the context of this program type.
    let cookie = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let Some(pod) = pod(cookie) else {
        return ALLOW;
    };
    let context = Context { raw, pod };
    // A socket that cannot be marked would bypass the agent: refuse.
    match decide(PodState::from_raw(pod.state), destination, &context) {
        Verdict::Pass(reason) => {
            count(reason);
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(reason),
        Verdict::Capture if mark(context.raw) => {
            count(Reason::OutboundCaptured);
            ALLOW
        }
        Verdict::Capture => refuse(Reason::OutboundMarkFailed),
    }
}

/// Marks the socket and undoes `SO_BINDTODEVICE`, which would keep the connection off `lo`.
#[inline(always)]
fn mark(raw: *mut bpf_sock_addr) -> bool {
    set(raw, SO_MARK, APP_MARK) && set(raw, SO_BINDTOIFINDEX, 0)
}

#[inline(always)]
fn set(raw: *mut bpf_sock_addr, option: i32, value: u32) -> bool {
    let mut value = value;
    // SAFETY: the option's value is a 32-bit word on this stack frame and its size is given.
    unsafe { bpf_setsockopt(raw.cast(), SOL_SOCKET, option, (&raw mut value).cast(), 4) == 0 }
}

#[inline(always)]
fn refuse(reason: Reason) -> i32 {
    count(reason);
    // SAFETY: the helper takes a value only. If it fails, the kernel answers EPERM: refused as well.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REJECT
}
