//! `cgroup/connect4` and `connect6`: capture of what a pod's applications dial.
//!
//! The address is not rewritten. The socket gets a mark; a rule in the pod's namespace routes the
//! mark to `lo`, where `sk_lookup` hands the connection to the agent, which reads the original
//! destination with `getsockname`. A connection that goes directly to a pod of this node is the
//! exception: a service's address becomes the endpoint's, and what was dialled is kept with the
//! socket, where `getpeername4` and `getpeername6` find it. A destination that the mesh does not carry
//! is left alone: the kernel connects, or says why it cannot, as without a mesh. Kernel: `bpf_setsockopt`
//! here since 5.8, `SO_BINDTOIFINDEX` in it since 6.1, `bpf_set_retval` since 5.18,
//! `bpf_skc_to_mptcp_sock` since 5.19. Run on: 6.1, 6.12, 6.18.

#![expect(unsafe_code, reason = "context fields and kernel helpers are raw")]

use abi::{
    AGENT_MARK, APP_MARK, APP_MARK_MASK, Addr, DIRECT, DRAWN, DirectSocket, DirectVerdict,
    Endpoint, Event, EventKind, Flow, LEG, LEG_SOURCE, ListenerKind, MemberKey, NOBODY,
    OWN_ADDRESS, Pod, PodAddr, PodState, Reason, Service, Session, SessionKey, SlotKey, Target,
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_getsockopt,
        bpf_ktime_get_ns, bpf_set_retval, bpf_setsockopt, bpf_sk_storage_delete,
        bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
    },
};
use core::ffi::c_void;

use super::{
    agent::with_listener,
    log::{self, Hook},
};
use crate::{
    direct::{CUBIC, Path, choose, is_below, must_become_cubic},
    liveness::Lacking,
    maps::{
        self, AGENTS, LOCAL_PODS, MEMBERS, SERVICES, SESSIONS, SLOTS, SOCKETS, address_flags,
        count, is_carried, is_listening, is_set, pod, verdict, verdict_led,
    },
    outbound::{Carry, CarryFacts, Facts, Verdict, carry, decide},
};

pub(super) const IPPROTO_TCP: u32 = 6;
/// Subflows are seen with protocol 6; the MPTCP socket itself may show this.
pub(super) const IPPROTO_MPTCP: u32 = 262;
pub(super) const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;
const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

const ALLOW: i32 = 1;
const REJECT: i32 = 0;

/// What becomes of a call of `connect`, and why.
type Outcome = Result<Reason, Refusal>;

struct Refusal {
    reason: Reason,
    errno: i32,
}

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
    fn agent(&self) -> Result<(), Lacking> {
        with_listener(self.pod.id, ListenerKind::Outbound, |_| ())
    }
}

impl CarryFacts for Context {
    #[inline(always)]
    fn is_carried(&self, addr: &Addr) -> bool {
        is_carried(addr)
    }

    #[inline(always)]
    fn has_family_of(&self, addr: &Addr) -> bool {
        self.pod.has_family_of(addr)
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
        if service.session_seconds == 0 {
            return draw_slot(&service);
        }
        let key = SessionKey {
            pod: self.pod,
            dialled: *dialled,
        };
        // SAFETY: the helper takes no argument.
        let now = unsafe { bpf_ktime_get_ns() };
        if let Some(target) = kept(&key, &service, now) {
            return Some(target);
        }
        let drawn = draw_slot(&service)?;
        // Without room the next connection is drawn anew; of two that are opened at once the later
        // one's endpoint is kept.
        let _kept = SESSIONS
            .insert(&key, Session::new(drawn.endpoint, now), 0)
            .is_ok();
        Some(drawn)
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

    #[inline(always)]
    fn led(&self, waypoint: &Target) -> DirectVerdict {
        let family = if waypoint.endpoint.addr.is_v4() { 4 } else { 6 };
        if !is_listening(waypoint.pod, waypoint.endpoint.port, family) {
            return DirectVerdict::Agent;
        }
        verdict_led(self.pod, waypoint.pod)
    }
}

/// Draws an endpoint by weight.
#[inline(always)]
fn draw_slot(service: &Service) -> Option<Target> {
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

/// The endpoint that the client keeps, as long as it is one of the service.
#[inline(always)]
fn kept(key: &SessionKey, service: &Service, now: u64) -> Option<Target> {
    let session = SESSIONS.get_ptr_mut(key)?;
    // SAFETY: the kernel gave a pointer to an element, which is copied out. Should it become another
    // client's meanwhile, the endpoint still has to be one of the service.
    let endpoint = unsafe {
        if !(*session).is_kept(now, service.session_seconds) {
            return None;
        }
        (*session).endpoint
    };
    let member = MemberKey {
        service: service.id,
        endpoint,
    };
    // SAFETY: the value is copied out at once; it is one word.
    let pod = unsafe { MEMBERS.get(&member) }.copied()?;
    // SAFETY: as above; one aligned word is written.
    unsafe { (*session).used = now };
    Some(Target { endpoint, pod })
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
    let dialled = log::IS_ON.then(|| dialled(raw, destination));
    let (verdict, reason) = match outcome(raw, &pod, destination, rewrite) {
        Ok(reason) => (ALLOW, reason),
        Err(Refusal { reason, errno }) => {
            // SAFETY: the helper takes a value only. If it fails, the kernel answers EPERM: refused as well.
            unsafe { bpf_set_retval(-errno) };
            (REJECT, reason)
        }
    };
    count(reason);
    if let Some(Endpoint { addr, port, .. }) = dialled {
        log::decided(Hook::Connect, pod.id, reason, &addr, port);
    }
    verdict
}

#[inline(always)]
fn outcome(
    raw: *mut bpf_sock_addr,
    pod: &Pod,
    destination: &Addr,
    rewrite: impl FnOnce(&Addr),
) -> Outcome {
    // A socket that cannot be marked would bypass the agent: refuse.
    match decide(
        PodState::from_raw(pod.state),
        destination,
        &Context { pod: *pod },
    ) {
        Verdict::Pass(reason) => {
            if matches!(reason, Reason::OutboundByAgent) && !by_agent(raw, pod, destination) {
                return refuse(Reason::OutboundMarkFailed);
            }
            Ok(reason)
        }
        Verdict::Refuse(reason) => refuse(reason),
        Verdict::Capture if is_set(DIRECT) => capture_or_direct(raw, pod, destination, rewrite),
        Verdict::Capture => capture_or_leave(raw, pod, &dialled(raw, destination)),
    }
}

/// What the application dials.
#[inline(always)]
fn dialled(raw: *mut bpf_sock_addr, destination: &Addr) -> Endpoint {
    // SAFETY: as in `connect4`.
    let port = u16::from_be(unsafe { (&raw const (*raw).user_port).read_volatile() } as u16);
    Endpoint::new(*destination, port)
}

#[inline(always)]
fn capture_or_direct(
    raw: *mut bpf_sock_addr,
    pod: &Pod,
    destination: &Addr,
    rewrite: impl FnOnce(&Addr),
) -> Outcome {
    let dialled = dialled(raw, destination);
    match choose(pod.id, &dialled, &DirectFacts { pod: pod.id }) {
        Path::Agent { drawn: true } if !pod.has_family_of(&dialled.addr) => {
            answer(Reason::OutboundNoFamily, ENETUNREACH)
        }
        Path::Agent { drawn: true } => capture(raw, APP_MARK | DRAWN),
        Path::Agent { drawn: false } => capture_or_leave(raw, pod, &dialled),
        Path::ToSelf(endpoint) => {
            if !remember(raw, pod.id, pod.id, &dialled) || !unmark(raw) {
                return refuse(Reason::OutboundDirectFailed);
            }
            redirect(raw, &endpoint, rewrite);
            Ok(Reason::OutboundOwnAddress)
        }
        // Who ends one path of a multipath connection does not end the connection: the agent carries it, so
        // that it becomes one of plain TCP, which policy can end.
        Path::Direct(_) if is_multipath(raw) => capture(raw, APP_MARK),
        Path::Direct(target) => {
            if !remember(raw, pod.id, target.pod, &dialled) || !unmark(raw) || !unbind(raw) {
                return refuse(Reason::OutboundDirectFailed);
            }
            prefer_cubic(raw, pod);
            redirect(raw, &target.endpoint, rewrite);
            Ok(Reason::OutboundDirect)
        }
        Path::Deny(target) => {
            deny(pod.id, &target, &dialled);
            refuse(Reason::OutboundDenied)
        }
    }
}

/// Whatever cannot be prepared is refused: an earlier mark would lead the connection to the agent.
#[inline(always)]
fn capture_or_leave(raw: *mut bpf_sock_addr, pod: &Pod, dialled: &Endpoint) -> Outcome {
    match carry(&dialled.addr, &Context { pod: *pod }) {
        Carry::Agent => capture(raw, APP_MARK),
        Carry::Native => {
            if !unmark(raw) {
                return refuse(Reason::OutboundMarkFailed);
            }
            // What nobody is told of is no reason to refuse.
            if !remember(raw, pod.id, NOBODY, dialled) {
                count(Reason::EventLost);
            }
            Ok(Reason::OutboundNative)
        }
        Carry::Unreachable => answer(Reason::OutboundNoFamily, ENETUNREACH),
    }
}

/// Takes away the mark of an earlier attempt of the same socket.
#[inline(always)]
fn unmark(raw: *mut bpf_sock_addr) -> bool {
    // SAFETY: as in `connect4`; the context's socket is valid during the hook.
    let mark = unsafe {
        let socket = (&raw const (*raw).__bindgen_anon_1.sk).read_volatile();
        if socket.is_null() {
            return false;
        }
        (&raw const (*socket).mark).read_volatile()
    };
    mark & APP_MARK_MASK != APP_MARK || set(raw, SO_MARK, 0)
}

#[inline(always)]
fn capture(raw: *mut bpf_sock_addr, mark: u32) -> Outcome {
    // `SO_BINDTODEVICE` would keep the connection off `lo`.
    if set(raw, SO_MARK, mark) && unbind(raw) {
        return Ok(Reason::OutboundCaptured);
    }
    refuse(Reason::OutboundMarkFailed)
}

/// Marks an agent's connection, so that nobody takes it for one that was never decided about, or has its leg
/// to a server that is bound to an interface noted.
#[inline(always)]
fn by_agent(raw: *mut bpf_sock_addr, pod: &Pod, destination: &Addr) -> bool {
    const NOTED: u32 = APP_MARK | LEG;
    match mark(raw) {
        0 => set(raw, SO_MARK, AGENT_MARK),
        NOTED => {
            // SAFETY: as in `connect4`.
            let port =
                u16::from_be(unsafe { (&raw const (*raw).user_port).read_volatile() } as u16);
            let leg = Endpoint::new(*destination, port);
            remember(raw, LEG_SOURCE, pod.id, &leg)
        }
        _ => true,
    }
}

/// Whether the socket is a subflow of a multipath connection.
#[inline(always)]
fn is_multipath(raw: *mut bpf_sock_addr) -> bool {
    // SAFETY: the context's socket is valid during the hook; only whether there is a result is looked at.
    let whole = unsafe { bpf_skc_to_mptcp_sock(socket_of(raw)) };
    !whole.is_null()
}

/// The socket's mark.
#[inline(always)]
fn mark(raw: *mut bpf_sock_addr) -> u32 {
    // SAFETY: as in `connect4`; the context's socket is valid during the hook.
    unsafe {
        let socket = (&raw const (*raw).__bindgen_anon_1.sk).read_volatile();
        if socket.is_null() {
            return 0;
        }
        (&raw const (*socket).mark).read_volatile()
    }
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
    maps::deny(&Event {
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
fn refuse(reason: Reason) -> Outcome {
    answer(reason, ECONNREFUSED)
}

/// `connect` fails with `errno`.
#[inline(always)]
fn answer(reason: Reason, errno: i32) -> Outcome {
    Err(Refusal { reason, errno })
}
