//! Reads a ring buffer of the kernel, of which it maps each page once: aya maps the data twice in a row, so
//! that no item wraps, which counts twice as memory of the process.

#![expect(
    unsafe_code,
    reason = "memory that the kernel writes is mapped and read"
)]

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;

use super::mapping::Mapping;

/// `BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT`, `BPF_RINGBUF_HDR_SZ`, include/uapi/linux/bpf.h.
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: u64 = 8;

/// The consumer's end of a ring buffer. There is one at a time.
pub(super) struct Ring {
    /// Keeps the map open.
    _map: MapData,
    /// A page with how far has been read.
    consumer: Mapping,
    /// A page with how far has been written, and the data.
    producer: Mapping,
    page: usize,
    size: u64,
}

impl Ring {
    /// Maps a ring buffer with room for `size` bytes, a power of two.
    pub(super) fn new(map: MapData, size: u32) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|page| usize::try_from(page).ok())
            .ok_or_else(|| io::Error::other("the size of a page is not known"))?;
        let data = usize::try_from(size).map_err(io::Error::other)?;
        if !size.is_power_of_two() || data < page {
            return Err(io::Error::other("not the size of a ring buffer"));
        }
        let fd = map.fd().as_fd();
        let write = libc::PROT_READ | libc::PROT_WRITE;
        Ok(Self {
            consumer: Mapping::new(fd, page, 0, write)?,
            producer: Mapping::new(fd, page + data, page, libc::PROT_READ)?,
            _map: map,
            page,
            size: u64::from(size),
        })
    }

    /// Takes all items that have been written, each as its first `N` bytes; shorter ones are left out.
    pub(super) fn read<const N: usize>(&mut self, mut each: impl FnMut(&[u8; N])) {
        // SAFETY: the page begins with this number, which only the owner of the ring writes.
        let consumer = unsafe { self.consumer.start.cast::<AtomicU64>().as_ref() };
        // SAFETY: the page begins with this number, which the kernel writes as a whole.
        let producer = unsafe { self.producer.start.cast::<AtomicU64>().as_ref() };
        let mut at = consumer.load(Ordering::Relaxed);
        while at < producer.load(Ordering::Acquire) {
            let header = self.header(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let length = u64::from(header & !(BUSY | DISCARD));
            if header & DISCARD == 0 && usize::try_from(length).is_ok_and(|length| length >= N) {
                let mut item = [0; N];
                self.copy(at + HEADER, &mut item);
                each(&item);
            }
            at += (HEADER + length).next_multiple_of(8);
            consumer.store(at, Ordering::Release);
        }
    }

    /// Items begin at multiples of eight, so that no header wraps.
    fn header(&self, at: u64) -> &AtomicU32 {
        let start = self.data(at).cast::<AtomicU32>();
        // SAFETY: it lies within the mapping, is aligned, and the kernel writes it as a whole.
        unsafe { start.as_ref() }
    }

    /// Copies what was written at `from` and has not been given back to the kernel.
    fn copy(&self, from: u64, to: &mut [u8]) {
        let left = usize::try_from(self.size - (from & (self.size - 1))).unwrap_or(usize::MAX);
        let (first, second) = to.split_at_mut(left.min(to.len()));
        // What does not fit before the end goes on at the beginning.
        for (from, part) in [(from, first), (0, second)] {
            // SAFETY: the part lies within the data, since it does not wrap, and the kernel does not
            // write to it before it is given back.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.data(from).as_ptr(),
                    part.as_mut_ptr(),
                    part.len(),
                );
            }
        }
    }

    fn data(&self, at: u64) -> NonNull<u8> {
        let offset = usize::try_from(at & (self.size - 1)).unwrap_or(0);
        // SAFETY: the mapping is a page and `size` bytes long, and the offset is below `size`.
        unsafe { self.producer.start.add(self.page + offset) }
    }
}
