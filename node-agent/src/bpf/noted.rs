//! What the kernel half has noted of connections: of direct ones that are being opened, which pod sent a SYN; of
//! carried ones, how long their applications wait.

use abi::{DirectFlow, Flow, Waits, maps};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    Kernel, KernelError,
    node::{Raw, typed},
};

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{DirectFlow, Raw, Waits};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<DirectFlow> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Waits> {}
}

/// The maps of flows.
pub(super) struct Noted {
    direct: HashMap<MapData, Raw<Flow>, Raw<DirectFlow>>,
    waits: HashMap<MapData, Raw<Flow>, Raw<Waits>>,
}

impl Noted {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            direct: typed(ebpf, maps::FLOWS)?,
            waits: typed(ebpf, maps::WAITS)?,
        })
    }
}

impl Kernel {
    /// What is noted of a connection that a captured pod of this node opened directly.
    #[must_use]
    pub fn noted(&self, flow: Flow) -> Option<DirectFlow> {
        let noted = self.noted_flows().lock();
        noted.direct.get(&Raw(flow), 0).ok().map(|note| note.0)
    }

    /// How long the application of a carried connection waits, where it has said so. Its own end is the source.
    #[must_use]
    pub fn waits(&self, flow: Flow) -> Option<Waits> {
        let noted = self.noted_flows().lock();
        noted.waits.get(&Raw(flow), 0).ok().map(|waits| waits.0)
    }

    /// Takes that note: the connection has ended.
    pub fn forget_waits(&self, flow: Flow) {
        let mut noted = self.noted_flows().lock();
        // The kernel half may have been faster.
        let _noted = noted.waits.remove(&Raw(flow)).is_ok();
    }
}
