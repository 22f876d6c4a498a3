//! How memory that is used once is given back to the kernel.
#![expect(unsafe_code, reason = "the allocator's own interface has no safe form")]

use std::fs;
use std::time::{Duration, Instant};

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
/// back from the page cache when it is: microseconds for each 64 KiB.
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

/// Keeps a process small for as long as it is polled, which should be on a thread whose delay nobody feels. What the
/// start needed is given back once; after that, whatever is resident and in nobody's hands as soon as it has grown by
/// more than a part of what is in use: what a large change of the configuration has used, or connections that are gone.
pub async fn keep_small() {
    tokio::time::sleep(STARTED).await;
    give_back();
    forget_start();
    let mut forgotten = tokio::time::Instant::now();
    let mut left = idle();
    let mut wait = LOOK_EVERY;
    let mut is_quiet = true;
    loop {
        tokio::time::sleep(wait).await;
        let began = Instant::now();
        let idle = idle();
        // Pages that hold something beside what is free cannot be given back, nor what is no heap's: not again.
        if idle > left.saturating_add(worth(in_use())) {
            give_back();
            left = self::idle();
            is_quiet = false;
        } else {
            left = left.min(idle);
            // What did that work is not needed any more either.
            if !is_quiet && forgotten.elapsed() >= FORGET_EVERY {
                forget_start();
                forgotten = tokio::time::Instant::now();
                is_quiet = true;
            }
        }
        // The allocator looks at every piece that is free, and whoever allocates waits for it.
        wait = LOOK_EVERY.max(began.elapsed() * SHARE);
    }
}

/// After this time a program is as it will stay.
const STARTED: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A part of the time of this size goes into looking, at most.
const SHARE: u32 = 500;
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Less is not worth the locks that whoever allocates waits for.
const LEAST: usize = 512 << 10;

/// How many idle bytes are worth giving back, beside those in use.
fn worth(in_use: usize) -> usize {
    (in_use / 16).max(LEAST)
}

/// Resident bytes that are no file's and that nobody has asked the allocator for: what it keeps for later, stacks, and
/// its own books. 0 where `/proc` does not say (proc_pid_statm(5)).
fn idle() -> usize {
    let told = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    anonymous(&told).saturating_sub(in_use())
}

/// Resident bytes that are no file's, by the line of `statm`: size, resident, shared, in pages.
fn anonymous(statm: &str) -> usize {
    let mut pages = statm.split_whitespace().skip(1).map(str::parse::<usize>);
    let (Some(Ok(resident)), Some(Ok(shared))) = (pages.next(), pages.next()) else {
        return 0;
    };
    // SAFETY: it reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    resident.saturating_sub(shared) * usize::try_from(page).unwrap_or(0)
}

/// Bytes that the allocator has handed out and not got back (`mallinfo2(3)`), over all threads.
#[must_use]
pub fn in_use() -> usize {
    // SAFETY: it reads the allocator's own numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks.saturating_add(info.hblkhd)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once many small things are freed that lie before something that is kept, the allocator does not give their pages
    /// back by itself.
    #[tokio::test(start_paused = true)]
    async fn what_has_been_freed_goes_back_to_the_kernel() {
        let keeper = tokio::spawn(keep_small());
        tokio::time::sleep(STARTED + LOOK_EVERY * 2).await;
        let before = idle();
        let many: Vec<Box<[u8; 1000]>> = (0..64_000).map(|_| Box::new([1; 1000])).collect();
        let last = Box::new([1_u8; 1000]);
        drop(many);
        let freed = idle();
        assert!(
            freed > before + (48 << 20),
            "{freed} bytes are idle, {before} were before: the allocator has given them back, and nothing is tested"
        );
        tokio::time::sleep(LOOK_EVERY * 2).await;
        let after = idle();
        assert!(
            after < before + (8 << 20),
            "{after} bytes are idle, {before} were before"
        );
        drop(last);
        keeper.abort();
    }

    #[test]
    fn resident_memory_of_no_file_is_what_is_not_shared() {
        // SAFETY: it reads a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        assert_eq!(anonymous("9000 300 100 50 0 400 0\n"), 200 * page);
        assert_eq!(anonymous("9000 100 300 50 0 400 0\n"), 0);
        assert_eq!(anonymous(""), 0);
    }
}
