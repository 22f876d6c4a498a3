//! The maps, the only place that declares them. Names, keys and values: crate `abi`.
//!
//! Sizes here are defaults; the node agent sets them from its configuration when it loads.

#![expect(
    unsafe_code,
    reason = "reading a map is a raw kernel call; wrapped here, once"
)]

use abi::{
    Addr, BEAT_PARTS, DENIAL_WINDOW_NS, DENIALS_TOLD, Denial, DirectFlow, DirectSocket,
    DirectVerdict, EVENT_WINDOW_NS, EVENTS_PER_WINDOW, Endpoint, Event, Flow, Held, HeldKey,
    ListenerKey, MAX_WORKERS, MemberKey, NATIVE, NodeConfig, Pod, PodAddr, PortKey, Reason,
    SYN_WINDOW_NS, SYNS_PER_WINDOW, Service, Session, SessionKey, Share, Shared, Slot, SlotKey,
    Syn, VerdictKey, Waits, sockets,
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::SkStorage,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, map},
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerfEventArray, ProgramArray, RingBuf,
        SockHash, lpm_trie::Key,
    },
};

#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static POD_ADDRS: HashMap<PodAddr, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENING: HashMap<PortKey, u64> = HashMap::pinned(16384, BPF_F_NO_PREALLOC);
#[map]
pub static SHARES: HashMap<u32, Share> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static INBOUND: HashMap<u32, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(16384, 0);
#[map]
pub static HEARTBEAT: Array<u64> = Array::pinned(BEAT_PARTS * MAX_WORKERS, BPF_F_MMAPABLE);
#[map]
pub static AGENTS: HashMap<u64, u32> = HashMap::pinned(64, 0);
#[map]
pub static PROBES: LruHashMap<Flow, u64> = LruHashMap::pinned(4096, 0);
#[map]
pub static PROBE_PORTS: HashMap<PortKey, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<Endpoint, Service> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static SLOTS: HashMap<SlotKey, Slot> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
pub static SESSIONS: LruHashMap<SessionKey, Session> = LruHashMap::pinned(8192, 0);
#[map]
pub static LOCAL_PODS: HashMap<Addr, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static VERDICTS: HashMap<VerdictKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static CARRIED: HashMap<Addr, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static CARRIED_RANGES: LpmTrie<Addr, u32> = LpmTrie::pinned(16384, BPF_F_NO_PREALLOC);
#[btf_map]
pub static SOCKETS: SkStorage<DirectSocket> = SkStorage::new();
#[map]
pub static FLOWS: LruHashMap<Flow, DirectFlow> = LruHashMap::pinned(65536, 0);
#[map]
pub static OLDER_FLOWS: HashMap<Flow, u32> = HashMap::pinned(16384, BPF_F_NO_PREALLOC);
#[map]
pub static WALLED_ADDRS: HashMap<Addr, u32> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);
#[map]
pub static WALLED_PODS: HashMap<u32, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static PLAIN_FLOWS: HashMap<Flow, u32> = HashMap::pinned(16384, BPF_F_NO_PREALLOC);
#[map]
pub static WAYPOINT_ONLY: HashMap<u32, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static ASKED: LruHashMap<Flow, u64> = LruHashMap::pinned(65536, 0);
#[map]
pub static DENIALS: HashMap<VerdictKey, Denial> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static DENIED: RingBuf = RingBuf::pinned(1 << 16, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(EVENTS_SIZE, 0);
#[map]
pub static HELD: LruHashMap<HeldKey, Held> = LruHashMap::pinned(65536, 0);
#[map]
pub static SYNS: PerfEventArray<Syn> = PerfEventArray::pinned(0);
#[map]
pub static WAITS: LruHashMap<Flow, Waits> = LruHashMap::pinned(16384, 0);
#[map]
pub static SHARED: ProgramArray = ProgramArray::pinned(Shared::COUNT, 0);
#[map]
pub static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(64, 0);

/// Counts one occurrence of a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the kernel gave a pointer to this CPU's element; programs of one CPU that nest
        // can lose a count, which a counter tolerates.
        unsafe { *counter += 1 };
    }
}

/// The pod of a network namespace.
#[inline(always)]
pub fn pod(netns_cookie: u64) -> Option<Pod> {
    // SAFETY: the value is copied out at once; the agent replaces whole entries.
    unsafe { PODS.get(&netns_cookie) }.copied()
}

/// The flags of a pod's address; zero when it is not the pod's.
#[inline(always)]
pub fn address_flags(key: &PodAddr) -> u32 {
    // SAFETY: the value is copied out at once; it is one word.
    unsafe { POD_ADDRS.get(key) }.copied().unwrap_or(0)
}

/// The worker that takes connections arriving on this CPU.
#[inline(always)]
pub fn worker() -> u16 {
    let workers = CONFIG.get(0).map_or(1, |config| config.workers);
    // SAFETY: the helper takes no argument and is allowed in every program type.
    let cpu = unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() } as u32;
    if workers == 0 {
        0
    } else {
        (cpu % workers) as u16
    }
}

/// Which agent is in charge.
#[inline(always)]
pub fn generation() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.generation)
}

/// What policy says of a connection between two captured pods of this node.
#[inline(always)]
pub fn verdict(source: u32, destination: u32, port: u16) -> DirectVerdict {
    let mut key = VerdictKey {
        source,
        destination,
        port,
        way: 0,
    };
    // SAFETY: the value is copied out at once; it is one word.
    let named = unsafe { VERDICTS.get(&key) }.copied();
    if named.is_some() {
        return DirectVerdict::from_raw(named);
    }
    key.port = abi::ANY_PORT;
    // SAFETY: as above.
    DirectVerdict::from_raw(unsafe { VERDICTS.get(&key) }.copied())
}

/// Whether a pod of this node may be led to the ports of a waypoint there.
#[inline(always)]
pub fn verdict_led(source: u32, destination: u32) -> DirectVerdict {
    let key = VerdictKey {
        source,
        destination,
        port: abi::ANY_PORT,
        way: abi::LED,
    };
    // SAFETY: the value is copied out at once; it is one word.
    DirectVerdict::from_raw(unsafe { VERDICTS.get(&key) }.copied())
}

/// Whether an application of the pod listens on the port.
#[inline(always)]
pub fn is_listening(pod: u32, port: u16, family: u16) -> bool {
    let key = PortKey { pod, port, family };
    // SAFETY: the value is copied out at once; it is one word.
    sockets(unsafe { LISTENING.get(&key) }.copied().unwrap_or(0)) > 0
}

/// Whether the pod is reached by a waypoint only.
#[inline(always)]
pub fn is_waypoint_only(pod: u32) -> bool {
    // SAFETY: only the entry's presence is read.
    unsafe { WAYPOINT_ONLY.get(&pod) }.is_some()
}

/// Entries of `LISTENING` that one pod may have.
#[inline(always)]
pub fn ports_per_pod() -> u64 {
    CONFIG
        .get(0)
        .map_or(0, |config| u64::from(config.ports_per_pod))
}

/// Whether a setting of the node is on.
#[inline(always)]
pub fn is_set(flag: u32) -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & flag != 0)
}

/// Whether a destination may have to be carried.
#[inline(always)]
pub fn is_carried(addr: &Addr) -> bool {
    const ADDRESS_BITS: u32 = 128;
    // SAFETY: only the entry's presence is read.
    !is_set(NATIVE)
        || unsafe { CARRIED.get(addr) }.is_some()
        || CARRIED_RANGES.get(Key::new(ADDRESS_BITS, *addr)).is_some()
}

/// Hands an event to the agent, which looks from time to time; it is not woken. Where the ring fills up,
/// each pod has a share of what is left.
#[inline(always)]
pub fn tell(event: &Event) {
    let is_told = (has_room() || has_share(event.source)) && output(&EVENTS, event);
    if !is_told {
        count(Reason::EventLost);
    }
}

/// Counts a connection that was refused by the verdict of two pods, and tells of it unless many are told of.
#[inline(always)]
pub fn deny(event: &Event) {
    let mut key = VerdictKey {
        source: event.source,
        destination: event.destination,
        port: event.flow.destination_port,
        way: 0,
    };
    let mut denial = DENIALS.get_ptr_mut(&key);
    if denial.is_none() {
        key.port = abi::ANY_PORT;
        denial = DENIALS.get_ptr_mut(&key);
    }
    let Some(denial) = denial else {
        return count(Reason::DenialLost);
    };
    // SAFETY: the kernel gave a pointer to a live element; the address of a field is taken.
    add(unsafe { &raw mut (*denial).count }, 1);
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the element is live. Processors that come together here may tell of one more than they should.
    let told = unsafe {
        if now.wrapping_sub((*denial).since) >= DENIAL_WINDOW_NS {
            (*denial).since = now;
            (*denial).told = 0;
        }
        (*denial).told
    };
    if told >= DENIALS_TOLD {
        return;
    }
    if output(&DENIED, event) {
        // SAFETY: as above.
        unsafe { (*denial).told = told + 1 };
    } else {
        count(Reason::DenialLost);
    }
}

#[inline(always)]
fn output(ring: &RingBuf, event: &Event) -> bool {
    const NO_WAKEUP: u64 = 1;
    ring.output::<Event>(event, NO_WAKEUP).is_ok()
}

/// Whether the ring of events is less than half full.
#[inline(always)]
fn has_room() -> bool {
    const AVAILABLE_DATA: u64 = 0;
    EVENTS.query(AVAILABLE_DATA) < EVENTS_SIZE as u64 / 2
}

/// Whether the pod may add an event to a ring that is filling up.
#[inline(always)]
fn has_share(pod: u32) -> bool {
    let Some(share) = share(pod) else {
        return false;
    };
    // SAFETY: the helper takes no argument.
    let window = unsafe { bpf_ktime_get_ns() } / EVENT_WINDOW_NS;
    // SAFETY: the kernel gave a pointer to a live element. Processors that come together here may add one
    // more than they should.
    unsafe {
        if (*share).window != window {
            (*share).window = window;
            (*share).events = 0;
        }
        (*share).events += 1;
        (*share).events <= EVENTS_PER_WINDOW
    }
}

/// Whether the agent may be told of another SYN of the pod: what it has not looked at yet is the room of all pods.
#[inline(always)]
pub fn may_tell_syn(pod: u32) -> bool {
    let Some(share) = share(pod) else {
        return false;
    };
    // SAFETY: the helper takes no argument.
    let window = unsafe { bpf_ktime_get_ns() } / SYN_WINDOW_NS;
    // SAFETY: as in `has_share`.
    unsafe {
        if (*share).syn_window != window {
            (*share).syn_window = window;
            (*share).syns = 0;
        }
        (*share).syns += 1;
        (*share).syns <= SYNS_PER_WINDOW
    }
}

/// What a pod uses of what pods have in common.
#[inline(always)]
pub fn share(pod: u32) -> Option<*mut Share> {
    SHARES.get_ptr_mut(&pod).or_else(|| {
        let none = Share {
            ports: 0,
            ports_lost: 0,
            window: 0,
            events: 0,
            syn_window: 0,
            syns: 0,
        };
        // Another processor may be faster, which is as good.
        let _made = SHARES.insert(&pod, none, BPF_NOEXIST).is_ok();
        SHARES.get_ptr_mut(&pod)
    })
}

/// Adds to an element atomically. `core::sync::atomic` has no addition for this target, whose
/// instruction set has one (`lock *(u64 *) += src`).
#[inline(always)]
pub fn add(element: *mut u64, value: u64) {
    // SAFETY: the kernel gave a pointer to an aligned, live element of the map.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            element, value,
        );
    }
}

/// Size of the ring of events in bytes.
const EVENTS_SIZE: u32 = 1 << 20;
/// `BPF_NOEXIST`: only where there is no element yet.
pub const BPF_NOEXIST: u64 = 1;
