//! What the kernel half has noted of direct connections that are being opened: which pod sent a SYN.

use abi::{DirectFlow, Flow, maps};
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
    use super::{DirectFlow, Raw};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<DirectFlow> {}
}

/// The map of flows.
pub(super) struct Noted(HashMap<MapData, Raw<Flow>, Raw<DirectFlow>>);

impl Noted {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        typed(ebpf, maps::FLOWS).map(Self)
    }
}

impl Kernel {
    /// What is noted of a connection that a captured pod of this node opened directly.
    #[must_use]
    pub fn noted(&self, flow: Flow) -> Option<DirectFlow> {
        let noted = self.noted_flows().lock();
        noted.0.get(&Raw(flow), 0).ok().map(|note| note.0)
    }
}
