//! The programs that all pods share.

/// Where a program is in `SHARED`. An entry of a pod calls it with the pod's number in the first word of the packet's
/// control buffer, and in the second whether the source is the pod's own address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Shared {
    /// On the node's end of a pod's interface: what leaves the pod.
    Guard = 0,
    /// On the pod's own end: what arrives.
    Wall = 1,
    /// On the pod's `lo`: the SYNs of carried connections.
    Hold = 2,
}

impl Shared {
    /// How many there are.
    pub const COUNT: u32 = 3;
}
