//! Memory of the kernel's maps, mapped into the agent.

#![expect(unsafe_code, reason = "memory that the kernel shares is mapped")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
};

/// Mapped memory.
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to whoever has this value, on whichever thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of what `fd` is, from `offset` on.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        length: usize,
        offset: usize,
        access: libc::c_int,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                access,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody else has the address, and it was mapped with this length.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        if unmapped != 0 {
            tracing::debug!("a map of the kernel stays mapped");
        }
    }
}
