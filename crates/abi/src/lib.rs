//! What the kernel half and the node agent agree on: map names, keys, values, modes and reasons.
//!
//! Every type is `repr(C)` with fixed-width fields and spelled-out padding; its size and offsets are
//! asserted here. A change to any of them, or to a map's name, type or meaning, bumps
//! [`ABI_VERSION`], which names the directory that programs, links and maps are pinned under, so that
//! two agents with different ideas never share a map. This crate decides nothing.
#![no_std]

mod address;
mod config;
mod direct;
mod flow;
mod heartbeat;
mod held;
mod listener;
mod pod;
mod reason;
mod shared;
mod waits;
mod wall;

pub use address::Addr;
pub use config::{DIRECT, NATIVE, NodeConfig};
pub use direct::{
    ANY_PORT, DENIAL_WINDOW_NS, DENIALS_TOLD, Denial, DirectFlow, DirectSocket, DirectVerdict,
    Endpoint, Event, EventKind, LED, LEG_SOURCE, MemberKey, NOBODY, Service, Session, SessionKey,
    Slot, SlotKey, Target, VerdictKey, WAYPOINT_PORTS, is_waypoint_port,
};
pub use flow::Flow;
pub use heartbeat::{BEAT_PARTS, BEAT_WINDOW_NS, MAX_WORKERS, beat_index};
pub use held::{HELD_WINDOW_NS, Held, HeldKey, HeldState, PUT_BACK, SYN_BYTES, Syn};
pub use listener::{ListenerKey, ListenerKind};
pub use pod::{
    EVENT_WINDOW_NS, EVENTS_PER_WINDOW, FAMILY_V4, FAMILY_V6, InboundMode, LISTENER_CLOSED,
    LISTENER_OPENED, OWN_ADDRESS, OWNED_ADDRESS, Pod, PodAddr, PodState, PortKey, SYN_WINDOW_NS,
    SYNS_PER_WINDOW, Share, listeners, sockets,
};
pub use reason::Reason;
pub use shared::Shared;
pub use waits::Waits;
pub use wall::Wall;

/// Version of the contract. Part of the pin directory's name.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-layout") {
    1001
} else {
    6
};

/// `SO_MARK` of an application socket whose connection is captured, and of the agent's own legs
/// towards the application. Compared by the routing rule of the pod's namespace. Marks do not
/// leave a network namespace, so users of the same bits on the node are not concerned.
pub const APP_MARK: u32 = 0x4b45_4c00;

/// The bits of [`APP_MARK`] that the routing rule compares; the others carry flags.
pub const APP_MARK_MASK: u32 = 0xffff_ff00;

/// Flag in the mark of a captured connection: an endpoint was drawn in the kernel, and it is none
/// that talks directly. The agent draws among the others, so that all keep their shares.
pub const DRAWN: u32 = 1;

/// Flag in the mark of an agent's leg to a server that is bound to an interface: the leg does not arrive on
/// `lo` and is noted in `FLOWS`, with [`LEG_SOURCE`].
pub const LEG: u32 = 2;

/// `SO_MARK` of connections that an agent makes inside a pod, and of those that it accepts from outside.
/// No rule looks for it: it only tells them from the pod's own.
pub const AGENT_MARK: u32 = 0x4b45_4d00;

/// Whether a mark says that the mesh has decided about the socket's connection: it is carried, or an
/// agent's own.
#[inline(always)]
#[must_use]
pub const fn is_decided(mark: u32) -> bool {
    let base = mark & APP_MARK_MASK;
    base == APP_MARK || base == AGENT_MARK
}

/// Port on which every captured pod receives HBONE. Fixed by Istio's wire contract.
pub const HBONE_PORT: u16 = 15008;

/// Interface index of `lo`, the same in every network namespace.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// How long after its SYN a kubelet probe is still recognised, in nanoseconds. Covers the SYN and
/// two retransmissions of it (1 s and 2 s later); a source port is not reused that soon.
pub const PROBE_WINDOW_NS: u64 = 4_000_000_000;

/// How long after its first SYN a direct connection that nobody has accepted is still recognised, in
/// nanoseconds. Covers every retransmission that the kernel sends by default (`tcp_syn_retries` 6:
/// 127 s): a server with a full queue takes a later one. A note ends with the client's socket, so this
/// counts only where that was missed.
pub const FLOW_WINDOW_NS: u64 = 130_000_000_000;

/// How long after a pod's datagram its answers are let in, in nanoseconds: as long as the kernel's own tracking of
/// connections keeps a stream of datagrams (`nf_conntrack_udp_timeout_stream`).
pub const ANSWER_WINDOW_NS: u64 = 120_000_000_000;

/// Names of the pinned maps, as declared in the kernel half.
pub mod maps {
    /// `u64` network namespace cookie -> [`crate::Pod`].
    pub const PODS: &str = "PODS";
    /// [`crate::PodAddr`] -> `u32` flags ([`crate::OWN_ADDRESS`], [`crate::OWNED_ADDRESS`]).
    pub const POD_ADDRS: &str = "POD_ADDRS";
    /// [`crate::PortKey`] -> `i64` number of listening sockets (a double word: BPF adds atomically). Nobody
    /// listens where it is not positive; such an entry is the agent's to remove.
    pub const LISTENING: &str = "LISTENING";
    /// `u32` pod id -> [`crate::Share`].
    pub const SHARES: &str = "SHARES";
    /// `u32` pod id -> `u32` [`crate::InboundMode`].
    pub const INBOUND: &str = "INBOUND";
    /// [`crate::ListenerKey`] -> listening socket of a live agent (socket hash).
    pub const LISTENERS: &str = "LISTENERS";
    /// [`crate::beat_index`] -> `u64` when the worker was alive last, in ns of `CLOCK_MONOTONIC`, which is
    /// the clock of `bpf_ktime_get_ns` (array, mapped by agents).
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// `u64` cgroup id of an agent -> `u32` 1.
    pub const AGENTS: &str = "AGENTS";
    /// [`crate::Flow`] -> `u64` time of the SYN in ns since boot (`bpf_ktime_get_ns`).
    pub const PROBES: &str = "PROBES";
    /// [`crate::PortKey`] without family -> `u32` 1: a port that the pod's own probes declare.
    pub const PROBE_PORTS: &str = "PROBE_PORTS";
    /// [`crate::Endpoint`] of a service -> [`crate::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// [`crate::SlotKey`] -> [`crate::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// [`crate::MemberKey`] of a service with session affinity -> `u32` as [`crate::Target::pod`].
    pub const MEMBERS: &str = "MEMBERS";
    /// [`crate::SessionKey`] -> [`crate::Session`].
    pub const SESSIONS: &str = "SESSIONS";
    /// [`crate::Addr`] of a pod of this node -> `u32` id of the captured pod that has it, or 0 for a
    /// pod outside the mesh.
    pub const LOCAL_PODS: &str = "LOCAL_PODS";
    /// [`crate::VerdictKey`] -> `u32` [`crate::DirectVerdict`].
    pub const VERDICTS: &str = "VERDICTS";
    /// [`crate::Addr`] of a destination that may have to be carried -> `u32` 1.
    pub const CARRIED: &str = "CARRIED";
    /// Ranges of such destinations -> `u32` 1: longest prefixes of [`crate::Addr`], so that the prefix of
    /// an IPv4 range is 96 bits longer.
    pub const CARRIED_RANGES: &str = "CARRIED_RANGES";
    /// Storage of a client's socket: [`crate::DirectSocket`].
    pub const SOCKETS: &str = "SOCKETS";
    /// [`crate::Flow`] -> [`crate::DirectFlow`].
    pub const FLOWS: &str = "FLOWS";
    /// [`crate::Flow`] of a captured pod's plain connection that is older than its capture, the pod's end as
    /// source -> `u32` pod id.
    pub const OLDER_FLOWS: &str = "OLDER_FLOWS";
    /// [`crate::Addr`] that is captured on another node, or is a service's -> `u32` [`crate::Wall`].
    pub const WALLED_ADDRS: &str = "WALLED_ADDRS";
    /// `u32` pod id -> `u32` [`crate::Wall`].
    pub const WALLED_PODS: &str = "WALLED_PODS";
    /// [`crate::Flow`] of a captured pod's plain connection that is older than the wall, the pod's end as
    /// source -> `u32` pod id.
    pub const PLAIN_FLOWS: &str = "PLAIN_FLOWS";
    /// `u32` id of a pod that is reached by a waypoint only -> `u32` 1.
    pub const WAYPOINT_ONLY: &str = "WAYPOINT_ONLY";
    /// [`crate::Flow`] of a datagram that such a pod has sent, the pod's end as source -> `u64` when, in ns since boot
    /// (the least recently used make room).
    pub const ASKED: &str = "ASKED";
    /// [`crate::VerdictKey`] of a refusal in `VERDICTS` -> [`crate::Denial`].
    pub const DENIALS: &str = "DENIALS";
    /// Ring of [`crate::Event`]: a few of the refused connections.
    pub const DENIED: &str = "DENIED";
    /// Ring of [`crate::Event`]: opened and closed connections.
    pub const EVENTS: &str = "EVENTS";
    /// [`crate::HeldKey`] -> [`crate::Held`].
    pub const HELD: &str = "HELD";
    /// Events of [`crate::Syn`] with the packet behind it, by processor (perf event array).
    pub const SYNS: &str = "SYNS";
    /// [`crate::Flow`] of a carried connection, the application's end as source -> [`crate::Waits`] (the
    /// least recently used make room). Each change is counted as [`crate::Reason::WaitsNoted`].
    pub const WAITS: &str = "WAITS";
    /// `u32` [`crate::Shared`] -> program of the agent in charge that the entries of all pods call (program array).
    pub const SHARED: &str = "SHARED";
    /// `u32` 0 -> [`crate::NodeConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// `u32` [`crate::Reason`] -> `u64` count, per CPU.
    pub const COUNTERS: &str = "COUNTERS";
}
