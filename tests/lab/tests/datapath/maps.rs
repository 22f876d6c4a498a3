//! How many entries the pinned maps of an agent hold, asked of the kernel.

#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe wrapper that works for any key size"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The pinned maps below a directory, or the one that is named, whose number of entries can change, with
/// that number.
pub(crate) fn entries(directory: &Path) -> Result<Vec<(String, usize)>> {
    let mut counts = Vec::new();
    if directory.is_file() {
        counts.extend(count(directory)?.map(|count| (directory.display().to_string(), count)));
        return Ok(counts);
    }
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let listed = fs::read_dir(&directory);
        for entry in listed.with_context(|| format!("reading {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if let Some(count) = count(&path)? {
                counts.push((path.display().to_string(), count));
            }
        }
    }
    counts.sort();
    ensure!(
        !counts.is_empty(),
        "no map is pinned below {}",
        directory.display()
    );
    Ok(counts)
}

/// How many bytes the values of a pinned map have.
pub(crate) fn value_size(path: &Path) -> Result<u32> {
    let info = information(&open(path)?)?;
    number(&info, "value_size:").context("the kernel names no size")
}

/// What the kernel says of a map.
fn information(map: &OwnedFd) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))
}

fn number(info: &str, name: &str) -> Option<u32> {
    let value = info.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

/// Puts entries into a pinned map until it is full; how many it took.
pub(crate) fn fill<const KEY: usize>(
    path: &Path,
    keys: impl Iterator<Item = [u8; KEY]>,
    value: &[u8],
) -> Result<usize> {
    let fd = open(path)?;
    let mut taken = 0;
    for key in keys {
        let update = Update {
            map_fd: fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: 0,
        };
        match bpf(UPDATE, &update) {
            Ok(_) => taken += 1,
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => break,
            Err(error) => return Err(error).context("filling a map"),
        }
    }
    Ok(taken)
}

fn open(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjGet {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let fd = bpf(OBJ_GET, &get).with_context(|| format!("opening {}", path.display()))?;
    // SAFETY: the call above has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `None` for what is no map, or one whose entries all exist from the beginning.
fn count(path: &Path) -> Result<Option<usize>> {
    let fd = open(path)?;
    let info = information(&fd)?;
    let (Some(kind), Some(key_size)) = (number(&info, "map_type:"), number(&info, "key_size:"))
    else {
        return Ok(None);
    };
    if !HASHES.contains(&kind) {
        return Ok(None);
    }
    let (mut key, mut next) = (vec![0_u8; key_size as usize], vec![0_u8; key_size as usize]);
    let mut count = 0;
    loop {
        let get_next = NextKey {
            map_fd: fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next_key: next.as_mut_ptr() as u64,
        };
        match bpf(GET_NEXT_KEY, &get_next) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Some(count)),
            Err(error) => return Err(error).context("walking a map"),
        }
        count += 1;
        key.copy_from_slice(&next);
        ensure!(count < 1_000_000, "a map without end");
    }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    let size = size_of::<T>();
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the attributes are live for the call, of the size given, and laid out as
    // `union bpf_attr` has them for this command; the pointers in them are to live buffers.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}

#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct NextKey {
    map_fd: u32,
    padding: u32,
    key: u64,
    next_key: u64,
}

#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const UPDATE: libc::c_int = 2;
const GET_NEXT_KEY: libc::c_int = 4;
const OBJ_GET: libc::c_int = 7;
/// Hash, per-CPU hash, both LRU forms, LPM trie, socket hash (`enum bpf_map_type`).
const HASHES: [u32; 6] = [1, 5, 9, 10, 11, 18];
