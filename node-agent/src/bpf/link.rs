//! Pinned links: attach once, replace the program in place afterwards.

#![expect(
    unsafe_code,
    reason = "BPF_LINK_UPDATE and mount are not offered by a safe library"
)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya::programs::links::FdLink;

use super::KernelError;

/// `enum bpf_cmd`, include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Of `enum bpf_attach_type`, include/uapi/linux/bpf.h.
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// The `BPF_OBJ_*` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The `link_create` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The `link_update` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The `link_detach` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// The `info` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info` with its member `netns` or `tcx`, include/uapi/linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    /// `netns.netns_ino`, `tcx.ifindex`.
    target: u32,
    attach_type: u32,
}

/// What the link pinned at `pin` is attached to: the inode number of a network namespace, or for tcx the index
/// of an interface; 0 once that is gone. The link does not keep it alive.
pub(super) fn target(pin: &Path) -> io::Result<u32> {
    let link = get(pin)?;
    let mut info = LinkInfo::default();
    let attr = InfoByFd {
        bpf_fd: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `attr` and `info` outlive the call, their sizes are given, the kernel reads the one and
    // writes no more than its size into the other.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attr,
            size_of::<InfoByFd>(),
        )
    };
    if result == 0 {
        Ok(info.target)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes `program` the program of the link pinned at `pin`, attaching it if there is none yet.
///
/// Replacing is atomic: each event sees the old program or the new one, never none or both.
pub(super) fn ensure(
    pin: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, KernelError>,
) -> Result<(), KernelError> {
    ensure_pinned(pin, program, || {
        let pinned = attach()?.pin(pin).map_err(|e| KernelError::Link {
            pin: pin.to_owned(),
            source: io::Error::other(e),
        })?;
        drop(pinned);
        Ok(())
    })
}

/// As [`ensure`], for a program of `cgroup/setsockopt`, whose links aya does not give out.
pub(super) fn ensure_setsockopt(
    pin: &Path,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    ensure_pinned(pin, program, || {
        create(program, cgroup, BPF_CGROUP_SETSOCKOPT)
            .and_then(|link| keep(link.as_fd(), pin))
            .map_err(|source| KernelError::Link {
                pin: pin.to_owned(),
                source,
            })
    })
}

fn ensure_pinned(
    pin: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let at = |source| KernelError::Link {
        pin: pin.to_owned(),
        source,
    };
    if pin.exists() {
        let link = get(pin).map_err(at)?;
        // Closing the descriptor afterwards leaves the pin, which keeps the attachment.
        match update(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            // The link's target (a cgroup, a namespace) is gone: attach anew.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                std::fs::remove_file(pin).map_err(at)?;
            }
            Err(error) => return Err(at(error)),
        }
    }
    if let Some(parent) = pin.parent() {
        std::fs::create_dir_all(parent).map_err(at)?;
    }
    attach()
}

/// Detaches the link that is pinned at `pin`; nothing there is fine. Without its pin a link ends too, but by a
/// worker of the kernel: on a busy node its program is asked for a while still (200 ms were seen), and several
/// links end in no order.
pub(super) fn detach(pin: &Path) -> Result<(), KernelError> {
    let link = get(pin);
    remove(pin)?;
    if let Ok(link) = link
        && let Err(error) = end(link.as_fd())
    {
        // It ends with its last reference.
        tracing::debug!(pin = %pin.display(), %error, "cannot detach a link at once");
    }
    Ok(())
}

/// Removes a pin; nothing there is fine.
pub(super) fn remove(pin: &Path) -> Result<(), KernelError> {
    match std::fs::remove_file(pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KernelError::Link {
            pin: pin.to_owned(),
            source,
        }),
    }
}

/// Opens a pinned object. aya opens pinned links too, but keeps their descriptors to itself.
fn get(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let attr = ObjGet {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `attr` and the path it points to outlive the call, the size is given, and the kernel
    // only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            &raw const attr,
            size_of::<ObjGet>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: number(program)?,
        target_fd: number(target)?,
        attach_type,
        flags: 0,
    };
    // SAFETY: `attr` outlives the call, its size is given, and the kernel only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const attr,
            size_of::<LinkCreate>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a link.
fn keep(link: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let attr = ObjGet {
        pathname: path.as_ptr() as u64,
        bpf_fd: number(link)?,
        file_flags: 0,
    };
    // SAFETY: `attr` and the path it points to outlive the call, the size is given, and the kernel
    // only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_PIN,
            &raw const attr,
            size_of::<ObjGet>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: number(link)?,
        new_prog_fd: number(program)?,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `attr` outlives the call, its size is given, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_UPDATE,
            &raw const attr,
            size_of::<LinkUpdate>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn end(link: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkDetach {
        link_fd: number(link)?,
    };
    // SAFETY: `attr` outlives the call, its size is given, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            &raw const attr,
            size_of::<LinkDetach>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Mounts a BPF file system at `/sys/fs/bpf` if `dir` is on none.
///
/// # Errors
/// When `dir` is not on a BPF file system and none can be mounted for it.
pub fn mount_if_absent(dir: &Path) -> io::Result<()> {
    /// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
    const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
    let root = Path::new("/sys/fs/bpf");
    let is_bpf = |path: &Path| {
        nix::sys::statfs::statfs(path).is_ok_and(|fs| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the kernel's magic numbers have 32 bits"
            )]
            let magic = fs.filesystem_type().0 as u32;
            magic == BPF_FS_MAGIC
        })
    };
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(root);
    if is_bpf(existing) {
        return Ok(());
    }
    if !dir.starts_with(root) {
        return Err(io::Error::other(format!(
            "{} is not on a BPF file system; use a directory below {}",
            dir.display(),
            root.display()
        )));
    }
    let target = CString::new("/sys/fs/bpf")?;
    // SAFETY: all arguments are NUL-terminated strings or null, and outlive the call.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
