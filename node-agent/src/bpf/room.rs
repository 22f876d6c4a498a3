//! How much room each map has: from configuration, as the kernel has it, and what did not fit.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use abi::maps;
use aya::{
    EbpfLoader,
    maps::{MapError, MapInfo},
};

use super::KernelError;

/// Room in the kernel's maps, from configuration. A full map refuses or leaves the agent to carry; it
/// never passes.
#[derive(Clone, Copy, Debug)]
pub struct MapSizes {
    /// Pods of the node.
    pub pods: u32,
    /// Threads that carry traffic: each has listeners of its own for every pod.
    pub workers: u32,
    /// Listening ports of all pods of the node.
    pub listening: u32,
    /// Ports of services that have an endpoint on the node.
    pub service_ports: u32,
    /// Slots that endpoints of these are drawn from.
    pub service_slots: u32,
    /// Pairs of captured pods of the node and ports that policies name.
    pub verdicts: u32,
    /// Connections between pods of the node that are being opened.
    pub flows: u32,
    /// Addresses that captured pods of the node reach by tunnel only.
    pub walled: u32,
    /// Plain connections that are older than the wall.
    pub older: u32,
    /// Addresses that may have to be carried.
    pub carried: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            pods: 1024,
            workers: 8,
            listening: 16384,
            service_ports: 16384,
            service_slots: 65536,
            verdicts: 262_144,
            flows: 65536,
            walled: 131_072,
            older: 16384,
            carried: 262_144,
        }
    }
}

/// A map whose need grows with the node or the mesh.
struct Room {
    map: &'static str,
    /// The setting to raise.
    setting: &'static str,
    entries: fn(&MapSizes) -> u32,
    /// Entries that did not fit since the agent started.
    refused: AtomicU64,
}

const fn room(map: &'static str, setting: &'static str, entries: fn(&MapSizes) -> u32) -> Room {
    Room {
        map,
        setting,
        entries,
        refused: AtomicU64::new(0),
    }
}

static ROOMS: [Room; 26] = [
    room(maps::PODS, "--max-pods", |sizes| sizes.pods),
    room(maps::INBOUND, "--max-pods", |sizes| sizes.pods),
    room(maps::SHARES, "--max-pods", |sizes| sizes.pods),
    room(maps::POD_ADDRS, "--max-pods", addresses),
    room(maps::LOCAL_PODS, "--max-pods", addresses),
    room(maps::PROBES, "--max-pods", addresses),
    room(maps::PROBE_PORTS, "--max-pods", probe_ports),
    room(maps::LISTENERS, "--max-pods", listeners),
    room(maps::LISTENING, "--max-listening-ports", |sizes| {
        sizes.listening
    }),
    room(maps::SERVICES, "--max-service-ports", |sizes| {
        sizes.service_ports
    }),
    room(maps::SLOTS, "--max-service-slots", |sizes| {
        sizes.service_slots
    }),
    room(maps::MEMBERS, "--max-service-slots", |sizes| {
        sizes.service_slots
    }),
    room(maps::SESSIONS, "--max-pods", sessions),
    room(maps::WAITS, "--max-pods", waits),
    room(maps::VERDICTS, "--max-verdicts", |sizes| sizes.verdicts),
    room(maps::DENIALS, "--max-verdicts", |sizes| sizes.verdicts),
    room(maps::FLOWS, "--max-direct-flows", |sizes| sizes.flows),
    room(maps::HELD, "--max-direct-flows", |sizes| sizes.flows),
    room(maps::OLDER_FLOWS, "--max-direct-flows", |sizes| sizes.flows),
    room(maps::WALLED_ADDRS, "--max-walled-addresses", |sizes| {
        sizes.walled
    }),
    room(maps::WALLED_PODS, "--max-pods", |sizes| sizes.pods),
    room(maps::WAYPOINT_ONLY, "--max-pods", |sizes| sizes.pods),
    room(maps::ASKED, "--max-direct-flows", |sizes| sizes.flows),
    room(maps::PLAIN_FLOWS, "--max-plain-flows", |sizes| sizes.older),
    room(maps::CARRIED, "--max-carried", |sizes| sizes.carried),
    room(maps::CARRIED_RANGES, "--max-carried", |sizes| {
        sizes.carried / ADDRESSES_PER_RANGE
    }),
];

fn addresses(sizes: &MapSizes) -> u32 {
    sizes.pods.saturating_mul(ADDRESSES_PER_POD)
}

fn probe_ports(sizes: &MapSizes) -> u32 {
    sizes.pods.saturating_mul(PROBES_PER_POD)
}

fn listeners(sizes: &MapSizes) -> u32 {
    let each = sizes.workers.max(1).saturating_mul(LISTENER_KINDS);
    sizes.pods.saturating_mul(each)
}

fn sessions(sizes: &MapSizes) -> u32 {
    sizes.pods.saturating_mul(SESSIONS_PER_POD)
}

fn waits(sizes: &MapSizes) -> u32 {
    sizes.pods.saturating_mul(WAITS_PER_POD)
}

/// Gives every map its size, for a loader that makes the maps that are not pinned yet.
pub(super) fn set(loader: &mut EbpfLoader<'_>, sizes: MapSizes) {
    for room in &ROOMS {
        loader.map_max_entries(room.map, (room.entries)(&sizes).max(1));
    }
}

/// The size of each map as the kernel has it. One that was made by an earlier agent keeps its size;
/// where that is another than configured, the log says what to do.
pub(super) fn capacities(directory: &Path, sizes: MapSizes) -> Vec<(&'static str, u32)> {
    let capacity = |room: &Room| {
        let info = MapInfo::from_pin(directory.join(room.map)).ok()?;
        let (has, wanted) = (info.max_entries(), (room.entries)(&sizes).max(1));
        if has != wanted {
            tracing::warn!(
                map = room.map,
                has,
                wanted,
                setting = room.setting,
                "an earlier agent made this map with another size, which it keeps until `cleanup` or a reboot"
            );
        }
        Some((room.map, has))
    };
    ROOMS.iter().filter_map(capacity).collect()
}

/// Entries that did not fit since the agent started, by map.
pub(super) fn refused() -> impl Iterator<Item = (&'static str, u64)> {
    ROOMS
        .iter()
        .map(|room| (room.map, room.refused.load(Ordering::Relaxed)))
}

/// What an error of a map means: whether it is full, and which setting to raise.
pub(super) fn explain(map: &'static str, source: MapError) -> KernelError {
    let is_full = matches!(&source, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(libc::E2BIG));
    match ROOMS.iter().find(|room| room.map == map) {
        Some(room) if is_full => {
            room.refused.fetch_add(1, Ordering::Relaxed);
            KernelError::Full {
                map,
                setting: room.setting,
            }
        }
        _ => KernelError::Map { map, source },
    }
}

/// Two of each family.
const ADDRESSES_PER_POD: u32 = 4;
/// More than most pods declare.
const PROBES_PER_POD: u32 = 8;
/// Ranges are written by hand; addresses are not.
const ADDRESSES_PER_RANGE: u32 = 16;
/// Service ports with session affinity; where pods use more, the ones not used for longest are drawn anew.
const SESSIONS_PER_POD: u32 = 8;
/// Connections of a pod whose applications have said how long they wait. Where there are more, those that were
/// noted first are noticed as the kernel notices them.
const WAITS_PER_POD: u32 = 16;
/// Outbound, inbound and HBONE.
const LISTENER_KINDS: u32 = 3;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_map_grows_with_its_setting() {
        let small = MapSizes::default();
        let large = MapSizes {
            pods: small.pods * 2,
            workers: small.workers * 2,
            listening: small.listening * 2,
            service_ports: small.service_ports * 2,
            service_slots: small.service_slots * 2,
            verdicts: small.verdicts * 2,
            flows: small.flows * 2,
            walled: small.walled * 2,
            older: small.older * 2,
            carried: small.carried * 2,
        };
        for room in &ROOMS {
            assert!(
                (room.entries)(&large) >= 2 * (room.entries)(&small),
                "{}",
                room.map
            );
        }
    }

    #[test]
    fn a_full_map_names_the_setting_and_is_counted() {
        let error = |code| {
            MapError::SyscallError(aya::sys::SyscallError {
                call: "bpf_map_update_elem",
                io_error: io::Error::from_raw_os_error(code),
            })
        };
        let count = || refused().find(|(map, _)| *map == maps::VERDICTS).unwrap().1;
        let before = count();
        let full = explain(maps::VERDICTS, error(libc::E2BIG)).to_string();
        assert!(
            full.contains("VERDICTS") && full.contains("--max-verdicts"),
            "{full}"
        );
        assert_eq!(count(), before + 1);
        let other = explain(maps::VERDICTS, error(libc::EPERM));
        assert!(matches!(other, KernelError::Map { .. }));
        assert_eq!(count(), before + 1);
    }
}
