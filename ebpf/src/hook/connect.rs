//! `cgroup/connect4` and `connect6`: capture of what a pod's applications dial.
//!
//! The address is not rewritten. The socket gets a mark; a rule in the pod's namespace routes the
//! mark to `lo`, where `sk_lookup` hands the connection to the agent, which reads the original
//! destination with `getsockname`. A connection that goes directly to a pod of this node is the
//! exception: a service's address becomes the endpoint's, and what was dialled is kept with the
//! socket, where `getpeername4` and `getpeername6` find it. Kernel: `bpf_setsockopt` here since 5.8, `SO_BINDTOIFINDEX` in it
//! since 6.1, `bpf_set_retval` since 5.18. Run on: 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    APP_MARK, Addr, DIRECT, DRAWN, DirectSocket, DirectVerdict, Endpoint, Event, EventKind, Flow,
    ListenerKey, ListenerKind, OWN_ADDRESS, Pod, PodAddr, PodState, Reason, SlotKey, Target,
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_getsockopt,
        bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_set_retval, bpf_setsockopt, bpf_sk_release,
        bpf_sk_storage_delete, bpf_sk_storage_get,
    },
};
use core::ffi::c_void;

use crate::{
    direct::{CUBIC, Path, choose, is_below, must_become_cubic},
    maps::{
        AGENTS, LISTENERS, LOCAL_PODS, SERVICES, SLOTS, SOCKETS, address_flags, count, is_set, pod,
        tell, verdict, worker,
    },
    outbound::{Facts, Verdict, decide},
};

const IPPROTO_TCP: u32 = 6;
/// Subflows are seen with protocol 6; the MPTCP socket itself may show this.
const IPPROTO_MPTCP: u32 = 262;
const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const ECONNREFUSED: i32 = 111;

const ALLOW: i32 = 1;
const REJECT: i32 = 0;

struct Context {
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

/// What the choice of the path may ask.
struct DirectFacts {
    pod: u32,
}

impl crate::direct::Facts for DirectFacts {
    #[inline(always)]
    fn draw(&self, dialled: &Endpoint) -> Option<Target> {
        // SAFETY: the value is copied out at once; the agent replaces whole entries.
        let service = unsafe { SERVICES.get(dialled) }.copied()?;
        if service.slots == 0 {
            return None;
        }
        // SAFETY: the helper takes no argument.
        let (column, random) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
        let key = SlotKey {
            service: service.id,
            index: column % service.slots,
        };
        let slot = SLOTS.get_ptr(&key)?;
        // SAFETY: the kernel gave a pointer to a live element; one field is copied out. A slot is
        // never changed after it is written, only removed with its service's version.
        unsafe {
            Some(if is_below((*slot).threshold, random) {
                (*slot).below
            } else {
                (*slot).above
            })
        }
    }

    #[inline(always)]
    fn local_pod(&self, addr: &Addr) -> Option<u32> {
        // SAFETY: the value is copied out at once; it is one word.
        unsafe { LOCAL_PODS.get(addr) }
            .copied()
            .filter(|pod| *pod != 0)
    }

    #[inline(always)]
    fn verdict(&self, destination: u32, port: u16) -> DirectVerdict {
        verdict(self.pod, destination, port)
    }
}

/// The body of `connect4`.
#[inline(always)]
pub fn connect4(raw: *mut bpf_sock_addr) -> i32 {
    // SAFETY: the kernel passes a valid context; the verifier checks offset and width of each read.
    let word = unsafe { (&raw const (*raw).user_ip4).read_volatile() };
    connect(raw, &Addr::v4(word), |to| {
        // SAFETY: as above, for the write.
        unsafe { (&raw mut (*raw).user_ip4).write_volatile(to.words[3]) };
    })
}

/// The body of `connect6`.
#[inline(always)]
pub fn connect6(raw: *mut bpf_sock_addr) -> i32 {
    let word = |i: usize| {
        // SAFETY: as in `connect4`; `i` is below 4.
        unsafe { (&raw const (*raw).user_ip6[i]).read_volatile() }
    };
    connect(raw, &Addr::v6([word(0), word(1), word(2), word(3)]), |to| {
        write6(raw, to)
    })
}

/// The body of `getpeername4`: shows what was dialled.
#[inline(always)]
pub fn getpeername4(raw: *mut bpf_sock_addr) -> i32 {
    if let Some(socket) = stored(raw) {
        // SAFETY: the kernel gave a pointer to the socket's live storage and a valid context.
        unsafe {
            let dialled = (*socket).dialled;
            (&raw mut (*raw).user_ip4).write_volatile(dialled.addr.words[3]);
            (&raw mut (*raw).user_port).write_volatile(u32::from(dialled.port.to_be()));
        }
    }
    ALLOW
}

/// The body of `getpeername6`.
#[inline(always)]
pub fn getpeername6(raw: *mut bpf_sock_addr) -> i32 {
    if let Some(socket) = stored(raw) {
        // SAFETY: as in `getpeername4`.
        let dialled = unsafe { (*socket).dialled };
        write6(raw, &dialled.addr);
        // SAFETY: as in `getpeername4`.
        unsafe { (&raw mut (*raw).user_port).write_volatile(u32::from(dialled.port.to_be())) };
    }
    ALLOW
}

#[inline(always)]
fn write6(raw: *mut bpf_sock_addr, to: &Addr) {
    // SAFETY: as in `connect4`; the four words are written one by one.
    unsafe {
        (&raw mut (*raw).user_ip6[0]).write_volatile(to.words[0]);
        (&raw mut (*raw).user_ip6[1]).write_volatile(to.words[1]);
        (&raw mut (*raw).user_ip6[2]).write_volatile(to.words[2]);
        (&raw mut (*raw).user_ip6[3]).write_volatile(to.words[3]);
    }
}

#[inline(always)]
fn connect(raw: *mut bpf_sock_addr, destination: &Addr, rewrite: impl FnOnce(&Addr)) -> i32 {
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
    // A socket that is dialled anew forgets what it dialled before.
    forget(raw);
    // A socket that cannot be marked would bypass the agent: refuse.
    match decide(PodState::from_raw(pod.state), destination, &Context { pod }) {
        Verdict::Pass(reason) => {
            count(reason);
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(reason),
        Verdict::Capture if is_set(DIRECT) => capture_or_direct(raw, &pod, destination, rewrite),
        Verdict::Capture => capture(raw, APP_MARK),
    }
}

#[inline(always)]
fn capture_or_direct(
    raw: *mut bpf_sock_addr,
    pod: &Pod,
    destination: &Addr,
    rewrite: impl FnOnce(&Addr),
) -> i32 {
    // SAFETY: as in `connect4`.
    let port = u16::from_be(unsafe { (&raw const (*raw).user_port).read_volatile() } as u16);
    let dialled = Endpoint::new(*destination, port);
    match choose(pod.id, &dialled, &DirectFacts { pod: pod.id }) {
        Path::Agent { drawn: true } => capture(raw, APP_MARK | DRAWN),
        Path::Agent { drawn: false } => capture(raw, APP_MARK),
        Path::ToSelf(endpoint) => {
            if !remember(raw, pod.id, pod.id, &dialled) {
                return refuse(Reason::OutboundDirectFailed);
            }
            redirect(raw, &endpoint, rewrite);
            count(Reason::OutboundOwnAddress);
            ALLOW
        }
        Path::Direct(target) => {
            if !remember(raw, pod.id, target.pod, &dialled) || !unbind(raw) {
                return refuse(Reason::OutboundDirectFailed);
            }
            prefer_cubic(raw, pod);
            redirect(raw, &target.endpoint, rewrite);
            count(Reason::OutboundDirect);
            ALLOW
        }
        Path::Deny(target) => {
            deny(pod.id, &target, &dialled);
            refuse(Reason::OutboundDenied)
        }
    }
}

#[inline(always)]
fn capture(raw: *mut bpf_sock_addr, mark: u32) -> i32 {
    // `SO_BINDTODEVICE` would keep the connection off `lo`.
    if set(raw, SO_MARK, mark) && unbind(raw) {
        count(Reason::OutboundCaptured);
        return ALLOW;
    }
    refuse(Reason::OutboundMarkFailed)
}

/// Undoes `SO_BINDTODEVICE`, which few sockets have.
#[inline(always)]
fn unbind(raw: *mut bpf_sock_addr) -> bool {
    // SAFETY: as in `connect4`; the context's socket is valid during the hook.
    let bound = unsafe {
        let socket = (&raw const (*raw).__bindgen_anon_1.sk).read_volatile();
        !socket.is_null() && (&raw const (*socket).bound_dev_if).read_volatile() != 0
    };
    !bound || set(raw, SO_BINDTOIFINDEX, 0)
}

/// Leads the connection to the endpoint; what was dialled is kept with the socket.
#[inline(always)]
fn redirect(raw: *mut bpf_sock_addr, endpoint: &Endpoint, rewrite: impl FnOnce(&Addr)) {
    rewrite(&endpoint.addr);
    // SAFETY: as in `connect4`.
    unsafe { (&raw mut (*raw).user_port).write_volatile(u32::from(endpoint.port.to_be())) };
}

#[inline(always)]
fn remember(raw: *mut bpf_sock_addr, source: u32, destination: u32, dialled: &Endpoint) -> bool {
    // SAFETY: the helper takes no argument.
    let started = unsafe { bpf_ktime_get_ns() };
    let mut socket = DirectSocket {
        dialled: *dialled,
        source,
        destination,
        reserved: 0,
        started,
    };
    // SAFETY: the context's socket is valid during the hook; the value lives on this stack frame.
    let stored = unsafe {
        bpf_sk_storage_get(
            sockets(),
            socket_of(raw),
            (&raw mut socket).cast(),
            BPF_SK_STORAGE_GET_F_CREATE,
        )
    };
    !stored.is_null()
}

#[inline(always)]
fn stored(raw: *mut bpf_sock_addr) -> Option<*const DirectSocket> {
    // SAFETY: the context's socket is valid during the hook; nothing is created.
    let stored = unsafe { bpf_sk_storage_get(sockets(), socket_of(raw), core::ptr::null_mut(), 0) };
    (!stored.is_null()).then_some(stored.cast())
}

#[inline(always)]
fn forget(raw: *mut bpf_sock_addr) {
    if stored(raw).is_some() {
        // SAFETY: as in `stored`. That there is nothing to delete any more is fine.
        unsafe { bpf_sk_storage_delete(sockets(), socket_of(raw)) };
    }
}

#[inline(always)]
fn sockets() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

#[inline(always)]
fn socket_of(raw: *mut bpf_sock_addr) -> *mut c_void {
    // SAFETY: as in `connect4`.
    unsafe { (&raw const (*raw).__bindgen_anon_1.sk).read_volatile() }.cast()
}

/// Cubic, where the application has not chosen: a default made for wide-area paths (bbr) halves
/// what two sockets of one machine can do. A failure costs speed only.
#[inline(always)]
fn prefer_cubic(raw: *mut bpf_sock_addr, pod: &Pod) {
    let mut current = [0_u8; 8];
    // SAFETY: the buffer lives on this stack frame and its size is given.
    let read = unsafe {
        bpf_getsockopt(
            raw.cast(),
            SOL_TCP,
            TCP_CONGESTION,
            (&raw mut current).cast(),
            8,
        )
    };
    if read == 0 && must_become_cubic(current, pod.congestion) {
        let mut cubic = CUBIC;
        // SAFETY: as above.
        unsafe {
            bpf_setsockopt(
                raw.cast(),
                SOL_TCP,
                TCP_CONGESTION,
                (&raw mut cubic).cast(),
                6,
            )
        };
    }
}

#[inline(always)]
fn deny(source: u32, target: &Target, dialled: &Endpoint) {
    let flow = Flow {
        source: Addr::v4(0),
        destination: target.endpoint.addr,
        source_port: 0,
        destination_port: target.endpoint.port,
    };
    tell(&Event {
        kind: EventKind::Denied as u32,
        source,
        destination: target.pod,
        flow,
        dialled: *dialled,
        reserved: 0,
        sent: 0,
        received: 0,
        duration: 0,
    });
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
