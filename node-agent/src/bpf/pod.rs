//! The programs of one pod: `sk_lookup` in its network namespace, the guard on the node's end of its
//! interface, the inbound half of the wall on its own.

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use abi::Addr;
use aya::{
    EbpfLoader,
    programs::{SchedClassifier, SkLookup, links::FdLink},
};

use super::{
    Kernel, KernelError, link,
    node::program_error,
    tc::{self, Side},
};
use crate::host::{
    netns::Netns,
    veth::{End, Pair},
};

static POD_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.bpf.o"));
static ANSWERS_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/answers.bpf.o"));
static VETH_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veth.bpf.o"));

#[cfg(test)]
pub(super) static POD_OBJECTS: [&&[u8]; 3] = [&POD_OBJECT, &ANSWERS_OBJECT, &VETH_OBJECT];

const LOOKUP: &str = "sk_lookup_pod";
const ANSWERS: &str = "tcx_answers";
const HOLD: &str = "tcx_hold";
/// The name of the loopback interface, the same in every network namespace.
const LOOPBACK: &str = "lo";
const GUARD: &str = "tcx_source_guard";
const WALL: &str = "tcx_inbound_wall";

/// What the kernel says of the namespace of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// A program is attached in it, or that cannot be seen.
    Lives,
    /// A program was attached in it.
    Gone,
    /// Nothing: no program is pinned.
    Unknown,
}

/// What a program is told of its pod when it is loaded.
struct Constants {
    pod: u32,
    own_v4: u32,
    own_v6: [u32; 4],
}

impl Constants {
    /// The loader lives as long as the agent and wants the same of what it is told: 24 bytes for each
    /// load, instead of a loader for each.
    fn keep(pod: u32, own_v4: u32, own_v6: [u32; 4]) -> &'static Self {
        Box::leak(Box::new(Self {
            pod,
            own_v4,
            own_v6,
        }))
    }

    /// `guard`: the program has constants for addresses too.
    fn set<'l>(
        &'static self,
        loader: &'l mut EbpfLoader<'static>,
        guard: bool,
    ) -> &'l mut EbpfLoader<'static> {
        loader
            .override_global("POD", &self.pod, true)
            .override_global("OWN_V4", &self.own_v4, guard)
            .override_global("OWN_V6", &self.own_v6, guard)
    }
}

/// Has the kernel look at the programs of a pod, and attaches none.
///
/// # Errors
/// When the kernel refuses one; the error says which.
pub fn try_pod_programs(kernel: &Kernel) -> Result<(), KernelError> {
    let load = |object, bytes, guard| {
        let constants = Constants::keep(0, 0, [0; 4]);
        let loaded = constants.set(&mut kernel.loader(), guard).load(bytes);
        loaded.map_err(|source| KernelError::Load {
            object,
            source: Box::new(source),
        })
    };
    let mut ebpf = load("pod", POD_OBJECT, false)?;
    let hook = ebpf
        .program_mut(LOOKUP)
        .ok_or(KernelError::NoProgram(LOOKUP))?;
    let hook: &mut SkLookup = hook.try_into().map_err(program_error(LOOKUP))?;
    hook.load().map_err(program_error(LOOKUP))?;
    let mut ebpf = load("veth", VETH_OBJECT, true)?;
    for name in [GUARD, WALL] {
        classifier(&mut ebpf, name)?;
    }
    Ok(())
}

/// Attaches and removes the programs of one pod. The links are pinned: they outlive this value.
#[derive(Clone, Debug)]
pub struct PodPrograms {
    id: u32,
    links: PathBuf,
}

impl PodPrograms {
    /// The programs of the pod numbered `id`.
    #[must_use]
    pub fn new(kernel: &Kernel, id: u32) -> Self {
        Self {
            id,
            links: kernel.dir().join("links"),
        }
    }

    /// Attaches `sk_lookup` in the pod's network namespace, or replaces the one that is there.
    ///
    /// # Errors
    /// When the kernel refuses the program or the attachment.
    pub fn attach_lookup(&self, kernel: &Kernel, netns: &Netns) -> Result<(), KernelError> {
        if link::target(&self.lookup_pin()).is_ok_and(|inode| netns.inode() != inode) {
            // Left by a pod that had this number before: an update would replace its program there.
            self.detach_lookup()?;
        }
        let constants = Constants::keep(self.id, 0, [0; 4]);
        let mut ebpf = constants
            .set(&mut kernel.loader(), false)
            .load(POD_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "pod",
                source: Box::new(source),
            })?;
        let hook = ebpf
            .program_mut(LOOKUP)
            .ok_or(KernelError::NoProgram(LOOKUP))?;
        let hook: &mut SkLookup = hook.try_into().map_err(program_error(LOOKUP))?;
        hook.load().map_err(program_error(LOOKUP))?;
        let fd = hook
            .fd()
            .map_err(program_error(LOOKUP))?
            .try_clone()
            .map_err(KernelError::Descriptor)?;
        link::ensure(&self.lookup_pin(), fd.as_fd(), || {
            let id = hook.attach(netns).map_err(program_error(LOOKUP))?;
            let link = hook.take_link(id).map_err(program_error(LOOKUP))?;
            Ok(FdLink::from(link))
        })
    }

    /// Attaches the guard to the node's end of each interface of the pod. `own` are the addresses that the
    /// cluster gave to the pod; the first of each family costs no lookup. With `netns` the inbound half of
    /// the wall is attached to the pod's ends too.
    ///
    /// # Errors
    /// When the kernel refuses a program or an attachment.
    pub fn attach_guards(
        &self,
        kernel: &Kernel,
        pairs: &[Pair],
        own: &[IpAddr],
        netns: Option<&Netns>,
    ) -> Result<(), KernelError> {
        let words = |v4: bool| {
            let own = own.iter().map(IpAddr::to_canonical);
            let first = own.filter(|ip| ip.is_ipv4() == v4).map(Addr::from).next();
            first.map_or([0; 4], |addr| addr.words)
        };
        let constants = Constants::keep(self.id, words(true)[3], words(false));
        let mut ebpf = constants
            .set(&mut kernel.loader(), true)
            .load(VETH_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "veth",
                source: Box::new(source),
            })?;
        let guard = classifier(&mut ebpf, GUARD)?;
        for Pair { node, .. } in pairs {
            tc::attach(
                kernel.tcx(),
                &self.guard_pin(&node.name),
                guard,
                GUARD,
                (node, Side::Arriving),
            )?;
        }
        let Some(netns) = netns else {
            return self.remove_all(&self.wall_pin(""), Side::Arriving, None);
        };
        let wall = classifier(&mut ebpf, WALL)?;
        for Pair { pod, .. } in pairs {
            let pin = self.wall_pin(&pod.name);
            netns
                .with(|| tc::attach(kernel.tcx(), &pin, wall, WALL, (pod, Side::Arriving)))
                .map_err(KernelError::Descriptor)??;
        }
        Ok(())
    }

    /// Whether guards, and with `netns` walls and what looks at answers, are attached to these interfaces and pinned: what is,
    /// not what should be.
    #[must_use]
    pub fn guards_attached(&self, pairs: &[Pair], netns: Option<&Netns>) -> bool {
        pairs.iter().all(|Pair { pod, node }| {
            tc::is_attached(&self.guard_pin(&node.name), (node, Side::Arriving))
                && netns.is_none_or(|netns| {
                    let wall = (self.wall_pin(&pod.name), Side::Arriving);
                    let answers = (self.answers_pin(&pod.name), Side::Leaving);
                    let attached =
                        |(pin, side): &(PathBuf, Side)| tc::is_attached(pin, (pod, *side));
                    netns
                        .with(|| [wall, answers].iter().all(attached))
                        .unwrap_or(false)
                })
        })
    }

    /// Attaches what keeps those behind the pod from answering in its name, to interfaces of the pod by which
    /// it is reached from outside.
    ///
    /// # Errors
    /// When the kernel refuses the program or an attachment.
    pub fn attach_answers(
        &self,
        kernel: &Kernel,
        netns: &Netns,
        interfaces: &[String],
    ) -> Result<(), KernelError> {
        let constants = Constants::keep(self.id, 0, [0; 4]);
        let mut ebpf = constants
            .set(&mut kernel.loader(), false)
            .load(ANSWERS_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "answers",
                source: Box::new(source),
            })?;
        let hook = classifier(&mut ebpf, ANSWERS)?;
        for interface in interfaces {
            let pin = self.answers_pin(interface);
            netns
                .with(|| {
                    let interface = End {
                        index: nix::net::if_::if_nametoindex(interface.as_str())
                            .map_err(|error| KernelError::Descriptor(error.into()))?,
                        name: interface.clone(),
                    };
                    tc::attach(
                        kernel.tcx(),
                        &pin,
                        hook,
                        ANSWERS,
                        (&interface, Side::Leaving),
                    )
                })
                .map_err(KernelError::Descriptor)??;
        }
        Ok(())
    }

    /// Attaches what holds the SYNs of carried connections, to the pod's `lo`.
    ///
    /// # Errors
    /// When the kernel refuses the program or the attachment.
    pub fn attach_hold(&self, kernel: &Kernel, netns: &Netns) -> Result<(), KernelError> {
        let constants = Constants::keep(self.id, 0, [0; 4]);
        let mut ebpf = constants
            .set(&mut kernel.loader(), false)
            .load(ANSWERS_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "answers",
                source: Box::new(source),
            })?;
        let hook = classifier(&mut ebpf, HOLD)?;
        let side = (&loopback(), Side::Arriving);
        netns
            .with(|| tc::attach(kernel.tcx(), &self.hold_pin(LOOPBACK), hook, HOLD, side))
            .map_err(KernelError::Descriptor)?
    }

    /// Detaches it. Without `netns` what is a filter stays, and holds nothing, since nothing is marked.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_hold(&self, netns: Option<&Netns>) -> Result<(), KernelError> {
        self.remove_all(&self.hold_pin(""), Side::Arriving, netns)
    }

    /// Whether it is attached: what is, not what should be.
    #[must_use]
    pub fn hold_attached(&self, netns: &Netns) -> bool {
        let side = (&loopback(), Side::Arriving);
        netns
            .with(|| tc::is_attached(&self.hold_pin(LOOPBACK), side))
            .unwrap_or(false)
    }

    /// Detaches it. Without `netns` what is a filter stays, and passes everything, since no map knows the pod.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_answers(&self, netns: Option<&Netns>) -> Result<(), KernelError> {
        self.remove_all(&self.answers_pin(""), Side::Leaving, netns)
    }

    /// Detaches `sk_lookup`: connections to the pod are the kernel's business again.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_lookup(&self) -> Result<(), KernelError> {
        link::detach(&self.lookup_pin())
    }

    /// Detaches guards and walls of all of the pod's interfaces. Without `netns` a wall that is a filter stays,
    /// and passes everything, since no map knows the pod.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_guards(&self, netns: Option<&Netns>) -> Result<(), KernelError> {
        for (pin, interface) in self.pins(&self.guard_pin("")) {
            tc::detach(&pin, &interface, Side::Arriving)?;
        }
        self.remove_all(&self.wall_pin(""), Side::Arriving, netns)
    }

    fn remove_all(
        &self,
        prefix: &Path,
        side: Side,
        netns: Option<&Netns>,
    ) -> Result<(), KernelError> {
        for (pin, interface) in self.pins(prefix) {
            match netns {
                Some(netns) => netns
                    .with(|| tc::detach(&pin, &interface, side))
                    .map_err(KernelError::Descriptor)??,
                None => link::detach(&pin)?,
            }
        }
        Ok(())
    }

    /// Pins whose path begins so, with what follows.
    fn pins(&self, prefix: &Path) -> Vec<(PathBuf, String)> {
        let Ok(pins) = std::fs::read_dir(&self.links) else {
            return Vec::new();
        };
        let pins = pins.filter_map(Result::ok).map(|entry| entry.path());
        let ours = pins.filter_map(|pin| {
            let name = pin.to_str()?.strip_prefix(prefix.to_str()?)?.to_owned();
            Some((pin, name))
        });
        ours.collect()
    }

    /// Whether `sk_lookup` is attached in this namespace and pinned: what is, not what should be.
    #[must_use]
    pub fn lookup_attached(&self, netns: &Netns) -> bool {
        link::target(&self.lookup_pin()).is_ok_and(|inode| netns.inode() == inode)
    }

    /// What the kernel says of the namespace that the pod's `sk_lookup` is attached in.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        match link::target(&self.lookup_pin()) {
            Ok(0) => Namespace::Gone,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Namespace::Unknown,
            Ok(_) | Err(_) => Namespace::Lives,
        }
    }

    fn lookup_pin(&self) -> PathBuf {
        self.links.join(format!("pod-{}-lookup", self.id))
    }

    fn answers_pin(&self, interface: &str) -> PathBuf {
        let interface = tc::pin_name(interface);
        self.links
            .join(format!("pod-{}-answers-{interface}", self.id))
    }

    fn hold_pin(&self, interface: &str) -> PathBuf {
        self.links.join(format!("pod-{}-hold-{interface}", self.id))
    }

    fn guard_pin(&self, interface: &str) -> PathBuf {
        let interface = tc::pin_name(interface);
        self.links
            .join(format!("pod-{}-guard-{interface}", self.id))
    }

    fn wall_pin(&self, interface: &str) -> PathBuf {
        let interface = tc::pin_name(interface);
        self.links.join(format!("pod-{}-wall-{interface}", self.id))
    }
}

fn loopback() -> End {
    End {
        index: abi::LOOPBACK_IFINDEX,
        name: LOOPBACK.to_owned(),
    }
}

fn classifier<'e>(
    ebpf: &'e mut aya::Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, KernelError> {
    let hook = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    let hook: &mut SchedClassifier = hook.try_into().map_err(program_error(name))?;
    hook.load().map_err(program_error(name))?;
    Ok(hook)
}

/// Removes the filters of clsact of all versions: those on the pods' own interfaces in `netns`, those on the
/// node's. Links end with their pins.
pub fn remove_filters(bpf_dir: &Path, netns: Option<&Netns>) {
    let kinds: &[(&str, Side)] = match netns {
        Some(_) => &[
            ("-wall-", Side::Arriving),
            ("-answers-", Side::Leaving),
            ("-hold-", Side::Arriving),
        ],
        None => &[("-guard-", Side::Arriving)],
    };
    let dirs = std::fs::read_dir(bpf_dir).into_iter().flatten();
    let links = dirs
        .filter_map(Result::ok)
        .map(|dir| dir.path().join("links"));
    let pins = links.flat_map(|links| std::fs::read_dir(links).into_iter().flatten());
    for pin in pins.filter_map(Result::ok).map(|pin| pin.path()) {
        let name = pin.file_name().and_then(|name| name.to_str());
        let kind = name.and_then(|name| {
            let found = kinds
                .iter()
                .map(|(kind, side)| (name.split_once(kind), side));
            found
                .filter_map(|(name, side)| Some((name?.1, *side)))
                .next()
        });
        let Some((interface, side)) = kind else {
            continue;
        };
        match netns {
            Some(netns) => drop(netns.with(|| tc::remove_filter(interface, side))),
            None => tc::remove_filter(interface, side),
        }
    }
}
