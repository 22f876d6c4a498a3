//! Loads the kernel half, keeps it attached and reads and writes its maps. The only module that
//! names aya.
//!
//! Everything is pinned below `<bpf-dir>/v<ABI>`: programs of the node and of each pod stay attached
//! when the agent dies, and refuse, because no listener is alive. A new agent with the same ABI
//! replaces the programs in place (`BPF_LINK_UPDATE`) and keeps the maps; one with another ABI
//! attaches its own beside them and then retires the others (`versions`).

mod attached;
mod carried;
mod direct;
mod heartbeat;
mod held;
mod link;
mod log;
mod mapping;
mod node;
mod noted;
mod older;
mod others;
mod pod;
mod ring;
mod room;
mod sessions;
mod shared;
mod tc;
mod versions;
mod wall;

pub use attached::attached;
pub use carried::CarriedMaps;
pub use direct::{DirectMaps, Drawn};
pub use heartbeat::Heartbeat;
pub use held::{HeldSyns, SynBuffer};
pub use link::mount_if_absent;
pub use log::{NoLog, check_log};
pub use node::{Kernel, KernelError, Place, Ports, listening};
pub use older::OlderFlows;
pub use others::others;
pub use pod::{Loaded, Namespace, PodPrograms, remove_filters, try_pod_programs};
pub use room::MapSizes;
pub use wall::WallMaps;
