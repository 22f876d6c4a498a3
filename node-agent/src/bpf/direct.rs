//! The maps of the same-node path, written from compiled tables, and the ring of its events.

use std::collections::{BTreeMap, BTreeSet};

use abi::{
    Addr, Denial, DirectVerdict, Endpoint, Event, MemberKey, Service, Slot, SlotKey, Target,
    VerdictKey, maps,
};
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
    use super::{Addr, Denial, Endpoint, MemberKey, Raw, Service, Slot, SlotKey, VerdictKey};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<Addr> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Endpoint> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<MemberKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Service> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Slot> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<SlotKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<VerdictKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Denial> {}
}

/// The maps of the same-node path.
pub struct DirectMaps {
    services: HashMap<MapData, Raw<Endpoint>, Raw<Service>>,
    slots: HashMap<MapData, Raw<SlotKey>, Raw<Slot>>,
    members: HashMap<MapData, Raw<MemberKey>, u32>,
    local_pods: HashMap<MapData, Raw<Addr>, u32>,
    verdicts: HashMap<MapData, Raw<VerdictKey>, u32>,
    denials: HashMap<MapData, Raw<VerdictKey>, Raw<Denial>>,
    denied: Ring,
    events: Ring,
    next_service: u32,
    counts: Counts,
}

/// What is drawn for a service port.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    /// The columns of the alias table.
    pub slots: Vec<Slot>,
    /// For how long a client keeps its endpoint after its last connection; 0 where each is drawn anew.
    pub session_seconds: u32,
}

/// How many entries there are: the maps are large, and only this writes them.
#[derive(Default)]
struct Counts {
    services: usize,
    slots: usize,
    members: usize,
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
            members: typed(ebpf, maps::MEMBERS)?,
            local_pods: typed(ebpf, maps::LOCAL_PODS)?,
            verdicts: typed(ebpf, maps::VERDICTS)?,
            denials: typed(ebpf, maps::DENIALS)?,
            denied: ring(ebpf, maps::DENIED)?,
            events: ring(ebpf, maps::EVENTS)?,
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
        let members: Vec<_> = self.members.keys().filter_map(Result::ok).collect();
        members
            .iter()
            .for_each(|key| drop(self.members.remove(key)));
        let pods: Vec<_> = self.local_pods.keys().filter_map(Result::ok).collect();
        pods.iter()
            .for_each(|key| drop(self.local_pods.remove(key)));
        let verdicts: Vec<_> = self.verdicts.keys().filter_map(Result::ok).collect();
        verdicts
            .iter()
            .for_each(|key| drop(self.verdicts.remove(key)));
        self.all_denials()
            .into_keys()
            .for_each(|key| self.forget_denials(key));
        self.counts = Counts::default();
    }

    /// Counts what a predecessor left, for an agent that keeps it.
    pub fn recount(&mut self) {
        self.counts = Counts {
            services: self.services.keys().count(),
            slots: self.slots.keys().count(),
            members: self.members.keys().count(),
            local_pods: self.local_pods.keys().count(),
            verdicts: self.verdicts.keys().count(),
        };
    }

    /// How many entries maps have, since they were cleared or counted.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, usize); 5] {
        [
            (maps::SERVICES, self.counts.services),
            (maps::SLOTS, self.counts.slots),
            (maps::MEMBERS, self.counts.members),
            (maps::LOCAL_PODS, self.counts.local_pods),
            (maps::VERDICTS, self.counts.verdicts),
        ]
    }

    /// Sets one verdict; none removes it, so that the agent decides. A refusal has a counter before it has an
    /// effect.
    ///
    /// # Errors
    /// When the map is full. The agent decides then.
    pub fn set_verdict(
        &mut self,
        key: VerdictKey,
        verdict: Option<DirectVerdict>,
    ) -> Result<(), KernelError> {
        if verdict == Some(DirectVerdict::Deny) && self.denials.get(&Raw(key), 0).is_err() {
            self.denials
                .insert(Raw(key), Raw(Denial::default()), 0)
                .map_err(map_error(maps::DENIALS))?;
        }
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

    /// Replaces a service port's endpoints in one step: slots and members of a new version first, then
    /// the service, then the old version goes. No slots removes the service: the agent draws.
    ///
    /// # Errors
    /// When a map is full. The service is removed then.
    pub fn set_service(&mut self, key: Endpoint, drawn: &Drawn) -> Result<(), KernelError> {
        let old = self
            .services
            .get(&Raw(key), 0)
            .ok()
            .map(|service| service.0);
        let result = if drawn.slots.is_empty() {
            Ok(())
        } else {
            self.write_service(key, drawn)
        };
        if drawn.slots.is_empty() || result.is_err() {
            take(&mut self.services, &mut self.counts.services, &Raw(key));
        }
        if let Some(old) = old {
            self.remove_version(&old);
        }
        result
    }

    fn write_service(&mut self, key: Endpoint, drawn: &Drawn) -> Result<(), KernelError> {
        let id = self.next_service;
        self.next_service = id.wrapping_add(1).max(1);
        let service = Service {
            id,
            slots: u32::try_from(drawn.slots.len()).unwrap_or(u32::MAX),
            session_seconds: drawn.session_seconds,
            reserved: 0,
        };
        let written = self
            .write_slots(&service, &drawn.slots)
            .and_then(|()| self.write_members(&service, &drawn.slots))
            .and_then(|()| {
                let entry = (Raw(key), Raw(service));
                let counts = &mut self.counts.services;
                put(&mut self.services, counts, entry, maps::SERVICES)
            });
        written.inspect_err(|_| self.remove_version(&service))
    }

    fn write_slots(&mut self, service: &Service, slots: &[Slot]) -> Result<(), KernelError> {
        for (index, slot) in (0..service.slots).zip(slots) {
            let key = SlotKey {
                service: service.id,
                index,
            };
            let entry = (Raw(key), Raw(*slot));
            put(&mut self.slots, &mut self.counts.slots, entry, maps::SLOTS)?;
        }
        Ok(())
    }

    /// What clients may keep; nobody asks where each connection is drawn anew.
    fn write_members(&mut self, service: &Service, slots: &[Slot]) -> Result<(), KernelError> {
        if service.session_seconds == 0 {
            return Ok(());
        }
        for target in slots.iter().flat_map(|slot| [slot.below, slot.above]) {
            let entry = (member(service, &target), target.pod);
            let counts = &mut self.counts.members;
            put(&mut self.members, counts, entry, maps::MEMBERS)?;
        }
        Ok(())
    }

    fn remove_version(&mut self, service: &Service) {
        for index in 0..service.slots {
            let key = Raw(SlotKey {
                service: service.id,
                index,
            });
            let slot = self.slots.get(&key, 0).ok();
            take(&mut self.slots, &mut self.counts.slots, &key);
            // Every endpoint has a column of its own.
            if let Some(Raw(slot)) = slot.filter(|_| service.session_seconds != 0) {
                let key = member(service, &slot.below);
                take(&mut self.members, &mut self.counts.members, &key);
            }
        }
    }

    /// Takes the events that have come since the last call.
    pub fn events(&mut self, mut each: impl FnMut(Event)) {
        for ring in [&mut self.events, &mut self.denied] {
            ring.read(|item: &[u8; size_of::<Event>()]| {
                if let Some(event) = event(item) {
                    each(event);
                }
            });
        }
    }

    /// How many connections one verdict has refused; none if it has no counter.
    #[must_use]
    pub fn denials(&self, key: VerdictKey) -> Option<u64> {
        let denial = self.denials.get(&Raw(key), 0).ok()?;
        Some(denial.0.count)
    }

    /// The same of all verdicts that have a counter.
    #[must_use]
    pub fn all_denials(&self) -> BTreeMap<VerdictKey, u64> {
        self.denials
            .iter()
            .filter_map(Result::ok)
            .map(|(key, denial)| (key.0, denial.0.count))
            .collect()
    }

    /// Removes the counter of a verdict that refuses no more.
    pub fn forget_denials(&mut self, key: VerdictKey) {
        // Absent is as good as removed.
        drop(self.denials.remove(&Raw(key)));
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

fn member(service: &Service, target: &Target) -> Raw<MemberKey> {
    Raw(MemberKey {
        service: service.id,
        endpoint: target.endpoint,
    })
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<Ring, KernelError> {
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
