//! Addresses in a `sock_ops` context.
//!
//! Both forms of an address are read before the family is looked at: reads in two branches would be
//! merged by the compiler into one with a computed offset, which the verifier refuses.

#![expect(unsafe_code, reason = "context fields are raw")]

use abi::Addr;
use aya_ebpf::{bindings::bpf_sock_ops, programs::SockOpsContext};

const AF_INET: u32 = 2;

/// The socket's own address.
#[inline(always)]
pub fn local(ctx: &SockOpsContext) -> Addr {
    let raw = ctx.ops;
    // SAFETY: the kernel passes a valid context; the verifier checks offset and width.
    let (v4, v6) = unsafe {
        (
            (&raw const (*raw).local_ip4).read_volatile(),
            words((&raw const (*raw).local_ip6).cast()),
        )
    };
    if is_v4(ctx) {
        Addr::v4(v4)
    } else {
        Addr::v6(v6)
    }
}

/// The address of the socket's peer.
#[inline(always)]
pub fn remote(ctx: &SockOpsContext) -> Addr {
    let raw = ctx.ops;
    // SAFETY: as in `local`.
    let (v4, v6) = unsafe {
        (
            (&raw const (*raw).remote_ip4).read_volatile(),
            words((&raw const (*raw).remote_ip6).cast()),
        )
    };
    if is_v4(ctx) {
        Addr::v4(v4)
    } else {
        Addr::v6(v6)
    }
}

/// Whether the socket is of family `AF_INET`.
#[inline(always)]
pub fn is_v4(ctx: &SockOpsContext) -> bool {
    let raw: *mut bpf_sock_ops = ctx.ops;
    // SAFETY: as in `local`.
    unsafe { (&raw const (*raw).family).read_volatile() == AF_INET }
}

#[inline(always)]
unsafe fn words(first: *const u32) -> [u32; 4] {
    // SAFETY: the caller passes the first of four words of the context.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    }
}
