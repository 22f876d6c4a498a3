//! The programs and maps of the node.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use abi::{
    Addr, InboundMode, ListenerKey, NodeConfig, Pod, PodAddr, PodState, PortKey, Reason, maps,
};
use aya::{
    Ebpf, EbpfLoader, Pod as Plain,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockHash},
    programs::{CgroupAttachMode, CgroupSockAddr, SockOps, links::FdLink},
};
use parking_lot::Mutex;

use super::{DirectMaps, MapSizes, link, room, versions};

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{ListenerKey, NodeConfig, Plain, Pod, PodAddr, PortKey, Raw};
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<Pod> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<PodAddr> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<PortKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<ListenerKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<NodeConfig> {}
}

static NODE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.bpf.o"));

const TRACK_PROGRAM: &str = "sock_ops_track";
const PROBE_PROGRAM: &str = "sock_ops_probe";
const CONNECT_PROGRAMS: [&str; 4] = [
    "connect4_capture",
    "connect6_capture",
    "getpeername4_dialled",
    "getpeername6_dialled",
];

/// Where the kernel half is kept and attached, and how it is set.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory of all versions' pins.
    pub bpf_dir: PathBuf,
    /// Version of the contract: names the directory below `bpf_dir`.
    pub version: u32,
    /// Root of the cgroups whose connections are captured.
    pub cgroup_root: PathBuf,
    /// The kubelet's cgroup, whose connections are probes.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Room in the maps.
    pub sizes: MapSizes,
    /// The node's settings: workers and whether connections may go directly.
    pub config: NodeConfig,
}

/// The kernel half, loaded.
pub struct Kernel {
    place: Place,
    dir: PathBuf,
    capacities: Vec<(&'static str, u32)>,
    node: Mutex<Ebpf>,
    maps: Mutex<Maps>,
    direct: Mutex<DirectMaps>,
}

struct Maps {
    pods: HashMap<MapData, u64, Raw<Pod>>,
    pod_addrs: HashMap<MapData, Raw<PodAddr>, u32>,
    listening: HashMap<MapData, Raw<PortKey>, u64>,
    inbound: HashMap<MapData, u32, u32>,
    listeners: SockHash<MapData, Raw<ListenerKey>>,
    agents: HashMap<MapData, u64, u32>,
    config: Array<MapData, Raw<NodeConfig>>,
    counters: PerCpuArray<MapData, u64>,
}

impl Kernel {
    /// Loads the node's programs and opens their maps, those of an earlier agent if there are any.
    /// Nothing is attached and no map is written: an agent that is in charge does not notice.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map; the error says which.
    pub fn load(place: Place) -> Result<Self, KernelError> {
        let dir = place.bpf_dir.join(format!("v{}", place.version));
        link::mount_if_absent(&dir).map_err(|source| KernelError::BpfFs {
            dir: dir.clone(),
            source,
        })?;
        std::fs::create_dir_all(&dir).map_err(|source| KernelError::BpfFs {
            dir: dir.clone(),
            source,
        })?;
        let mut ebpf = loader(&dir, place.sizes)
            .load(NODE_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "node",
                source: Box::new(source),
            })?;
        let maps = Maps::take(&mut ebpf)?;
        let direct = DirectMaps::take(&mut ebpf)?;
        for name in CONNECT_PROGRAMS {
            let hook: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            hook.load().map_err(program_error(name))?;
        }
        for name in [TRACK_PROGRAM, PROBE_PROGRAM] {
            let hook: &mut SockOps = program(&mut ebpf, name)?;
            hook.load().map_err(program_error(name))?;
        }
        Ok(Self {
            capacities: room::capacities(&dir, place.sizes),
            place,
            dir,
            node: Mutex::new(ebpf),
            maps: Mutex::new(maps),
            direct: Mutex::new(direct),
        })
    }

    /// Applies the node's settings and attaches its programs: at the root of the cgroups, the probe
    /// noter at the kubelet's cgroup. Programs of an earlier agent of this version are replaced in
    /// place.
    ///
    /// What notes connections comes before what reads the notes; see [`Self::retire_others`].
    ///
    /// # Errors
    /// When the kernel refuses an attachment; the error says which.
    pub fn attach(&self) -> Result<(), KernelError> {
        self.maps
            .lock()
            .config
            .set(0, Raw(self.place.config), 0)
            .map_err(map_error(maps::CONFIG))?;
        let mut ebpf = self.node.lock();
        let root = open(&self.place.cgroup_root)?;
        attach_sock_ops(&mut ebpf, TRACK_PROGRAM, &root, &self.dir)?;
        match &self.place.kubelet_cgroup {
            Some(kubelet) => {
                attach_sock_ops(&mut ebpf, PROBE_PROGRAM, &open(kubelet)?, &self.dir)?;
            }
            // An earlier agent may have been told of one.
            None => link::remove(&self.dir.join("links").join(PROBE_PROGRAM))?,
        }
        for name in CONNECT_PROGRAMS {
            attach_connect(&mut ebpf, name, &root, &self.dir)?;
        }
        Ok(())
    }

    /// Version of the contract that this agent's programs and maps are pinned under.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.place.version
    }

    /// Whether programs of another version of the contract are attached. They refuse what their own
    /// agent does not listen for.
    #[must_use]
    pub fn others_attached(&self) -> bool {
        versions::attached(&self.place.bpf_dir, &self.dir)
    }

    /// Detaches the programs of all other versions, and forgets their maps: readers of notes
    /// (`sk_lookup`) before writers, so that no connection is taken for one that nobody noted.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_others(&self) -> Result<(), KernelError> {
        versions::retire(&self.place.bpf_dir, &self.dir)
    }

    /// Where this ABI's maps and links are pinned.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn pod_loader(&self) -> EbpfLoader<'static> {
        loader(&self.dir, self.place.sizes)
    }

    /// Exempts the tasks of a cgroup from capture: an agent's own connections. Where there is no room,
    /// cgroups that are gone lose theirs.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_agent(&self, cgroup_id: u64) -> Result<(), KernelError> {
        let insert = || self.maps.lock().agents.insert(cgroup_id, 1, 0);
        insert()
            .or_else(|_full| {
                self.forget_gone_agents();
                insert()
            })
            .map_err(map_error(maps::AGENTS))
    }

    fn forget_gone_agents(&self) {
        let alive = crate::cgroup::ids_below(&self.place.cgroup_root);
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
        let mut maps = self.maps.lock();
        let Raw(mut config) = maps.config.get(&0, 0).map_err(map_error(maps::CONFIG))?;
        let before = config.flags;
        config.flags = before & !abi::DIRECT | if direct { abi::DIRECT } else { 0 };
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
    ) -> Result<(), KernelError> {
        let pod = Raw(Pod {
            id,
            state: state as u32,
            congestion,
        });
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

    /// Replaces the pod's listening ports by what was found in its namespace: (port, family 4 or 6).
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_listening(
        &self,
        id: u32,
        ports: &BTreeMap<(u16, u16), u64>,
    ) -> Result<(), KernelError> {
        let mut maps = self.maps.lock();
        let stale: Vec<Raw<PortKey>> = maps
            .listening
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.0.pod == id && !ports.contains_key(&(key.0.port, key.0.family)))
            .collect();
        for key in stale {
            drop(maps.listening.remove(&key));
        }
        for (&(port, family), &sockets) in ports {
            let key = Raw(PortKey {
                pod: id,
                port,
                family,
            });
            maps.listening
                .insert(key, sockets, 0)
                .map_err(map_error(maps::LISTENING))?;
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
        drop(self.set_listening(id, &BTreeMap::new()));
        drop(self.maps.lock().inbound.remove(&id));
    }

    /// The maps of the same-node path, locked.
    pub fn direct(&self) -> parking_lot::MutexGuard<'_, DirectMaps> {
        self.direct.lock()
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
        ];
        drop(held);
        all.extend(self.direct.lock().entries());
        all
    }

    /// The counters of the kernel half, by reason, summed over CPUs.
    #[must_use]
    pub fn counters(&self) -> Vec<(Reason, u64)> {
        let maps = self.maps.lock();
        Reason::ALL
            .iter()
            .map(|&reason| {
                let sum = maps
                    .counters
                    .get(&(reason as u32), 0)
                    .map_or(0, |cpus| cpus.iter().sum());
                (reason, sum)
            })
            .collect()
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            pods: typed(ebpf, maps::PODS)?,
            pod_addrs: typed(ebpf, maps::POD_ADDRS)?,
            listening: typed(ebpf, maps::LISTENING)?,
            inbound: typed(ebpf, maps::INBOUND)?,
            listeners: typed(ebpf, maps::LISTENERS)?,
            agents: typed(ebpf, maps::AGENTS)?,
            config: typed(ebpf, maps::CONFIG)?,
            counters: typed(ebpf, maps::COUNTERS)?,
        })
    }
}

pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::NoMap(name))?;
    M::try_from(map).map_err(map_error(name))
}

pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| room::explain(map, source)
}

fn loader(dir: &Path, sizes: MapSizes) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader
        .default_map_pin_directory(dir)
        // Storage of sockets outlives the agent that created it, like everything else.
        .map_pin_path(maps::SOCKETS, dir.join(maps::SOCKETS));
    room::set(&mut loader, sizes);
    loader
}

fn open(path: &Path) -> Result<File, KernelError> {
    File::open(path).map_err(|source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    })
}

fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, KernelError>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    program.try_into().map_err(program_error(name))
}

pub(super) fn program_error(
    program: &'static str,
) -> impl Fn(aya::programs::ProgramError) -> KernelError {
    move |source| KernelError::Program { program, source }
}

fn attach_connect(
    ebpf: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    dir: &Path,
) -> Result<(), KernelError> {
    let hook: &mut CgroupSockAddr = program(ebpf, name)?;
    let fd = hook
        .fd()
        .map_err(program_error(name))?
        .try_clone()
        .map_err(KernelError::Descriptor)?;
    link::ensure(&dir.join("links").join(name), fd.as_fd(), || {
        let id = hook
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(program_error(name))?;
        let link = hook.take_link(id).map_err(program_error(name))?;
        FdLink::try_from(link).map_err(|e| KernelError::Descriptor(io::Error::other(e)))
    })
}

fn attach_sock_ops(
    ebpf: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    dir: &Path,
) -> Result<(), KernelError> {
    let hook: &mut SockOps = program(ebpf, name)?;
    let fd = hook
        .fd()
        .map_err(program_error(name))?
        .try_clone()
        .map_err(KernelError::Descriptor)?;
    link::ensure(&dir.join("links").join(name), fd.as_fd(), || {
        let id = hook
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(program_error(name))?;
        let link = hook.take_link(id).map_err(program_error(name))?;
        FdLink::try_from(link).map_err(|e| KernelError::Descriptor(io::Error::other(e)))
    })
}

/// Why the kernel half cannot be used. None of these goes away by trying again unchanged.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No BPF file system for the pins.
    #[error("cannot use {dir} for pinned programs and maps: it must be on a BPF file system")]
    BpfFs {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A cgroup to attach to cannot be opened.
    #[error("cannot open the cgroup {path}: cgroup2 must be mounted there")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An object was refused.
    #[error(
        "the kernel refused the eBPF object `{object}`: root, BTF and Linux 6.6 or newer are needed"
    )]
    Load {
        /// Which object.
        object: &'static str,
        /// What aya or the verifier said.
        source: Box<aya::EbpfError>,
    },
    /// A program was refused.
    #[error("the kernel refused the eBPF program `{program}`")]
    Program {
        /// Which program.
        program: &'static str,
        /// What the verifier said.
        source: aya::programs::ProgramError,
    },
    /// A program is missing in an object that this binary carries.
    #[error("the object holds no program `{0}`: this binary is broken")]
    NoProgram(&'static str),
    /// A map is missing in an object that this binary carries.
    #[error("the object holds no map `{0}`: this binary is broken")]
    NoMap(&'static str),
    /// A map has no room for another entry.
    #[error("the map `{map}` is full: raise {setting}")]
    Full {
        /// Which map.
        map: &'static str,
        /// The setting that its size follows.
        setting: &'static str,
    },
    /// A map cannot be read or written.
    #[error("cannot use the map `{map}`")]
    Map {
        /// Which map.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A link cannot be pinned, updated or removed.
    #[error("cannot keep the link {pin}")]
    Link {
        /// Where it is pinned.
        pin: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor cannot be duplicated or converted.
    #[error("cannot hold a program's descriptor")]
    Descriptor(#[source] io::Error),
}
