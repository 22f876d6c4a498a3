//! Attaches a program to what arrives at an interface or leaves by it: by a pinned tcx link, or as a filter of clsact where
//! the kernel has no tcx (before 6.6).
//!
//! A filter is no link: it stays without anybody, is found by a fixed number, and its program is pinned to
//! show on which interface it is.

use std::{
    ffi::OsStr,
    io,
    mem::ManuallyDrop,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use aya::programs::{
    Link as _, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::FdLink,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle as Handle, TcMessage},
};

use super::{KernelError, link, node::program_error};
use crate::host::{netlink::Netlink, veth::End};

/// The handle that tells our filters from others at their priority.
const HANDLE: u16 = 0x4b45;
/// Marks the pin of a filter's program.
const FILTER: &str = "-clsact";
/// What a program looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// What arrives, before anybody else's programs.
    Arriving,
    /// What leaves, after anybody else's.
    Leaving,
}

impl Side {
    const fn hook(self) -> TcAttachType {
        match self {
            Self::Arriving => TcAttachType::Ingress,
            Self::Leaving => TcAttachType::Egress,
        }
    }

    fn order(self) -> LinkOrder {
        match self {
            Self::Arriving => LinkOrder::first(),
            Self::Leaving => LinkOrder::last(),
        }
    }

    /// Of a filter: before any that a CNI is known to use, or after.
    const fn priority(self) -> u16 {
        match self {
            Self::Arriving => 1,
            Self::Leaving => 0xc000,
        }
    }

    /// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` or `TC_H_MIN_EGRESS`, include/uapi/linux/pkt_sched.h.
    const fn parent(self) -> Handle {
        Handle {
            major: 0xffff,
            minor: match self {
                Self::Arriving => 0xfff2,
                Self::Leaving => 0xfff3,
            },
        }
    }
}

/// Whether tcx shall be tried; until the kernel says that it has none.
#[derive(Debug)]
pub(super) struct Tcx(AtomicBool);

impl Tcx {
    pub(super) fn new(wanted: bool) -> Self {
        Self(AtomicBool::new(wanted))
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn is_missing(&self) {
        if self.0.swap(false, Ordering::Relaxed) {
            tracing::info!("this kernel has no tcx: interfaces are guarded by clsact");
        }
    }
}

/// Attaches `hook` to the interface in this thread's namespace, or replaces the program that is there.
pub(super) fn attach(
    tcx: &Tcx,
    pin: &Path,
    hook: &mut SchedClassifier,
    name: &'static str,
    (interface, side): (&End, Side),
) -> Result<(), KernelError> {
    if tcx.is_there() {
        match attach_link(pin, hook, name, (interface, side)) {
            Err(KernelError::Program { source, .. }) if is_unknown(&source) => tcx.is_missing(),
            result => return result,
        }
    }
    attach_filter(&filter_pin(pin), hook, interface, side).map_err(program_error(name))
}

/// What the kernel says to an attach type that it does not know.
fn is_unknown(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(libc::EINVAL))
}

fn attach_link(
    pin: &Path,
    hook: &mut SchedClassifier,
    name: &'static str,
    (interface, side): (&End, Side),
) -> Result<(), KernelError> {
    if link::target(pin).is_ok_and(|index| index != interface.index) {
        // Left by a pod that had this number before, or by an interface that had this name.
        link::detach(pin)?;
    }
    let fd = hook
        .fd()
        .map_err(program_error(name))?
        .try_clone()
        .map_err(KernelError::Descriptor)?;
    link::ensure(pin, fd.as_fd(), || {
        let options = TcAttachOptions::TcxOrder(side.order());
        let id = hook
            .attach_with_options(&interface.name, side.hook(), options)
            .map_err(program_error(name))?;
        let link = hook.take_link(id).map_err(program_error(name))?;
        FdLink::try_from(link).map_err(|e| KernelError::Descriptor(io::Error::other(e)))
    })
}

fn attach_filter(
    pin: &Path,
    hook: &mut SchedClassifier,
    interface: &End,
    side: Side,
) -> Result<(), ProgramError> {
    let id = match filter(&interface.name, side).map(|there| hook.attach_to_link(there)) {
        Ok(Ok(replaced)) => replaced,
        Ok(Err(_)) | Err(_) => {
            // Somebody may have made it already; what else is wrong shows in the next step.
            drop(qdisc_add_clsact(&interface.name));
            let options = NlOptions {
                priority: side.priority(),
                handle: TcHandle::new(0, HANDLE),
                classid: None,
            };
            let options = TcAttachOptions::Netlink(options);
            hook.attach_with_options(&interface.name, side.hook(), options)?
        }
    };
    // It stays when this agent ends.
    let _stays = ManuallyDrop::new(hook.take_link(id)?);
    if pin.exists() {
        drop(std::fs::remove_file(pin));
    }
    hook.pin(pin).map_err(|error| {
        ProgramError::IOError(io::Error::other(format!("{}: {error}", pin.display())))
    })
}

/// Our filter on an interface of this thread's namespace, whether there is one or not.
fn filter(interface: &str, side: Side) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::new(0, HANDLE);
    SchedClassifierLink::attached(interface, side.hook(), side.priority(), handle, None)
}

/// Whether the program that is pinned is attached to the interface: what is, not what should be.
pub(super) fn is_attached(pin: &Path, (interface, side): (&End, Side)) -> bool {
    link::target(pin).is_ok_and(|index| index == interface.index)
        || (filter_pin(pin).exists() && has_filter(interface.index, side).unwrap_or(false))
}

fn has_filter(index: u32, side: Side) -> io::Result<bool> {
    let mut message = TcMessage::with_index(i32::try_from(index).map_err(io::Error::other)?);
    message.header.parent = side.parent();
    let filters = Netlink::open()?.dump(RouteNetlinkMessage::GetTrafficFilter(message))?;
    Ok(filters.iter().any(|filter| match filter {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            let Handle { major, minor } = filter.header.handle;
            (major, minor) == (0, HANDLE) && filter.header.info >> 16 == u32::from(side.priority())
        }
        _ => false,
    }))
}

/// Removes what is pinned at `pin` for an interface, with the filter if it is one.
pub(super) fn detach(pin: &Path, interface: &str, side: Side) -> Result<(), KernelError> {
    remove_filter(interface, side);
    link::detach(pin)
}

/// Removes our filter from an interface of this thread's namespace that is named as a pin names it.
pub(super) fn remove_filter(interface: &str, side: Side) {
    if let Some(interface) = interface.strip_suffix(FILTER)
        && let Ok(filter) = filter(interface, side)
    {
        // It is gone with its interface.
        drop(filter.detach());
    }
}

fn filter_pin(pin: &Path) -> PathBuf {
    let mut name = pin.file_name().unwrap_or_else(|| OsStr::new("")).to_owned();
    name.push(FILTER);
    pin.with_file_name(name)
}

/// The part of a pin's name that names an interface: a BPF file system takes no dots.
pub(super) fn pin_name(interface: &str) -> String {
    interface.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_of_a_filter_lies_beside_that_of_a_link() {
        let pin = Path::new("/sys/fs/bpf/x/links/pod-1-guard-eth0");
        let filter = Path::new("/sys/fs/bpf/x/links/pod-1-guard-eth0-clsact");
        assert_eq!(filter_pin(pin), filter);
        assert_eq!(pin_name("eth0.5"), "eth0_5");
    }
}
