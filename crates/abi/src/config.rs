//! What the agent tells the hooks about the node.

/// Settings of the node, read by the kernel half. The only element of `CONFIG`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NodeConfig {
    /// Worker threads of the agent; a connection goes to worker `cpu % workers`.
    pub workers: u32,
    /// Flags: [`DIRECT`].
    pub flags: u32,
}

const _: () = assert!(size_of::<NodeConfig>() == 8 && align_of::<NodeConfig>() == 4);

/// In [`NodeConfig::flags`]: connections between captured pods of this node may go directly.
pub const DIRECT: u32 = 1;
