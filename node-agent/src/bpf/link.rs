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
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// The `BPF_OBJ_*` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The `link_update` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The `info` member of `union bpf_attr`, include/uapi/linux/bpf.h.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info` with its member `netns`, include/uapi/linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct NetnsLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    netns_ino: u32,
    attach_type: u32,
}

/// The inode number of the network namespace that the link pinned at `pin` is attached to; 0 once that
/// namespace is gone. The link does not keep it alive.
pub(super) fn netns_inode(pin: &Path) -> io::Result<u32> {
    let link = get(pin)?;
    let mut info = NetnsLinkInfo::default();
    let attr = InfoByFd {
        bpf_fd: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of::<NetnsLinkInfo>()).map_err(io::Error::other)?,
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
        Ok(info.netns_ino)
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
    let pinned = attach()?.pin(pin).map_err(|e| at(io::Error::other(e)))?;
    drop(pinned);
    Ok(())
}

/// Detaches what is pinned at `pin`; nothing there is fine.
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

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let fd = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).map_err(io::Error::other);
    let attr = LinkUpdate {
        link_fd: fd(link)?,
        new_prog_fd: fd(program)?,
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
