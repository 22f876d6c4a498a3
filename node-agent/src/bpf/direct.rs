//! The maps of the same-node path, written from compiled tables, and the ring of its events.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Addr, DirectVerdict, Endpoint, Event, Service, Slot, SlotKey, VerdictKey, maps};
use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};

use super::{
    KernelError,
    node::{Raw, map_error, typed},
    ring::Ring,
};

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{Addr, Endpoint, Raw, Service, Slot, SlotKey, VerdictKey};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<Addr> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Endpoint> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Service> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Slot> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<SlotKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<VerdictKey> {}
}

/// The maps of the same-node path.
pub struct DirectMaps {
    services: HashMap<MapData, Raw<Endpoint>, Raw<Service>>,
    slots: HashMap<MapData, Raw<SlotKey>, Raw<Slot>>,
    local_pods: HashMap<MapData, Raw<Addr>, u32>,
    verdicts: HashMap<MapData, Raw<VerdictKey>, u32>,
    events: Ring,
    next_service: u32,
    counts: Counts,
}

/// How many entries there are: the maps are large, and only this writes them.
#[derive(Default)]
struct Counts {
    services: usize,
    slots: usize,
    local_pods: usize,
    verdicts: usize,
}

impl DirectMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let services: HashMap<_, Raw<Endpoint>, Raw<Service>> = typed(ebpf, maps::SERVICES)?;
        let newest = services
            .iter()
            .filter_map(Result::ok)
            .map(|(_, service)| service.0.id)
            .max();
        Ok(Self {
            slots: typed(ebpf, maps::SLOTS)?,
            local_pods: typed(ebpf, maps::LOCAL_PODS)?,
            verdicts: typed(ebpf, maps::VERDICTS)?,
            events: ring(ebpf)?,
            next_service: newest.unwrap_or(0).wrapping_add(1),
            services,
            counts: Counts::default(),
        })
    }

    /// Removes what an earlier agent left: everything is compiled anew. Connections are carried by
    /// the agent meanwhile.
    pub fn clear(&mut self) {
        let services: Vec<_> = self.services.keys().filter_map(Result::ok).collect();
        services
            .iter()
            .for_each(|key| drop(self.services.remove(key)));
        let slots: Vec<_> = self.slots.keys().filter_map(Result::ok).collect();
        slots.iter().for_each(|key| drop(self.slots.remove(key)));
        let pods: Vec<_> = self.local_pods.keys().filter_map(Result::ok).collect();
        pods.iter()
            .for_each(|key| drop(self.local_pods.remove(key)));
        let verdicts: Vec<_> = self.verdicts.keys().filter_map(Result::ok).collect();
        verdicts
            .iter()
            .for_each(|key| drop(self.verdicts.remove(key)));
        self.counts = Counts::default();
    }

    /// Counts what a predecessor left, for an agent that keeps it.
    pub fn recount(&mut self) {
        self.counts = Counts {
            services: self.services.keys().count(),
            slots: self.slots.keys().count(),
            local_pods: self.local_pods.keys().count(),
            verdicts: self.verdicts.keys().count(),
        };
    }

    /// How many entries maps have, since they were cleared or counted.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, usize); 4] {
        [
            (maps::SERVICES, self.counts.services),
            (maps::SLOTS, self.counts.slots),
            (maps::LOCAL_PODS, self.counts.local_pods),
            (maps::VERDICTS, self.counts.verdicts),
        ]
    }

    /// Sets one verdict; none removes it, so that the agent decides.
    ///
    /// # Errors
    /// When the map is full. The agent decides then.
    pub fn set_verdict(
        &mut self,
        key: VerdictKey,
        verdict: Option<DirectVerdict>,
    ) -> Result<(), KernelError> {
        match verdict {
            Some(verdict) => put(
                &mut self.verdicts,
                &mut self.counts.verdicts,
                (Raw(key), verdict as u32),
                maps::VERDICTS,
            ),
            None => {
                take(&mut self.verdicts, &mut self.counts.verdicts, &Raw(key));
                Ok(())
            }
        }
    }

    /// Sets the pod that has an address, or that none has.
    ///
    /// # Errors
    /// When the map is full. The agent carries connections to the address then.
    pub fn set_local_pod(&mut self, addr: Addr, pod: Option<u32>) -> Result<(), KernelError> {
        match pod {
            Some(pod) => put(
                &mut self.local_pods,
                &mut self.counts.local_pods,
                (Raw(addr), pod),
                maps::LOCAL_PODS,
            ),
            None => {
                take(
                    &mut self.local_pods,
                    &mut self.counts.local_pods,
                    &Raw(addr),
                );
                Ok(())
            }
        }
    }

    /// Replaces a service port's endpoints in one step: slots of a new version first, then the
    /// service, then the old slots go. No slots removes the service: the agent draws.
    ///
    /// # Errors
    /// When a map is full. The service is removed then.
    pub fn set_service(&mut self, key: Endpoint, slots: &[Slot]) -> Result<(), KernelError> {
        let old = self
            .services
            .get(&Raw(key), 0)
            .ok()
            .map(|service| service.0);
        let result = if slots.is_empty() {
            Ok(())
        } else {
            self.write_service(key, slots)
        };
        if slots.is_empty() || result.is_err() {
            take(&mut self.services, &mut self.counts.services, &Raw(key));
        }
        if let Some(old) = old {
            self.remove_slots(old.id, old.slots);
        }
        result
    }

    fn write_service(&mut self, key: Endpoint, slots: &[Slot]) -> Result<(), KernelError> {
        let id = self.next_service;
        self.next_service = id.wrapping_add(1).max(1);
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        for (index, slot) in (0..count).zip(slots) {
            let entry = (Raw(SlotKey { service: id, index }), Raw(*slot));
            let written = put(&mut self.slots, &mut self.counts.slots, entry, maps::SLOTS);
            if written.is_err() {
                self.remove_slots(id, index);
                return written;
            }
        }
        let entry = (Raw(key), Raw(Service { id, slots: count }));
        let counts = &mut self.counts.services;
        put(&mut self.services, counts, entry, maps::SERVICES)
            .inspect_err(|_| self.remove_slots(id, count))
    }

    fn remove_slots(&mut self, service: u32, count: u32) {
        for index in 0..count {
            let key = Raw(SlotKey { service, index });
            take(&mut self.slots, &mut self.counts.slots, &key);
        }
    }

    /// Takes the events that have come since the last call.
    pub fn events(&mut self, mut each: impl FnMut(Event)) {
        self.events.read(|item: &[u8; size_of::<Event>()]| {
            if let Some(event) = event(item) {
                each(event);
            }
        });
    }

    /// Everything that the kernel holds, for comparison and for the admin page.
    #[must_use]
    pub fn verdicts(&self) -> BTreeMap<VerdictKey, u32> {
        self.verdicts
            .iter()
            .filter_map(Result::ok)
            .map(|(key, verdict)| (key.0, verdict))
            .collect()
    }

    /// The pods that the kernel knows by address.
    #[must_use]
    pub fn local_pods(&self) -> BTreeMap<Addr, u32> {
        self.local_pods
            .iter()
            .filter_map(Result::ok)
            .map(|(addr, pod)| (addr.0, pod))
            .collect()
    }

    /// The service ports that the kernel draws endpoints for.
    #[must_use]
    pub fn services(&self) -> BTreeSet<Endpoint> {
        self.services
            .keys()
            .filter_map(Result::ok)
            .map(|key| key.0)
            .collect()
    }
}

fn put<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    count: &mut usize,
    (key, value): (K, V),
    name: &'static str,
) -> Result<(), KernelError> {
    let is_new = map.get(&key, 0).is_err();
    map.insert(key, value, 0).map_err(map_error(name))?;
    *count += usize::from(is_new);
    Ok(())
}

/// Absent is as good as removed.
fn take<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, count: &mut usize, key: &K) {
    if map.remove(key).is_ok() {
        *count = count.saturating_sub(1);
    }
}

fn ring(ebpf: &mut Ebpf) -> Result<Ring, KernelError> {
    let name = maps::EVENTS;
    let Some(Map::RingBuf(map)) = ebpf.take_map(name) else {
        return Err(KernelError::NoMap(name));
    };
    let size = map.info().map_err(map_error(name))?.max_entries();
    Ring::new(map, size).map_err(|error| map_error(name)(MapError::IoError(error)))
}

/// Reads an event of the ring.
fn event(bytes: &[u8]) -> Option<Event> {
    let words = |at: usize| -> Option<[u32; 4]> {
        let word = |i: usize| {
            Some(u32::from_ne_bytes(
                bytes.get(at + i..at + i + 4)?.try_into().ok()?,
            ))
        };
        Some([word(0)?, word(4)?, word(8)?, word(12)?])
    };
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    use std::mem::offset_of;
    let flow = offset_of!(Event, flow);
    let dialled = offset_of!(Event, dialled);
    Some(Event {
        kind: u32_at(offset_of!(Event, kind))?,
        source: u32_at(offset_of!(Event, source))?,
        destination: u32_at(offset_of!(Event, destination))?,
        flow: abi::Flow {
            source: Addr {
                words: words(flow)?,
            },
            destination: Addr {
                words: words(flow + 16)?,
            },
            source_port: u16_at(flow + 32)?,
            destination_port: u16_at(flow + 34)?,
        },
        dialled: Endpoint::new(
            Addr {
                words: words(dialled)?,
            },
            u16_at(dialled + 16)?,
        ),
        reserved: 0,
        sent: u64_at(offset_of!(Event, sent))?,
        received: u64_at(offset_of!(Event, received))?,
        duration: u64_at(offset_of!(Event, duration))?,
    })
}
