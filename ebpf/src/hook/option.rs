//! `cgroup/setsockopt`: options that would lead a connection of a captured pod past the mesh, and those that say
//! how long an application waits for a silent peer, which the agent is to know.
//!
//! It fails closed for the options that it knows and leaves all others alone. The kernel copies a value of
//! up to a page for it on every call of every process, so all but a few option names are done with before
//! anything is looked up. A process of another word size than the kernel's does not come by here (kernel:
//! `do_sock_setsockopt`); what it sets, routes and the guard on the pod's interface make harmless. Kernel:
//! `bpf_get_netns_cookie` here since 5.14. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{APP_MARK, APP_MARK_MASK, PodState, Reason};
use aya_ebpf::{
    bindings::bpf_sockopt,
    helpers::{bpf_get_current_cgroup_id, bpf_get_netns_cookie},
};

use super::{
    connect::{IPPROTO_MPTCP, IPPROTO_TCP, SOCK_STREAM},
    waits,
};
use crate::{
    maps::{AGENTS, count, pod},
    option::{Facts, Kind, Verdict, decide, kind},
};

const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

const ALLOW: i32 = 1;
const REJECT: i32 = 0;

/// As `optlen`: the kernel takes the application's own value, of whatever length.
const UNCHANGED: i32 = 0;
/// As `optlen`: the kernel does nothing more, and the call succeeds.
const DONE: i32 = -1;

struct Context {
    raw: *mut bpf_sockopt,
    carried: bool,
}

impl Facts for Context {
    #[inline(always)]
    fn carried(&self) -> bool {
        self.carried
    }

    /// The value is read where it lies: a program before this one may have changed the length already.
    #[inline(always)]
    fn byte(&self, at: usize) -> Option<u8> {
        // SAFETY: the kernel passes a valid context; the verifier checks offset and width of each read.
        let (start, end) = unsafe {
            (
                (&raw const (*self.raw).__bindgen_anon_2.optval).read_volatile() as usize,
                (&raw const (*self.raw).__bindgen_anon_3.optval_end).read_volatile() as usize,
            )
        };
        let place = start + at;
        if place + 1 > end {
            return None;
        }
        // SAFETY: the verifier has seen the comparison.
        Some(unsafe { (place as *const u8).read_volatile() })
    }
}

/// The body of the program.
#[inline(always)]
pub fn set(raw: *mut bpf_sockopt) -> i32 {
    // SAFETY: the kernel passes a valid context; the verifier checks offset and width of each read.
    let (level, name) = unsafe {
        (
            (&raw const (*raw).level).read_volatile(),
            (&raw const (*raw).optname).read_volatile(),
        )
    };
    let kind = kind(level, name);
    if matches!(kind, Kind::Other) {
        return pass(raw);
    }
    let Some(carried) = socket(raw) else {
        return pass(raw);
    };
    let context = Context { raw, carried };
    if matches!(kind, Kind::Wait) {
        if carried {
            waits::on_set(raw, level, name, &context);
        }
        return pass(raw);
    }
    match decide(kind, &context) {
        Verdict::Pass => pass(raw),
        Verdict::Ignore => {
            count(Reason::OptionIgnored);
            // SAFETY: as above, for the write.
            unsafe { (&raw mut (*raw).optlen).write_volatile(DONE) };
            ALLOW
        }
        Verdict::Refuse => {
            count(Reason::OptionRefused);
            REJECT
        }
    }
}

/// Whether the socket's connection is carried; nothing if the socket is not the hook's business: it is not
/// of TCP, not in a captured pod, or an agent's.
#[inline(always)]
fn socket(raw: *mut bpf_sockopt) -> Option<bool> {
    // SAFETY: as in `set`; the context's socket is valid during the hook.
    let (kind, protocol, state, mark) = unsafe {
        let socket = (&raw const (*raw).__bindgen_anon_1.sk).read_volatile();
        if socket.is_null() {
            return None;
        }
        (
            (&raw const (*socket).type_).read_volatile(),
            (&raw const (*socket).protocol).read_volatile(),
            (&raw const (*socket).state).read_volatile(),
            (&raw const (*socket).mark).read_volatile(),
        )
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return None;
    }
    // SAFETY: the helper accepts the context of this program type.
    let pod = pod(unsafe { bpf_get_netns_cookie(raw.cast()) })?;
    if matches!(
        PodState::from_raw(pod.state),
        PodState::Exempt | PodState::Joining
    ) {
        return None;
    }
    // SAFETY: the helper takes no argument; the id is that of the calling task.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: only the entry's presence is read.
    if unsafe { AGENTS.get(&cgroup) }.is_some() {
        return None;
    }
    let connected = state != TCP_CLOSE && state != TCP_LISTEN;
    // The mark of a multipath connection is on its subflows.
    let marked = mark & APP_MARK_MASK == APP_MARK || protocol == IPPROTO_MPTCP;
    Some(connected && marked)
}

/// Leaves the call to the kernel, unless a program before this one has said that it is done with.
#[inline(always)]
fn pass(raw: *mut bpf_sockopt) -> i32 {
    // SAFETY: as in `set`, also for the write.
    unsafe {
        if (&raw const (*raw).optlen).read_volatile() > 0 {
            (&raw mut (*raw).optlen).write_volatile(UNCHANGED);
        }
    }
    ALLOW
}
