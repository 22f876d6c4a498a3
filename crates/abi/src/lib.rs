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
mod listener;
mod pod;
mod reason;

pub use address::Addr;
pub use config::{DIRECT, NodeConfig};
pub use direct::{
    ANY_PORT, DirectFlow, DirectSocket, DirectVerdict, Endpoint, Event, EventKind, Service, Slot,
    SlotKey, Target, VerdictKey,
};
pub use flow::Flow;
pub use listener::{ListenerKey, ListenerKind};
pub use pod::{InboundMode, OWN_ADDRESS, OWNED_ADDRESS, Pod, PodAddr, PodState, PortKey};
pub use reason::Reason;

/// Version of the contract. Part of the pin directory's name.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-layout") {
    1001
} else {
    1
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

/// Names of the pinned maps, as declared in the kernel half.
pub mod maps {
    /// `u64` network namespace cookie -> [`crate::Pod`].
    pub const PODS: &str = "PODS";
    /// [`crate::PodAddr`] -> `u32` flags ([`crate::OWN_ADDRESS`], [`crate::OWNED_ADDRESS`]).
    pub const POD_ADDRS: &str = "POD_ADDRS";
    /// [`crate::PortKey`] -> `u64` number of listening sockets (a double word: BPF adds atomically).
    pub const LISTENING: &str = "LISTENING";
    /// `u32` pod id -> `u32` [`crate::InboundMode`].
    pub const INBOUND: &str = "INBOUND";
    /// [`crate::ListenerKey`] -> listening socket of a live agent (socket hash).
    pub const LISTENERS: &str = "LISTENERS";
    /// `u64` cgroup id of an agent -> `u32` 1.
    pub const AGENTS: &str = "AGENTS";
    /// [`crate::Flow`] -> `u64` time of the SYN in ns since boot (`bpf_ktime_get_ns`).
    pub const PROBES: &str = "PROBES";
    /// [`crate::Endpoint`] of a service -> [`crate::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// [`crate::SlotKey`] -> [`crate::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// [`crate::Addr`] of a pod of this node -> `u32` id of the captured pod that has it, or 0 for a
    /// pod outside the mesh.
    pub const LOCAL_PODS: &str = "LOCAL_PODS";
    /// [`crate::VerdictKey`] -> `u32` [`crate::DirectVerdict`].
    pub const VERDICTS: &str = "VERDICTS";
    /// Storage of a client's socket: [`crate::DirectSocket`].
    pub const SOCKETS: &str = "SOCKETS";
    /// [`crate::Flow`] -> [`crate::DirectFlow`].
    pub const FLOWS: &str = "FLOWS";
    /// Ring of [`crate::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// `u32` 0 -> [`crate::NodeConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// `u32` [`crate::Reason`] -> `u64` count, per CPU.
    pub const COUNTERS: &str = "COUNTERS";
}
