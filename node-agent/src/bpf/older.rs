//! The map of connections that are older than their pod's capture: what the kernel half lets pass although
//! nobody carries it, and where the next agent finds them.

use abi::{Flow, maps};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    KernelError,
    node::{Raw, map_error, typed},
};

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{Flow, Raw};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, no padding (its size is asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<Flow> {}
}

/// The connections, each as its pod sees it: the pod's end is the source, whoever opened it.
pub struct OlderFlows(HashMap<MapData, Raw<Flow>, u32>);

impl OlderFlows {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        typed(ebpf, maps::OLDER_FLOWS).map(Self)
    }

    /// Lists a connection of a pod.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add(&mut self, pod: u32, flow: Flow) -> Result<(), KernelError> {
        let added = self.0.insert(Raw(flow), pod, 0);
        added.map_err(map_error(maps::OLDER_FLOWS))
    }

    /// Takes a connection from the list.
    pub fn remove(&mut self, flow: Flow) {
        // Absent is as good as removed.
        drop(self.0.remove(&Raw(flow)));
    }

    /// The connections of a pod.
    #[must_use]
    pub fn of(&self, pod: u32) -> Vec<Flow> {
        let all = self.0.iter().filter_map(Result::ok);
        all.filter(|(_, of)| *of == pod)
            .map(|(Raw(flow), _)| flow)
            .collect()
    }

    /// Takes all connections of a pod from the list.
    pub fn forget(&mut self, pod: u32) {
        for flow in self.of(pod) {
            self.remove(flow);
        }
    }

    /// How many connections are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.keys().count()
    }

    /// Whether none is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
