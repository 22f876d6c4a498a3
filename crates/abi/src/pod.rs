//! What the hooks know of a pod, and how they find it.

use crate::Addr;

/// What the outbound hooks know of a pod, found by the cookie of its network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Pod {
    /// Moves the other fields, for the test of that feature.
    #[cfg(feature = "next-layout")]
    pub moved: [u32; 4],
    /// The agent's number for the pod on this node; never reused while maps live.
    pub id: u32,
    /// A [`PodState`] as a number; anything unknown is read as [`PodState::Pending`].
    pub state: u32,
    /// First eight bytes of the name of the namespace's default congestion control, zero padded.
    pub congestion: [u8; 8],
    /// Of which families the pod has addresses: [`FAMILY_V4`], [`FAMILY_V6`].
    pub families: u32,
}

#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<Pod>() == 20 && align_of::<Pod>() == 4);

/// In [`Pod::families`]: the pod has an IPv4 address.
pub const FAMILY_V4: u32 = 1;
/// In [`Pod::families`]: the pod has an IPv6 address that is not link-local.
pub const FAMILY_V6: u32 = 2;

impl Pod {
    /// A pod with this number, state, default congestion control and families of addresses.
    #[must_use]
    pub const fn new(id: u32, state: PodState, congestion: [u8; 8], families: u32) -> Self {
        Self {
            #[cfg(feature = "next-layout")]
            moved: [u32::MAX; 4],
            id,
            state: state as u32,
            congestion,
            families,
        }
    }

    /// Whether the pod has an address of the family of `addr`.
    #[inline(always)]
    #[must_use]
    pub const fn has_family_of(&self, addr: &Addr) -> bool {
        let family = if addr.is_v4() { FAMILY_V4 } else { FAMILY_V6 };
        self.families & family != 0
    }
}

/// Where a pod stands with capture. A namespace without an entry is not this agent's concern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum PodState {
    /// The pod belongs to the mesh and capture is not complete: its connections are refused.
    Pending = 1,
    /// Captured: connections go to the agent or are refused.
    Captured = 2,
    /// Known, nothing is captured.
    Exempt = 3,
    /// On its way from exempt to captured: listening ports are tracked already, nothing is captured yet.
    Joining = 4,
}

impl PodState {
    /// Reads a state from a map. Unknown numbers mean [`PodState::Pending`]: refuse.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            2 => Self::Captured,
            3 => Self::Exempt,
            4 => Self::Joining,
            _ => Self::Pending,
        }
    }
}

/// What `sk_lookup` does with plaintext connections from outside the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum InboundMode {
    /// Every connection goes to the agent.
    Capture = 1,
    /// The pod is leaving the mesh: plaintext goes to the application, tunnels still end at the agent.
    Release = 2,
}

/// Key of `POD_ADDRS`: one address of one pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PodAddr {
    /// [`Pod::id`].
    pub pod: u32,
    /// The address.
    pub addr: Addr,
}

const _: () = assert!(size_of::<PodAddr>() == 20 && align_of::<PodAddr>() == 4);

/// Flag of a `POD_ADDRS` value: seen on an interface in the pod's namespace.
pub const OWN_ADDRESS: u32 = 1;
/// Flag of a `POD_ADDRS` value: given to the pod by the cluster, so it may be a source address.
pub const OWNED_ADDRESS: u32 = 2;

/// Key of `LISTENING`: a port on which a pod's application listens beyond loopback. Key of `PROBE_PORTS`:
/// a port on which the pod is probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortKey {
    /// [`Pod::id`].
    pub pod: u32,
    /// Port, host byte order.
    pub port: u16,
    /// 4 or 6; a socket of family 6 bound to `::` counts under both. 0 in `PROBE_PORTS`.
    pub family: u16,
}

const _: () = assert!(size_of::<PortKey>() == 8 && align_of::<PortKey>() == 4);

/// Added to a value of `LISTENING` when a socket begins to listen. The value's low half is the number of sockets; its
/// high half changes with every addition, so that a value that is the same twice was not counted in meanwhile.
pub const LISTENER_OPENED: u64 = (1 << 32) + 1;
/// As [`LISTENER_OPENED`], when a socket stops listening.
pub const LISTENER_CLOSED: u64 = (1 << 32) - 1;

/// How many sockets a value of `LISTENING` counts; less than none where some opened uncounted.
#[must_use]
pub const fn sockets(value: u64) -> i32 {
    value as i32
}

/// A value of `LISTENING` that counts `sockets` and differs from `earlier`.
#[must_use]
pub const fn listeners(earlier: u64, sockets: i32) -> u64 {
    ((earlier >> 32).wrapping_add(1) << 32) | sockets as u32 as u64
}

/// Value of `SHARES`: what a pod uses of what the pods of a node have in common. Double words: BPF adds
/// atomically.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Share {
    /// Entries of the pod in `LISTENING`.
    pub ports: u64,
    /// Listeners for which there was no entry, since the agent looked last.
    pub ports_lost: u64,
    /// Number of the time window that `events` counts in: ns since boot, divided by [`EVENT_WINDOW_NS`].
    pub window: u64,
    /// Events of the pod in this window while the ring was filling up.
    pub events: u64,
    /// As `window`, for `syns`: ns since boot, divided by [`SYN_WINDOW_NS`].
    pub syn_window: u64,
    /// SYNs of the pod that the agent was told of in this window.
    pub syns: u64,
}

const _: () = assert!(size_of::<Share>() == 48 && align_of::<Share>() == 8);

/// Length of the time in which a pod has its share of `EVENTS`. The agent empties the ring as often.
pub const EVENT_WINDOW_NS: u64 = 100_000_000;
/// Events that a pod may add in that time to a ring that is half full.
pub const EVENTS_PER_WINDOW: u64 = 256;
/// Length of the time in which a pod has its share of `SYNS`.
pub const SYN_WINDOW_NS: u64 = 20_000_000;
/// SYNs of a pod that the agent is told of in that time; what is beyond is dropped and sent again by its client, as where
/// a listener's queue is full.
pub const SYNS_PER_WINDOW: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::PodState;

    #[test]
    fn an_unknown_state_refuses() {
        for raw in [0, 1, 5, u32::MAX] {
            assert_eq!(PodState::from_raw(raw), PodState::Pending, "{raw}");
        }
        assert_eq!(
            PodState::from_raw(PodState::Captured as u32),
            PodState::Captured
        );
        assert_eq!(
            PodState::from_raw(PodState::Exempt as u32),
            PodState::Exempt
        );
    }
}
