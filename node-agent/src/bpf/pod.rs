//! The programs of one pod: `sk_lookup` in its network namespace, what looks at answers, and the entries of the programs
//! that all pods share ([`super::shared`]): the guard on the node's end of its interface, the inbound half of the wall on
//! its own, what holds SYNs on its `lo`.

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use abi::Addr;
use aya::{
    Ebpf,
    programs::{SchedClassifier, SkLookup, links::FdLink},
};

use super::{
    Kernel, KernelError, link,
    node::{program, program_error},
    tc::{self, Side},
};
use crate::host::{
    netns::Netns,
    veth::{End, Pair},
};

pub(super) static POD_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.bpf.o"));

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
    fn keep(pod: u32, own: &[IpAddr]) -> &'static Self {
        let words = |v4: bool| {
            let own = own.iter().map(IpAddr::to_canonical);
            let first = own.filter(|ip| ip.is_ipv4() == v4).map(Addr::from).next();
            first.map_or([0; 4], |addr| addr.words)
        };
        Box::leak(Box::new(Self {
            pod,
            own_v4: words(true)[3],
            own_v6: words(false),
        }))
    }
}

fn load(kernel: &Kernel, constants: &'static Constants) -> Result<Ebpf, KernelError> {
    let mut loader = kernel.loader();
    loader
        .override_global("POD", &constants.pod, true)
        .override_global("OWN_V4", &constants.own_v4, true)
        .override_global("OWN_V6", &constants.own_v6, true);
    loader.load(POD_OBJECT).map_err(|source| KernelError::Load {
        object: "pod",
        source: Box::new(source),
    })
}

/// Has the kernel look at the programs of a pod, and attaches none.
///
/// # Errors
/// When the kernel refuses one; the error says which.
pub fn try_pod_programs(kernel: &Kernel) -> Result<(), KernelError> {
    let mut ebpf = load(kernel, Constants::keep(0, &[]))?;
    lookup(&mut ebpf)?;
    for name in [ANSWERS, GUARD, WALL, HOLD] {
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

    /// Brings the pod's programs to the kernel, those that will be attached. `own` are the addresses that the cluster
    /// gave to the pod; the first of each family costs no lookup.
    ///
    /// # Errors
    /// When the kernel refuses the object.
    pub fn load(&self, kernel: &Kernel, own: &[IpAddr]) -> Result<Loaded, KernelError> {
        Ok(Loaded {
            ebpf: load(kernel, Constants::keep(self.id, own))?,
            programs: self.clone(),
        })
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

/// The programs of one pod, to be attached. What is attached and pinned outlives this value.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
    programs: PodPrograms,
}

impl Loaded {
    /// Attaches `sk_lookup` in the pod's network namespace, or replaces the one that is there.
    ///
    /// # Errors
    /// When the kernel refuses the program or the attachment.
    pub fn attach_lookup(&mut self, netns: &Netns) -> Result<(), KernelError> {
        let pin = self.programs.lookup_pin();
        if link::target(&pin).is_ok_and(|inode| netns.inode() != inode) {
            // Left by a pod that had this number before: an update would replace its program there.
            self.programs.detach_lookup()?;
        }
        let hook = lookup(&mut self.ebpf)?;
        let fd = hook
            .fd()
            .map_err(program_error(LOOKUP))?
            .try_clone()
            .map_err(KernelError::Descriptor)?;
        link::ensure(&pin, fd.as_fd(), || {
            let id = hook.attach(netns).map_err(program_error(LOOKUP))?;
            let link = hook.take_link(id).map_err(program_error(LOOKUP))?;
            Ok(FdLink::from(link))
        })
    }

    /// Attaches the guard to the node's end of each interface of the pod. With `netns` the inbound half of
    /// the wall is attached to the pod's ends too.
    ///
    /// # Errors
    /// When the kernel refuses a program or an attachment.
    pub fn attach_guards(
        &mut self,
        kernel: &Kernel,
        pairs: &[Pair],
        netns: Option<&Netns>,
    ) -> Result<(), KernelError> {
        let Self { ebpf, programs } = self;
        let guard = classifier(ebpf, GUARD)?;
        for Pair { node, .. } in pairs {
            tc::attach(
                kernel.tcx(),
                &programs.guard_pin(&node.name),
                guard,
                GUARD,
                (node, Side::Arriving),
            )?;
        }
        let Some(netns) = netns else {
            return programs.remove_all(&programs.wall_pin(""), Side::Arriving, None);
        };
        let wall = classifier(ebpf, WALL)?;
        for Pair { pod, .. } in pairs {
            let pin = programs.wall_pin(&pod.name);
            netns
                .with(|| tc::attach(kernel.tcx(), &pin, wall, WALL, (pod, Side::Arriving)))
                .map_err(KernelError::Descriptor)??;
        }
        Ok(())
    }

    /// Attaches what keeps those behind the pod from answering in its name, to interfaces of the pod by which
    /// it is reached from outside.
    ///
    /// # Errors
    /// When the kernel refuses the program or an attachment.
    pub fn attach_answers(
        &mut self,
        kernel: &Kernel,
        netns: &Netns,
        interfaces: &[String],
    ) -> Result<(), KernelError> {
        let hook = classifier(&mut self.ebpf, ANSWERS)?;
        for interface in interfaces {
            let pin = self.programs.answers_pin(interface);
            netns
                .with(|| {
                    let interface = End {
                        index: nix::net::if_::if_nametoindex(interface.as_str())
                            .map_err(|error| KernelError::Descriptor(error.into()))?,
                        name: interface.clone(),
                    };
                    let side = (&interface, Side::Leaving);
                    tc::attach(kernel.tcx(), &pin, hook, ANSWERS, side)
                })
                .map_err(KernelError::Descriptor)??;
        }
        Ok(())
    }

    /// Attaches what holds the SYNs of carried connections, to the pod's `lo`.
    ///
    /// # Errors
    /// When the kernel refuses the program or the attachment.
    pub fn attach_hold(&mut self, kernel: &Kernel, netns: &Netns) -> Result<(), KernelError> {
        let hook = classifier(&mut self.ebpf, HOLD)?;
        let pin = self.programs.hold_pin(LOOPBACK);
        let side = (&loopback(), Side::Arriving);
        netns
            .with(|| tc::attach(kernel.tcx(), &pin, hook, HOLD, side))
            .map_err(KernelError::Descriptor)?
    }
}

fn loopback() -> End {
    End {
        index: abi::LOOPBACK_IFINDEX,
        name: LOOPBACK.to_owned(),
    }
}

/// The program, in the kernel.
fn lookup(ebpf: &mut Ebpf) -> Result<&mut SkLookup, KernelError> {
    let hook: &mut SkLookup = program(ebpf, LOOKUP)?;
    if hook.fd().is_err() {
        hook.load().map_err(program_error(LOOKUP))?;
    }
    Ok(hook)
}

/// The program, in the kernel.
pub(super) fn classifier<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, KernelError> {
    let hook: &mut SchedClassifier = program(ebpf, name)?;
    if hook.fd().is_err() {
        hook.load().map_err(program_error(name))?;
    }
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
