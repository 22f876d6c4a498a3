//! What is known of a connection that a captured pod opens, while the agent opens its other half.
//!
//! Its SYN is held: it waits with the agent until the far side has answered.

use crate::Flow;

/// Flag in the mark of a SYN that the agent has put back, so that it is not held again.
pub const PUT_BACK: u32 = 4;

/// How much of a packet an agent is shown at most, from its Ethernet header on: IP and TCP headers of any length.
pub const SYN_BYTES: u32 = 14 + 60 + 60;

/// Key of `HELD`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct HeldKey {
    /// [`crate::Pod::id`] of the client.
    pub pod: u32,
    /// The connection, as the client sees it.
    pub flow: Flow,
}

const _: () = assert!(size_of::<HeldKey>() == 40 && align_of::<HeldKey>() == 4);

/// Value of `HELD`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Held {
    /// The initial sequence number, by which one attempt is told from the next with the same ports.
    pub isn: u32,
    /// A [`HeldState`] as a number.
    pub state: u32,
    /// The worker that opens the other half, and takes the connection.
    pub worker: u32,
    /// [`crate::NodeConfig::generation`] when it was held.
    pub generation: u32,
    /// When that was, in ns (`bpf_ktime_get_ns`).
    pub since: u64,
}

const _: () = assert!(size_of::<Held>() == 24 && align_of::<Held>() == 8);

/// How long a SYN is held, in nanoseconds, before its repetition is held anew: whoever had it has lost it. Longer than an
/// agent takes to open a connection.
pub const HELD_WINDOW_NS: u64 = 40_000_000_000;

/// Where the opening of a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum HeldState {
    /// The agent has the SYN.
    Opening = 1,
    /// The SYN has been put back.
    Open = 2,
}

/// What comes before the packet in an event of `SYNS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Syn {
    /// [`crate::Pod::id`] of the client.
    pub pod: u32,
    /// The packet's mark.
    pub mark: u32,
    /// Bytes of the packet that follow.
    pub length: u32,
    /// Where in the packet its TCP header is.
    pub tcp: u32,
    /// [`Held::generation`].
    pub generation: u32,
}

const _: () = assert!(size_of::<Syn>() == 20 && align_of::<Syn>() == 4);
