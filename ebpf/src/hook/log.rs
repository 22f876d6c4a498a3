//! Says what the hooks decide, in builds that have the feature `log`. In all others it is nothing at all.
//!
//! A line is `POD REASON PEER PORT`, its target is the hook; the agent puts names to the numbers. Which lines there
//! are is every decision about a connection, and every packet that does not pass.

use abi::{Addr, Reason};

/// Whether this build says anything; for what would cost something to find out.
pub(super) const IS_ON: bool = cfg!(feature = "log");

/// Whose decision it is.
#[derive(Clone, Copy)]
pub(super) enum Hook {
    Connect,
    Lookup,
    Guard,
    Wall,
    Answers,
}

/// Says that `hook` decided so about a connection or packet of the pod with `peer`; port 0 is one that is not known.
#[cfg(feature = "log")]
#[inline(never)]
pub(super) fn decided(hook: Hook, pod: u32, reason: Reason, peer: &Addr, port: u16) {
    let target = match hook {
        Hook::Connect => "connect",
        Hook::Lookup => "lookup",
        Hook::Guard => "guard",
        Hook::Wall => "wall",
        Hook::Answers => "answers",
    };
    aya_log_ebpf::info!(
        (),
        target: target,
        "{} {} {:i} {}",
        pod,
        reason as u32,
        bytes(peer),
        port
    );
}

#[cfg(feature = "log")]
#[inline(always)]
fn bytes(addr: &Addr) -> [u8; 16] {
    let [a, b, c, d] = addr.words.map(u32::to_ne_bytes);
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}

#[cfg(not(feature = "log"))]
#[inline(always)]
pub(super) fn decided(_: Hook, _: u32, _: Reason, _: &Addr, _: u16) {}
