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
}

#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<Pod>() == 16 && align_of::<Pod>() == 4);

impl Pod {
    /// A pod with this number, state and default congestion control.
    #[must_use]
    pub const fn new(id: u32, state: PodState, congestion: [u8; 8]) -> Self {
        Self {
            #[cfg(feature = "next-layout")]
            moved: [u32::MAX; 4],
            id,
            state: state as u32,
            congestion,
        }
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
    /// Known, listening ports are tracked, nothing is captured.
    Exempt = 3,
}

impl PodState {
    /// Reads a state from a map. Unknown numbers mean [`PodState::Pending`]: refuse.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            2 => Self::Captured,
            3 => Self::Exempt,
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

/// Key of `LISTENING`: a port on which a pod's application listens beyond loopback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortKey {
    /// [`Pod::id`].
    pub pod: u32,
    /// Port, host byte order.
    pub port: u16,
    /// 4 or 6; a socket of family 6 bound to `::` counts under both.
    pub family: u16,
}

const _: () = assert!(size_of::<PortKey>() == 8 && align_of::<PortKey>() == 4);

#[cfg(test)]
mod tests {
    use super::PodState;

    #[test]
    fn an_unknown_state_refuses() {
        for raw in [0, 1, 4, u32::MAX] {
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
