//! The maps of the node: what the agent writes into them and reads out of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

use abi::{
    Addr, Held, HeldKey, InboundMode, ListenerKey, NodeConfig, Pod, PodAddr, PodState, PortKey,
    Reason, Share, maps,
};
use aya::{
    Ebpf, Pod as Plain,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockHash},
};

use super::{
    super::{CarriedMaps, DirectMaps, Heartbeat, WallMaps, room},
    Kernel, KernelError,
};

/// Number of listening sockets by port and family, 4 or 6.
pub type Ports = BTreeMap<(u16, u16), i32>;

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(in crate::bpf) struct Raw<T>(pub(in crate::bpf) T);

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{Held, HeldKey, ListenerKey, NodeConfig, Plain, Pod, PodAddr, PortKey, Raw, Share};
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<Pod> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<PodAddr> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<PortKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Share> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<ListenerKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<NodeConfig> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<HeldKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Held> {}
}

pub(super) struct Maps {
    pods: HashMap<MapData, u64, Raw<Pod>>,
    pod_addrs: HashMap<MapData, Raw<PodAddr>, u32>,
    pub(super) listening: HashMap<MapData, Raw<PortKey>, u64>,
    probe_ports: HashMap<MapData, Raw<PortKey>, u32>,
    pub(super) shares: HashMap<MapData, u32, Raw<Share>>,
    inbound: HashMap<MapData, u32, u32>,
    listeners: SockHash<MapData, Raw<ListenerKey>>,
    agents: HashMap<MapData, u64, u32>,
    pub(super) config: Array<MapData, Raw<NodeConfig>>,
    counters: PerCpuArray<MapData, u64>,
}

impl Kernel {
    /// Exempts the tasks of a cgroup from capture: an agent's own connections. Where there is no room,
    /// cgroups that are gone lose theirs.
    ///
    /// # Errors
    /// When the map is full, or for the root, where whoever nobody has placed is.
    pub fn add_agent(&self, cgroup_id: u64) -> Result<(), KernelError> {
        let root = &self.place.cgroup_root;
        if std::fs::metadata(root).is_ok_and(|root| root.ino() == cgroup_id) {
            return Err(KernelError::RootCgroup { root: root.clone() });
        }
        let insert = || self.maps.lock().agents.insert(cgroup_id, 1, 0);
        insert()
            .or_else(|_full| {
                self.forget_gone_agents();
                insert()
            })
            .map_err(map_error(maps::AGENTS))
    }

    /// Ends the exemptions of cgroups that are gone.
    pub fn forget_gone_agents(&self) {
        let alive = crate::host::cgroup::ids_below(&self.place.cgroup_root);
        let mut maps = self.maps.lock();
        let known: Vec<u64> = maps.agents.keys().filter_map(Result::ok).collect();
        for gone in known.iter().filter(|id| !alive.contains(id)) {
            drop(maps.agents.remove(gone));
        }
    }

    /// Ends the exemption of a cgroup.
    pub fn remove_agent(&self, cgroup_id: u64) {
        // Absent is as good as removed.
        drop(self.maps.lock().agents.remove(&cgroup_id));
    }

    /// Sets whether connections between captured pods of this node may go directly; says whether that
    /// is a change.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set_direct(&self, direct: bool) -> Result<bool, KernelError> {
        self.set_flag(abi::DIRECT, direct)
    }

    /// Sets whether destinations that are not among those to be carried are left alone; says whether
    /// that is a change.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set_native(&self, native: bool) -> Result<bool, KernelError> {
        self.set_flag(abi::NATIVE, native)
    }

    fn set_flag(&self, flag: u32, on: bool) -> Result<bool, KernelError> {
        let mut maps = self.maps.lock();
        let Raw(mut config) = maps.config.get(&0, 0).map_err(map_error(maps::CONFIG))?;
        let before = config.flags;
        config.flags = before & !flag | if on { flag } else { 0 };
        if config.flags == before {
            return Ok(false);
        }
        let written = maps.config.set(0, Raw(config), 0);
        written.map_err(map_error(maps::CONFIG)).map(|()| true)
    }

    /// Sets a pod's state for the outbound hooks.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_pod(
        &self,
        cookie: u64,
        id: u32,
        state: PodState,
        congestion: [u8; 8],
        families: u32,
    ) -> Result<(), KernelError> {
        let pod = Raw(Pod::new(id, state, congestion, families));
        self.maps
            .lock()
            .pods
            .insert(cookie, pod, 0)
            .map_err(map_error(maps::PODS))
    }

    /// Forgets a pod: its namespace is not this agent's concern any more.
    pub fn remove_pod(&self, cookie: u64) {
        drop(self.maps.lock().pods.remove(&cookie));
    }

    /// The number and state of one pod.
    #[must_use]
    pub fn pod(&self, cookie: u64) -> Option<(u32, PodState)> {
        let Raw(pod) = self.maps.lock().pods.get(&cookie, 0).ok()?;
        Some((pod.id, PodState::from_raw(pod.state)))
    }

    /// All pods that the kernel knows, with their states: what is, not what should be.
    #[must_use]
    pub fn pods(&self) -> BTreeMap<u64, (u32, PodState)> {
        let maps = self.maps.lock();
        maps.pods
            .iter()
            .filter_map(Result::ok)
            .map(|(cookie, pod)| (cookie, (pod.0.id, PodState::from_raw(pod.0.state))))
            .collect()
    }

    /// Sets what `sk_lookup` does with plaintext to the pod.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_inbound(&self, id: u32, mode: InboundMode) -> Result<(), KernelError> {
        self.maps
            .lock()
            .inbound
            .insert(id, mode as u32, 0)
            .map_err(map_error(maps::INBOUND))
    }

    /// Replaces the pod's addresses; values are the flags of crate `abi`.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_addresses(
        &self,
        id: u32,
        addresses: &BTreeMap<IpAddr, u32>,
    ) -> Result<(), KernelError> {
        let mut maps = self.maps.lock();
        let wanted: BTreeMap<[u32; 4], u32> = addresses
            .iter()
            .map(|(ip, flags)| (Addr::from(*ip).words, *flags))
            .collect();
        let stale: Vec<Raw<PodAddr>> = maps
            .pod_addrs
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.0.pod == id && !wanted.contains_key(&key.0.addr.words))
            .collect();
        for key in stale {
            drop(maps.pod_addrs.remove(&key));
        }
        for (words, flags) in wanted {
            let key = Raw(PodAddr {
                pod: id,
                addr: Addr { words },
            });
            maps.pod_addrs
                .insert(key, flags, 0)
                .map_err(map_error(maps::POD_ADDRS))?;
        }
        Ok(())
    }

    /// Replaces the ports that the pod's own probes declare.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_probe_ports(&self, id: u32, ports: &BTreeSet<u16>) -> Result<(), KernelError> {
        let mut maps = self.maps.lock();
        let keys = maps.probe_ports.keys().filter_map(Result::ok);
        let known: BTreeSet<u16> = keys
            .filter(|key| key.0.pod == id)
            .map(|key| key.0.port)
            .collect();
        let key = |port: &u16| {
            Raw(PortKey {
                pod: id,
                port: *port,
                family: 0,
            })
        };
        for port in known.difference(ports) {
            drop(maps.probe_ports.remove(&key(port)));
        }
        for port in ports.difference(&known) {
            let inserted = maps.probe_ports.insert(key(port), 1, 0);
            inserted.map_err(map_error(maps::PROBE_PORTS))?;
        }
        Ok(())
    }

    /// Makes a listening socket of this agent the one that takes the key's connections.
    ///
    /// # Errors
    /// When the map is full or the socket does not listen.
    pub fn set_listener(&self, key: ListenerKey, socket: &impl AsRawFd) -> Result<(), KernelError> {
        self.maps
            .lock()
            .listeners
            .insert(Raw(key), socket.as_raw_fd(), 0)
            .map_err(map_error(maps::LISTENERS))
    }

    /// Removes a listener, whoever's it is.
    pub fn remove_listener(&self, key: ListenerKey) {
        drop(self.maps.lock().listeners.remove(&Raw(key)));
    }

    /// Removes what the maps hold of a pod, but for its outbound state.
    pub fn forget_pod(&self, id: u32) {
        drop(self.set_addresses(id, &BTreeMap::new()));
        self.forget_listening(id);
        drop(self.set_probe_ports(id, &BTreeSet::new()));
        drop(self.walls.lock().set_pod(id, None));
        let mut maps = self.maps.lock();
        drop(maps.shares.remove(&id));
        drop(maps.inbound.remove(&id));
        drop(maps);
        self.older().forget(id);
    }

    /// The maps of the same-node path, locked.
    pub fn direct(&self) -> parking_lot::MutexGuard<'_, DirectMaps> {
        self.direct.lock()
    }

    /// The maps of the wall, locked.
    pub fn walls(&self) -> parking_lot::MutexGuard<'_, WallMaps> {
        self.walls.lock()
    }

    /// The set of destinations that may have to be carried, locked.
    pub fn carried(&self) -> parking_lot::MutexGuard<'_, CarriedMaps> {
        self.carried.lock()
    }

    /// How many entries each map may have.
    pub fn capacities(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.capacities.iter().copied()
    }

    /// How many entries did not fit since the agent started, by map.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        room::refused()
    }

    /// How many entries maps have, for those that are not the kernel's own to fill and forget.
    #[must_use]
    pub fn entries(&self) -> Vec<(&'static str, usize)> {
        let held = self.maps.lock();
        let mut all = vec![
            (maps::PODS, held.pods.keys().count()),
            (maps::POD_ADDRS, held.pod_addrs.keys().count()),
            (maps::LISTENING, held.listening.keys().count()),
            (maps::INBOUND, held.inbound.keys().count()),
            (maps::PROBE_PORTS, held.probe_ports.keys().count()),
        ];
        drop(held);
        all.extend(self.direct.lock().entries());
        all.push((maps::OLDER_FLOWS, self.older().len()));
        all.extend(self.walls.lock().entries());
        all.push((maps::CARRIED, self.carried.lock().entries()));
        all
    }

    /// The counters of the kernel half, by reason, summed over CPUs.
    #[must_use]
    pub fn counters(&self) -> Vec<(Reason, u64)> {
        let reasons = Reason::ALL.iter();
        reasons
            .map(|&reason| (reason, self.counter(reason)))
            .collect()
    }

    /// One of [`Kernel::counters`].
    #[must_use]
    pub fn counter(&self, reason: Reason) -> u64 {
        let counted = self.maps.lock().counters.get(&(reason as u32), 0);
        counted.map_or(0, |cpus| cpus.iter().sum())
    }
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            pods: typed(ebpf, maps::PODS)?,
            pod_addrs: typed(ebpf, maps::POD_ADDRS)?,
            listening: typed(ebpf, maps::LISTENING)?,
            probe_ports: typed(ebpf, maps::PROBE_PORTS)?,
            shares: typed(ebpf, maps::SHARES)?,
            inbound: typed(ebpf, maps::INBOUND)?,
            listeners: typed(ebpf, maps::LISTENERS)?,
            agents: typed(ebpf, maps::AGENTS)?,
            config: typed(ebpf, maps::CONFIG)?,
            counters: typed(ebpf, maps::COUNTERS)?,
        })
    }
}

pub(in crate::bpf) fn typed<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::NoMap(name))?;
    M::try_from(map).map_err(map_error(name))
}

pub(super) fn heartbeat(ebpf: &mut Ebpf, part: u32) -> Result<Heartbeat, KernelError> {
    let name = maps::HEARTBEAT;
    let Some(Map::Array(map)) = ebpf.take_map(name) else {
        return Err(KernelError::NoMap(name));
    };
    Heartbeat::new(map, part).map_err(|error| map_error(name)(MapError::IoError(error)))
}

pub(in crate::bpf) fn map_error(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| room::explain(map, source)
}
