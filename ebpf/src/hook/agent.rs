//! The agent's listener for a connection, and whether the worker behind it moves.

#![expect(unsafe_code, reason = "kernel helpers are raw")]

use abi::{ListenerKey, ListenerKind};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release},
};
use core::ffi::c_void;

use crate::{
    liveness::{Lacking, is_alive},
    maps::{HEARTBEAT, LISTENERS, worker},
};

/// Looks up the listener of this processor's worker for the pod; `with` gets it if that worker is alive.
///
/// The listener says itself whose beat counts, see [`abi::beat_index`].
#[inline(always)]
pub fn with_listener<T>(
    pod: u32,
    kind: ListenerKind,
    with: impl FnOnce(*mut c_void) -> T,
) -> Result<T, Lacking> {
    with_listener_of(worker(), pod, kind, with)
}

/// As [`with_listener`], of a certain worker.
#[inline(always)]
pub fn with_listener_of<T>(
    worker: u16,
    pod: u32,
    kind: ListenerKind,
    with: impl FnOnce(*mut c_void) -> T,
) -> Result<T, Lacking> {
    let key = ListenerKey {
        pod,
        kind: kind as u16,
        worker,
    };
    let map = (&raw const LISTENERS).cast_mut().cast::<c_void>();
    // SAFETY: `map` is the map's own symbol and `key` lives on this stack frame.
    let socket = unsafe { bpf_map_lookup_elem(map, (&raw const key).cast()) };
    if socket.is_null() {
        return Err(Lacking::Listener);
    }
    // SAFETY: a non-null result of a lookup in a socket map is a referenced socket.
    let beat = unsafe { (&raw const (*socket.cast::<bpf_sock>()).priority).read_volatile() };
    let result = if moves(beat) {
        Ok(with(socket))
    } else {
        Err(Lacking::Beat)
    };
    // SAFETY: as above; the reference is given back once.
    unsafe { bpf_sk_release(socket) };
    result
}

#[inline(always)]
fn moves(beat: u32) -> bool {
    let Some(beat) = HEARTBEAT.get_ptr(beat) else {
        return false;
    };
    // SAFETY: the kernel gave a pointer to an aligned element, which the agent writes as a whole; the
    // helper takes no argument.
    let (beat, now) = unsafe { (beat.read_volatile(), bpf_ktime_get_ns()) };
    is_alive(beat, now)
}
