//! SYNs that the kernel half holds: how the agent gets them, and what is known of each.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use abi::{Held, HeldKey, maps};
use aya::{
    Ebpf,
    maps::{
        HashMap, MapData, PerfEventArray,
        perf::{PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use parking_lot::Mutex;

use super::{
    KernelError,
    node::{Raw, typed},
};

/// Room for the SYNs of one processor that no worker has looked at yet, in pages: about 3,000
/// SYNs, and of one pod a third at most ([`abi::SYNS_PER_WINDOW`]) as long as workers look twice in [`abi::SYN_WINDOW_NS`].
const PAGES: usize = 128;

/// What is held.
pub struct HeldSyns {
    held: Mutex<HashMap<MapData, Raw<HeldKey>, Raw<Held>>>,
    events: Mutex<PerfEventArray<MapData>>,
}

/// The SYNs of one processor.
pub struct SynBuffer {
    cpu: u32,
    events: PerfEventArrayBuffer<MapData>,
}

impl HeldSyns {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            held: Mutex::new(typed(ebpf, maps::HELD)?),
            events: Mutex::new(typed(ebpf, maps::SYNS)?),
        })
    }

    /// Has the SYNs of all processors come to this agent from now on. Those of a processor that comes later are
    /// not held.
    ///
    /// # Errors
    /// When the kernel gives no buffers.
    pub fn receive(&self) -> io::Result<Vec<SynBuffer>> {
        let mut events = self.events.lock();
        let cpus = online_cpus().map_err(|(_, error)| error)?;
        let open = |cpu| {
            let events = events.open(cpu, Some(PAGES)).map_err(io::Error::other)?;
            Ok(SynBuffer { cpu, events })
        };
        cpus.into_iter().map(open).collect()
    }

    /// Whether an attempt to open a connection still waits for whoever got it. `held` is what tells it from others:
    /// sequence number and generation.
    #[must_use]
    pub fn is_waiting(&self, key: HeldKey, held: (u32, u32)) -> bool {
        let found = self.held.lock().get(&Raw(key), 0);
        found.is_ok_and(|Raw(found)| (found.isn, found.generation) == held)
    }

    /// Lets go: the same SYN would be held again.
    pub fn forget(&self, key: HeldKey) {
        // Its client may have let go before.
        drop(self.held.lock().remove(&Raw(key)));
    }
}

impl SynBuffer {
    /// The processor.
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Takes all SYNs that have come, each as the event that crate `abi` describes.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) {
        let mut whole = Vec::new();
        self.events.for_each(|event| match event {
            PerfEvent::Sample { head, tail: [] } => each(head),
            PerfEvent::Sample { head, tail } => {
                whole.clear();
                whole.extend_from_slice(head);
                whole.extend_from_slice(tail);
                each(&whole);
            }
            // The kernel half has counted them.
            PerfEvent::Lost { .. } => {}
        });
    }
}

impl AsRawFd for SynBuffer {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}
