//! Loads the kernel half, keeps it attached and reads and writes its maps. The only module that
//! names aya.
//!
//! Everything is pinned below `<bpf-dir>/v<ABI>`: programs of the node and of each pod stay attached
//! when the agent dies, and refuse, because no listener is alive. A new agent with the same ABI
//! replaces the programs in place (`BPF_LINK_UPDATE`) and keeps the maps; one with another ABI
//! attaches its own beside them and then retires the others (`versions`).

mod direct;
mod link;
mod node;
mod pod;
mod ring;
mod room;
mod versions;

pub use direct::DirectMaps;
pub use link::mount_if_absent;
pub use node::{Kernel, KernelError, Place};
pub use pod::{Namespace, PodPrograms};
pub use room::MapSizes;
