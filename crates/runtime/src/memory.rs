//! How memory that is used once is given back to the kernel.
#![expect(unsafe_code, reason = "the allocator's own interface has no safe form")]

/// Buffers from this size on, in bytes, are mapped and unmapped one by one.
const MAPPED: libc::c_int = 1 << 20;

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

/// Returns freed memory to the kernel (`malloc_trim(3)`). Call it after rare work that needed much:
/// reading the kernel's type information takes 20 MiB that the allocator would keep for good.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
