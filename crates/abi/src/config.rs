//! What the agent tells the hooks about the node.

/// Settings of the node, read by the kernel half. The only element of `CONFIG`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NodeConfig {
    /// Worker threads of the agent; a connection goes to worker `cpu % workers`.
    pub workers: u32,
    /// Flags: [`DIRECT`], [`NATIVE`].
    pub flags: u32,
    /// Entries of `LISTENING` that one pod may have.
    pub ports_per_pod: u32,
    /// Which agent is in charge: another number for each that ever is.
    pub generation: u32,
}

const _: () = assert!(size_of::<NodeConfig>() == 16 && align_of::<NodeConfig>() == 4);

/// In [`NodeConfig::flags`]: connections between captured pods of this node may go directly.
pub const DIRECT: u32 = 1;

/// In [`NodeConfig::flags`]: `CARRIED` and `CARRIED_RANGES` hold every destination that may have to be
/// carried, so that others are left alone. Without it everything is captured.
pub const NATIVE: u32 = 2;
