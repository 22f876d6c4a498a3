//! The same-node path: services as the kernel draws endpoints, verdicts, and what is known of a
//! direct connection.

use crate::{Addr, Flow};

/// An address and a port, as a client dials it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);

impl Endpoint {
    /// An address and a port.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self {
            addr,
            port,
            reserved: 0,
        }
    }
}

/// Value of `SERVICES`: a service port that has an endpoint on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Service {
    /// Number of this version of the service's endpoints; part of the keys of `SLOTS`.
    pub id: u32,
    /// Slots of the version, at least one.
    pub slots: u32,
    /// For how long a client keeps its endpoint after its last connection; 0 where each is drawn anew.
    pub session_seconds: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Service>() == 16 && align_of::<Service>() == 4);

/// Key of `MEMBERS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct MemberKey {
    /// [`Service::id`].
    pub service: u32,
    /// An endpoint of that version.
    pub endpoint: Endpoint,
}

const _: () = assert!(size_of::<MemberKey>() == 24 && align_of::<MemberKey>() == 4);

/// Key of `SESSIONS`: a client and a service port with session affinity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SessionKey {
    /// [`crate::Pod::id`] of the client.
    pub pod: u32,
    /// The service port, as it is dialled.
    pub dialled: Endpoint,
}

const _: () = assert!(size_of::<SessionKey>() == 24 && align_of::<SessionKey>() == 4);

/// Value of `SESSIONS`: the endpoint that the client keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Session {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Zero.
    pub reserved: u32,
    /// When the client last opened a connection, ns since boot (`bpf_ktime_get_ns`).
    pub used: u64,
}

const _: () = assert!(size_of::<Session>() == 32 && align_of::<Session>() == 8);

impl Session {
    /// A session whose last connection is opened at `used`.
    #[inline(always)]
    #[must_use]
    pub const fn new(endpoint: Endpoint, used: u64) -> Self {
        Self {
            endpoint,
            reserved: 0,
            used,
        }
    }

    /// Whether the client still has the endpoint at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn is_kept(&self, now: u64, session_seconds: u32) -> bool {
        now.saturating_sub(self.used) < session_seconds as u64 * 1_000_000_000
    }
}

/// Key of `SLOTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SlotKey {
    /// [`Service::id`].
    pub service: u32,
    /// `0..Service::slots`.
    pub index: u32,
}

const _: () = assert!(size_of::<SlotKey>() == 8 && align_of::<SlotKey>() == 4);

/// Where a drawn connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Target {
    /// Address and port of the endpoint.
    pub endpoint: Endpoint,
    /// [`crate::Pod::id`] of a captured pod of this node, or 0: to be carried by the agent.
    pub pod: u32,
}

const _: () = assert!(size_of::<Target>() == 24 && align_of::<Target>() == 4);

/// Value of `SLOTS`: one column of an alias table (Walker 1977), so that a draw by weight over any
/// number of endpoints costs one lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Slot {
    /// A random word below this takes `below`, any other takes `above`.
    pub threshold: u32,
    /// Zero.
    pub reserved: u32,
    /// The column's own endpoint.
    pub below: Target,
    /// The endpoint that fills the column up.
    pub above: Target,
}

const _: () = assert!(size_of::<Slot>() == 56 && align_of::<Slot>() == 4);

/// Key of `VERDICTS`: may `source` connect to `port` of `destination`?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct VerdictKey {
    /// [`crate::Pod::id`] of the client.
    pub source: u32,
    /// [`crate::Pod::id`] of the server.
    pub destination: u32,
    /// A port that a policy names, or [`ANY_PORT`] for all that none names.
    pub port: u16,
    /// Zero, or [`LED`].
    pub way: u16,
}

const _: () = assert!(size_of::<VerdictKey>() == 12 && align_of::<VerdictKey>() == 4);

/// In a [`VerdictKey`]: every port without a key of its own.
pub const ANY_PORT: u16 = 0;

/// In a [`VerdictKey`], with [`ANY_PORT`]: the server is a waypoint, and a service's address leads to one of its
/// [`WAYPOINT_PORTS`]. Only who is led there gets there.
pub const LED: u16 = 1;

/// The ports on which a waypoint takes direct connections of its node's pods, one for each service and port that it serves.
/// They lie above those that Linux gives to clients (`ip_local_port_range`). No pod is reached directly at one of them in any
/// other way.
pub const WAYPOINT_PORTS: (u16, u16) = (61_440, 65_535);

/// Whether a port is one of [`WAYPOINT_PORTS`].
#[inline(always)]
#[must_use]
pub const fn is_waypoint_port(port: u16) -> bool {
    WAYPOINT_PORTS.0 <= port && port <= WAYPOINT_PORTS.1
}

/// A verdict in `VERDICTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum DirectVerdict {
    /// The sockets may talk directly.
    Allow = 1,
    /// Refused.
    Deny = 2,
    /// The kernel cannot decide: the agent carries the connection and decides.
    Agent = 3,
}

impl DirectVerdict {
    /// Reads a verdict from a map. Nothing and unknown numbers mean [`DirectVerdict::Agent`].
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: Option<u32>) -> Self {
        match raw {
            Some(1) => Self::Allow,
            Some(2) => Self::Deny,
            _ => Self::Agent,
        }
    }
}

/// Value of `DENIALS`: how many connections were refused by one verdict. The agent makes it before the
/// verdict, so that none is missed; it is told of a few, and reads the number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Denial {
    /// Connections refused.
    pub count: u64,
    /// When the time began in which `told` counts, ns since boot.
    pub since: u64,
    /// Events since then.
    pub told: u64,
}

const _: () = assert!(size_of::<Denial>() == 24 && align_of::<Denial>() == 8);

/// In this time at most [`DENIALS_TOLD`] refusals by one verdict are told of one by one, in nanoseconds.
pub const DENIAL_WINDOW_NS: u64 = 1_000_000_000;
/// See [`DENIAL_WINDOW_NS`].
pub const DENIALS_TOLD: u64 = 32;

/// In place of a server's [`crate::Pod::id`]: the connection is left alone.
pub const NOBODY: u32 = 0;

/// What a client's socket carries (`SOCKETS`): it talks directly or was left alone, and this is what it
/// dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DirectSocket {
    /// What the application dialled, which `getpeername` shows.
    pub dialled: Endpoint,
    /// [`crate::Pod::id`] of the client, or [`LEG_SOURCE`].
    pub source: u32,
    /// [`crate::Pod::id`] of the server, or [`NOBODY`].
    pub destination: u32,
    /// Zero.
    pub reserved: u32,
    /// When it was dialled, ns since boot.
    pub started: u64,
}

const _: () = assert!(size_of::<DirectSocket>() == 40 && align_of::<DirectSocket>() == 8);

/// Instead of a client's [`crate::Pod::id`]: the socket is an agent's, and the connection its leg to a server
/// that is bound to an interface.
pub const LEG_SOURCE: u32 = 0;

/// Value of `FLOWS`: proof that a socket of a captured pod sent a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct DirectFlow {
    /// Moves the other fields, for the test of that feature.
    #[cfg(feature = "next-layout")]
    pub moved: u64,
    /// When, ns since boot.
    pub time: u64,
    /// [`crate::Pod::id`] of the client, or [`LEG_SOURCE`].
    pub source: u32,
    /// [`crate::Pod::id`] of the server.
    pub destination: u32,
}

#[cfg(not(feature = "next-layout"))]
const _: () = assert!(size_of::<DirectFlow>() == 16 && align_of::<DirectFlow>() == 8);

impl DirectFlow {
    /// A SYN that was sent at `time` from the pod numbered `source` to the one numbered `destination`.
    #[inline(always)]
    #[must_use]
    pub const fn new(time: u64, source: u32, destination: u32) -> Self {
        Self {
            #[cfg(feature = "next-layout")]
            moved: u64::MAX,
            time,
            source,
            destination,
        }
    }
}

/// What the kernel tells of a direct connection or one that is left alone (`EVENTS` and `DENIED`, ring
/// buffers).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Event {
    /// An [`EventKind`] as a number.
    pub kind: u32,
    /// [`crate::Pod::id`] of the client.
    pub source: u32,
    /// [`crate::Pod::id`] of the server, or [`NOBODY`].
    pub destination: u32,
    /// The connection; the source port is 0 where it was refused before it had one.
    pub flow: Flow,
    /// What the application dialled.
    pub dialled: Endpoint,
    /// Zero.
    pub reserved: u32,
    /// Bytes that the client sent and the server acknowledged.
    pub sent: u64,
    /// Bytes that the client received.
    pub received: u64,
    /// Age of the connection in ns.
    pub duration: u64,
}

const _: () = assert!(size_of::<Event>() == 96 && align_of::<Event>() == 8);

/// What happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum EventKind {
    /// Established.
    Opened = 1,
    /// Over.
    Closed = 2,
    /// Refused by policy.
    Denied = 3,
}

#[cfg(test)]
mod tests {
    use super::{Endpoint, Session};
    use crate::Addr;

    #[test]
    fn a_session_ends_its_time_after_the_last_connection() {
        const SECOND: u64 = 1_000_000_000;
        let endpoint = Endpoint::new(Addr::v4(1), 80);
        for (used, now, seconds, kept) in [
            (5 * SECOND, 5 * SECOND, 1, true),
            (5 * SECOND, 6 * SECOND - 1, 1, true),
            (5 * SECOND, 6 * SECOND, 1, false),
            (0, 10_800 * SECOND - 1, 10_800, true),
            (0, 10_800 * SECOND, 10_800, false),
            (0, u64::MAX, u32::MAX, false),
            (0, 0, 0, false),
            // Another CPU may have noted a later time than this one reads.
            (5 * SECOND + 1, 5 * SECOND, 1, true),
        ] {
            let session = Session::new(endpoint, used);
            assert_eq!(
                session.is_kept(now, seconds),
                kept,
                "{used} {now} {seconds}"
            );
        }
    }
}
