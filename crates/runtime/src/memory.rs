//! How memory that is used once is given back to the kernel.
#![expect(unsafe_code, reason = "the allocator's own interface has no safe form")]

/// Returns freed memory to the kernel (`malloc_trim(3)`). Call it after rare work that needed much:
/// reading the kernel's type information takes 20 MiB that the allocator would keep for good.
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
