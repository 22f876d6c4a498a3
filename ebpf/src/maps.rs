//! The maps, the only place that declares them. Names, keys and values: crate `abi`.
//!
//! Sizes here are defaults; the node agent sets them from its configuration when it loads.

#![expect(
    unsafe_code,
    reason = "reading a map is a raw kernel call; wrapped here, once"
)]

use abi::{
    Addr, DirectFlow, DirectSocket, DirectVerdict, Endpoint, Event, Flow, ListenerKey, NodeConfig,
    Pod, PodAddr, PortKey, Reason, Service, Slot, SlotKey, VerdictKey,
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockHash},
};

#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static POD_ADDRS: HashMap<PodAddr, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENING: HashMap<PortKey, u64> = HashMap::pinned(16384, BPF_F_NO_PREALLOC);
#[map]
pub static INBOUND: HashMap<u32, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(16384, 0);
#[map]
pub static AGENTS: HashMap<u64, u32> = HashMap::pinned(64, 0);
#[map]
pub static PROBES: LruHashMap<Flow, u64> = LruHashMap::pinned(4096, 0);
#[map]
pub static SERVICES: HashMap<Endpoint, Service> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static SLOTS: HashMap<SlotKey, Slot> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);
#[map]
pub static LOCAL_PODS: HashMap<Addr, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static VERDICTS: HashMap<VerdictKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[btf_map]
pub static SOCKETS: SkStorage<DirectSocket> = SkStorage::new();
#[map]
pub static FLOWS: LruHashMap<Flow, DirectFlow> = LruHashMap::pinned(65536, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);
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

/// What policy says of a connection between two captured pods of this node.
#[inline(always)]
pub fn verdict(source: u32, destination: u32, port: u16) -> DirectVerdict {
    let mut key = VerdictKey {
        source,
        destination,
        port,
        reserved: 0,
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

/// Whether a setting of the node is on.
#[inline(always)]
pub fn is_set(flag: u32) -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & flag != 0)
}

/// Hands an event to the agent, which looks from time to time; it is not woken.
#[inline(always)]
pub fn tell(event: &Event) {
    const NO_WAKEUP: u64 = 1;
    if EVENTS.output::<Event>(event, NO_WAKEUP).is_err() {
        count(Reason::EventLost);
    }
}
