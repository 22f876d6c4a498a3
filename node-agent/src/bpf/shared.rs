//! The programs that all pods share: the kernel's verifier, which takes 10 ms and more for one of them, looks at them once.
//! The entries of each pod ([`super::pod`]) call them.

use abi::{Shared, maps};
use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
};

use super::{
    Kernel, KernelError,
    node::{map_error, typed},
    pod::classifier,
};

pub(super) static SHARED_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shared.bpf.o"));

const PROGRAMS: [(Shared, &str); Shared::COUNT as usize] = [
    (Shared::Guard, "shared_guard"),
    (Shared::Wall, "shared_wall"),
    (Shared::Hold, "shared_hold"),
];

/// The programs, and where entries find them.
pub(super) struct SharedPrograms {
    ebpf: Ebpf,
    entries: ProgramArray<MapData>,
}

impl SharedPrograms {
    /// Has the kernel look at the programs. Nothing calls them yet.
    pub(super) fn load(loader: &mut aya::EbpfLoader<'static>) -> Result<Self, KernelError> {
        let loaded = loader.load(SHARED_OBJECT);
        let mut ebpf = loaded.map_err(|source| KernelError::Load {
            object: "shared",
            source: Box::new(source),
        })?;
        for (_, name) in PROGRAMS {
            classifier(&mut ebpf, name)?;
        }
        let entries = typed(&mut ebpf, maps::SHARED)?;
        Ok(Self { ebpf, entries })
    }

    /// Puts the programs where the entries of all pods find them, in place of those of another agent: each packet sees the
    /// old one or the new one.
    pub(super) fn put(&mut self) -> Result<(), KernelError> {
        for (place, name) in PROGRAMS {
            let hook = classifier(&mut self.ebpf, name)?;
            let fd = hook.fd().map_err(super::node::program_error(name))?;
            self.entries
                .set(place as u32, fd, 0)
                .map_err(map_error(maps::SHARED))?;
        }
        Ok(())
    }
}

impl Kernel {
    /// As [`SharedPrograms::put`].
    pub(super) fn put_shared(&self) -> Result<(), KernelError> {
        self.shared().lock().put()
    }
}
