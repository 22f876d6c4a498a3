//! The programs and maps of the node.

pub mod listening;
mod tables;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use abi::{NodeConfig, maps};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapError,
    programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockopt, Program, SockOps, links::FdLink},
};
use parking_lot::{Mutex, MutexGuard};

use super::{
    CarriedMaps, DirectMaps, Heartbeat, HeldSyns, MapSizes, OlderFlows, WallMaps, link, log,
    noted::Noted, room, sessions::Sessions, shared::SharedPrograms, tc::Tcx, versions,
};
use tables::Maps;
pub use tables::Ports;
pub(super) use tables::{Raw, map_error, typed};

pub(super) static NODE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.bpf.o"));

const TRACK_PROGRAM: &str = "sock_ops_track";
const PROBE_PROGRAM: &str = "sock_ops_probe";
const OPTION_PROGRAM: &str = "setsockopt_path";
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
    /// Whether interfaces are guarded by tcx where the kernel has it, and not by clsact.
    pub tcx: bool,
    /// Whether the kernel half says what it decides; only some builds can, see [`super::check_log`].
    pub log: bool,
    /// Room in the maps.
    pub sizes: MapSizes,
    /// The node's settings: workers and whether connections may go directly.
    pub config: NodeConfig,
    /// Which part of the beats is this agent's, see [`abi::beat_index`].
    pub beats: u32,
}

/// The kernel half, loaded.
pub struct Kernel {
    place: Place,
    dir: PathBuf,
    capacities: Vec<(&'static str, u32)>,
    loader: Mutex<EbpfLoader<'static>>,
    node: Mutex<Ebpf>,
    maps: Mutex<Maps>,
    direct: Mutex<DirectMaps>,
    older: Mutex<OlderFlows>,
    heartbeat: Arc<Heartbeat>,
    held: Arc<HeldSyns>,
    walls: Mutex<WallMaps>,
    tcx: Tcx,
    lines: log::Lines,
    carried: Mutex<CarriedMaps>,
    sessions: Mutex<Sessions>,
    noted: Mutex<Noted>,
    shared: Mutex<SharedPrograms>,
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
        let mut loader = loader(&dir, &place);
        // What the type information took.
        runtime::memory::give_back();
        let mut ebpf = loader
            .load(NODE_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "node",
                source: Box::new(source),
            })?;
        let lines = log::Lines::take(&mut ebpf)?;
        let maps = Maps::take(&mut ebpf)?;
        let direct = DirectMaps::take(&mut ebpf)?;
        let older = OlderFlows::take(&mut ebpf)?;
        let heartbeat = tables::heartbeat(&mut ebpf, place.beats)?;
        let held = HeldSyns::take(&mut ebpf)?;
        let walls = WallMaps::take(&mut ebpf)?;
        let carried = CarriedMaps::take(&mut ebpf)?;
        let sessions = Sessions::take(&mut ebpf)?;
        let noted = Noted::take(&mut ebpf)?;
        for name in CONNECT_PROGRAMS {
            let hook: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            hook.load().map_err(program_error(name))?;
        }
        for name in [TRACK_PROGRAM, PROBE_PROGRAM] {
            let hook: &mut SockOps = program(&mut ebpf, name)?;
            hook.load().map_err(program_error(name))?;
        }
        let hook: &mut CgroupSockopt = program(&mut ebpf, OPTION_PROGRAM)?;
        hook.load().map_err(program_error(OPTION_PROGRAM))?;
        let shared = SharedPrograms::load(&mut loader)?;
        Ok(Self {
            tcx: Tcx::new(place.tcx),
            lines,
            capacities: room::capacities(&dir, place.sizes),
            loader: Mutex::new(loader),
            place,
            dir,
            node: Mutex::new(ebpf),
            maps: Mutex::new(maps),
            direct: Mutex::new(direct),
            older: Mutex::new(older),
            heartbeat: Arc::new(heartbeat),
            held: Arc::new(held),
            walls: Mutex::new(walls),
            carried: Mutex::new(carried),
            sessions: Mutex::new(sessions),
            noted: Mutex::new(noted),
            shared: Mutex::new(shared),
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
        self.lines.follow()?;
        self.put_shared()?;
        let mut ebpf = self.node.lock();
        let root = open(&self.place.cgroup_root)?;
        attach(&mut ebpf, TRACK_PROGRAM, &root, &self.dir)?;
        match &self.place.kubelet_cgroup {
            Some(kubelet) => {
                attach(&mut ebpf, PROBE_PROGRAM, &open(kubelet)?, &self.dir)?;
            }
            // An earlier agent may have been told of one.
            None => link::detach(&self.dir.join("links").join(PROBE_PROGRAM))?,
        }
        attach(&mut ebpf, OPTION_PROGRAM, &root, &self.dir)?;
        for name in CONNECT_PROGRAMS {
            attach(&mut ebpf, name, &root, &self.dir)?;
        }
        Ok(())
    }

    /// Where this agent's workers say that they are alive.
    #[must_use]
    pub fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }

    /// SYNs that wait for this agent.
    #[must_use]
    pub fn held(&self) -> &Arc<HeldSyns> {
        &self.held
    }

    /// How many threads carry traffic.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.place.config.workers
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

    /// Inode numbers of the network namespaces in which `sk_lookup` of a pod is attached, by whatever
    /// version. A namespace that is gone is not among them.
    ///
    /// # Errors
    /// When one of the pins cannot be read.
    pub fn lookup_namespaces(&self) -> io::Result<BTreeSet<u32>> {
        let mut all = versions::namespaces(&self.dir)?;
        all.append(&mut self.others_namespaces()?);
        Ok(all)
    }

    /// The same, of other versions only.
    ///
    /// # Errors
    /// As above.
    pub fn others_namespaces(&self) -> io::Result<BTreeSet<u32>> {
        let mut all = BTreeSet::new();
        for dir in versions::others(&self.place.bpf_dir, &self.dir)? {
            all.append(&mut versions::namespaces(&dir)?);
        }
        Ok(all)
    }

    /// Where this ABI's maps and links are pinned.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The map of connections that are older than their pod's capture, locked.
    pub fn older(&self) -> MutexGuard<'_, OlderFlows> {
        self.older.lock()
    }

    /// How programs are attached to interfaces.
    pub(super) fn tcx(&self) -> &Tcx {
        &self.tcx
    }

    pub(super) fn shared(&self) -> &Mutex<SharedPrograms> {
        &self.shared
    }

    pub(super) fn sessions(&self) -> &Mutex<Sessions> {
        &self.sessions
    }

    pub(super) fn noted_flows(&self) -> &Mutex<Noted> {
        &self.noted
    }

    /// The loader of all programs: making one reads the kernel's type information, which takes tens of
    /// milliseconds and 20 MiB for a moment.
    pub(super) fn loader(&self) -> MutexGuard<'_, EbpfLoader<'static>> {
        self.loader.lock()
    }
}

fn loader(dir: &Path, place: &Place) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader
        // No program reads the kernel's own structures.
        .btf(None)
        .default_map_pin_directory(dir)
        // Storage of sockets outlives the agent that created it, like everything else.
        .map_pin_path(maps::SOCKETS, dir.join(maps::SOCKETS));
    log::prepare(&mut loader, dir, place.log);
    room::set(&mut loader, place.sizes);
    loader
}

fn open(path: &Path) -> Result<File, KernelError> {
    File::open(path).map_err(|source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn program<'e, P>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut P, KernelError>
where
    &'e mut P: TryFrom<&'e mut Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    program.try_into().map_err(program_error(name))
}

pub(super) fn program_error(
    program: &'static str,
) -> impl Fn(aya::programs::ProgramError) -> KernelError {
    move |source| KernelError::Program { program, source }
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    dir: &Path,
) -> Result<(), KernelError> {
    let program = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    let fd = program
        .fd()
        .map_err(program_error(name))?
        .try_clone()
        .map_err(KernelError::Descriptor)?;
    let pin = dir.join("links").join(name);
    if matches!(program, Program::CgroupSockopt(_)) {
        return link::ensure_setsockopt(&pin, fd.as_fd(), cgroup.as_fd());
    }
    link::ensure(&pin, fd.as_fd(), || {
        let mode = CgroupAttachMode::Single;
        let link = match program {
            Program::CgroupSockAddr(hook) => {
                let link = hook.attach(cgroup, mode).and_then(|id| hook.take_link(id));
                FdLink::try_from(link.map_err(program_error(name))?)
            }
            Program::SockOps(hook) => {
                let link = hook.attach(cgroup, mode).and_then(|id| hook.take_link(id));
                FdLink::try_from(link.map_err(program_error(name))?)
            }
            _ => return Err(KernelError::NoProgram(name)),
        };
        link.map_err(|e| KernelError::Descriptor(io::Error::other(e)))
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
    /// An agent without a cgroup of its own.
    #[error(
        "an agent in the cgroup {root} would exempt every process there from capture: it must be in one of its own"
    )]
    RootCgroup {
        /// The root of the captured cgroups.
        root: PathBuf,
    },
    /// An object was refused.
    #[error(
        "the kernel refused the eBPF object `{object}`: root, BTF and Linux 6.1 or newer are needed"
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
