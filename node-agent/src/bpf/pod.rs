//! The programs of one pod: `sk_lookup` in its network namespace, the guard on the node's end of its
//! interface.

use std::{io, net::IpAddr, os::fd::AsFd, path::PathBuf};

use abi::Addr;
use aya::{
    EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, SkLookup, TcAttachType, links::FdLink, tc::TcAttachOptions,
    },
};

use super::{Kernel, KernelError, link, node::program_error};
use crate::netns::Netns;

static POD_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.bpf.o"));
static VETH_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veth.bpf.o"));

const LOOKUP: &str = "sk_lookup_pod";
const GUARD: &str = "tcx_source_guard";

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
        if link::netns_inode(&self.lookup_pin()).is_ok_and(|inode| netns.inode() != inode) {
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

    /// Attaches the source guard to the node's end of the pod's interface. `own` are the addresses that
    /// the cluster gave to the pod; the first of each family costs no lookup.
    ///
    /// # Errors
    /// When the kernel refuses the program or the attachment.
    pub fn attach_guard(
        &self,
        kernel: &Kernel,
        interface: &str,
        own: &[IpAddr],
    ) -> Result<(), KernelError> {
        let words = |v4: bool| {
            let own = own.iter().map(IpAddr::to_canonical);
            let first = own.filter(|ip| ip.is_ipv4() == v4).map(Addr::from).next();
            first.map_or([0; 4], |addr| addr.words)
        };
        let (v4, v6) = (words(true)[3], words(false));
        let constants = Constants::keep(self.id, v4, v6);
        let mut ebpf = constants
            .set(&mut kernel.loader(), true)
            .load(VETH_OBJECT)
            .map_err(|source| KernelError::Load {
                object: "veth",
                source: Box::new(source),
            })?;
        let hook = ebpf
            .program_mut(GUARD)
            .ok_or(KernelError::NoProgram(GUARD))?;
        let hook: &mut SchedClassifier = hook.try_into().map_err(program_error(GUARD))?;
        hook.load().map_err(program_error(GUARD))?;
        let fd = hook
            .fd()
            .map_err(program_error(GUARD))?
            .try_clone()
            .map_err(KernelError::Descriptor)?;
        link::ensure(&self.guard_pin(interface), fd.as_fd(), || {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = hook
                .attach_with_options(interface, TcAttachType::Ingress, options)
                .map_err(program_error(GUARD))?;
            let link = hook.take_link(id).map_err(program_error(GUARD))?;
            FdLink::try_from(link).map_err(|e| KernelError::Descriptor(io::Error::other(e)))
        })
    }

    /// Detaches `sk_lookup`: connections to the pod are the kernel's business again.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_lookup(&self) -> Result<(), KernelError> {
        link::remove(&self.lookup_pin())
    }

    /// Detaches the source guards of all of the pod's interfaces.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_guards(&self) -> Result<(), KernelError> {
        let prefix = self.guard_pin("");
        let Ok(pins) = std::fs::read_dir(&self.links) else {
            return Ok(());
        };
        for pin in pins.filter_map(Result::ok).map(|entry| entry.path()) {
            let ours = pin
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(prefix.as_os_str().as_encoded_bytes());
            if ours {
                link::remove(&pin)?;
            }
        }
        Ok(())
    }

    /// Whether `sk_lookup` is attached in this namespace and pinned: what is, not what should be.
    #[must_use]
    pub fn lookup_attached(&self, netns: &Netns) -> bool {
        link::netns_inode(&self.lookup_pin()).is_ok_and(|inode| netns.inode() == inode)
    }

    /// What the kernel says of the namespace that the pod's `sk_lookup` is attached in.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        match link::netns_inode(&self.lookup_pin()) {
            Ok(0) => Namespace::Gone,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Namespace::Unknown,
            Ok(_) | Err(_) => Namespace::Lives,
        }
    }

    fn lookup_pin(&self) -> PathBuf {
        self.links.join(format!("pod-{}-lookup", self.id))
    }

    fn guard_pin(&self, interface: &str) -> PathBuf {
        self.links
            .join(format!("pod-{}-guard-{interface}", self.id))
    }
}
