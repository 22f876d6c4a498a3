//! How memory that is used once is given back to the kernel.
#![expect(unsafe_code, reason = "the allocator's own interface has no safe form")]

/// Buffers from this size on, in bytes, are mapped and unmapped one by one.
const MAPPED: libc::c_int = 1 << 20;

/// Size of a page in bytes. Where it is larger the kernel refuses what is asked with this one.
const PAGE: u64 = 4096;

/// Free bytes at the end of a heap that are kept for the next use.
const KEPT: libc::c_int = 4 << 20;

/// Keeps large buffers out of the heaps. Call it before other threads start. The allocator would
/// otherwise raise both limits with each large buffer that it sees (`mallopt(3)`), and a heap that
/// once held some is not given back as long as anything small lies behind them.
pub fn map_large_buffers() {
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, KEPT),
    ] {
        // SAFETY: it sets a number of the allocator's, and no other thread runs yet.
        let set = unsafe { libc::mallopt(parameter, value) };
        if set == 0 {
            tracing::debug!(parameter, "the allocator does not take this limit");
        }
    }
}

/// Lets go of the pages of the program that only its start needed. What is executed or read again comes
/// back from the page cache when it is: microseconds for each 64 KiB. Call it once, when the program is
/// as it will stay.
pub fn forget_start() {
    // SAFETY: the callback is a function of this program with the type that is asked for, and the pointer
    // that it gets is not used.
    unsafe { libc::dl_iterate_phdr(Some(forget_object), std::ptr::null_mut()) };
}

unsafe extern "C" fn forget_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader hands out a description that is valid during the call.
    let info = unsafe { &*info };
    // SAFETY: there are `dlpi_phnum` headers, valid as long as `info`.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        // Never written to, so that the file holds what memory holds.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let begin = info.dlpi_addr.wrapping_add(header.p_vaddr) & !(PAGE - 1);
        let end = info.dlpi_addr.wrapping_add(header.p_vaddr + header.p_memsz);
        let size = usize::try_from(end.saturating_sub(begin)).unwrap_or(0);
        // SAFETY: it is a mapping of a file that stays mapped, and is read from there again.
        let dropped =
            unsafe { libc::madvise(begin as *mut libc::c_void, size, libc::MADV_DONTNEED) };
        if dropped != 0 {
            tracing::debug!(size, "pages of the program stay in memory");
        }
    }
    0
}

/// Returns freed memory to the kernel (`malloc_trim(3)`). Call it after rare work that needed much:
/// reading the kernel's type information takes 20 MiB that the allocator would keep for good.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes that the allocator has handed out and not got back (`mallinfo2(3)`), over all threads.
#[must_use]
pub fn in_use() -> usize {
    // SAFETY: it reads the allocator's own numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks.saturating_add(info.hblkhd)
}
