//! The maps of the second wall.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Addr, Flow, Wall, maps};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    KernelError,
    node::{Raw, map_error, typed},
};

/// The maps of the wall, and what is in them: only this writes them.
pub struct WallMaps {
    addrs: HashMap<MapData, Raw<Addr>, u32>,
    pods: HashMap<MapData, u32, u32>,
    older: HashMap<MapData, Raw<Flow>, u32>,
    waypoint_only: HashMap<MapData, u32, u32>,
    known: Known,
}

/// What the kernel holds.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Addresses that are reached by tunnel only.
    pub addrs: BTreeMap<Addr, Wall>,
    /// Captured pods.
    pub pods: BTreeMap<u32, Wall>,
    /// Plain connections of captured pods that are older than the wall, with the pod.
    pub older: BTreeMap<u32, BTreeSet<Flow>>,
    /// Captured pods that are reached by a waypoint only.
    pub waypoint_only: BTreeSet<u32>,
}

impl WallMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            addrs: typed(ebpf, maps::WALLED_ADDRS)?,
            pods: typed(ebpf, maps::WALLED_PODS)?,
            older: typed(ebpf, maps::PLAIN_FLOWS)?,
            waypoint_only: typed(ebpf, maps::WAYPOINT_ONLY)?,
            known: Known::default(),
        })
    }

    /// Reads what a predecessor left. It stays: the wall stands while no agent lives.
    pub fn adopt(&mut self) {
        let mut known = Known::default();
        let addrs = self.addrs.iter().filter_map(Result::ok);
        known
            .addrs
            .extend(addrs.map(|(addr, raw)| (addr.0, Wall::from_raw(raw))));
        let pods = self.pods.iter().filter_map(Result::ok);
        known
            .pods
            .extend(pods.map(|(pod, raw)| (pod, Wall::from_raw(raw))));
        for (flow, pod) in self.older.iter().filter_map(Result::ok) {
            known.older.entry(pod).or_default().insert(flow.0);
        }
        let waypoint_only = self.waypoint_only.keys().filter_map(Result::ok);
        known.waypoint_only.extend(waypoint_only);
        self.known = known;
    }

    /// What the kernel holds.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Sets the wall of an address; none removes it.
    ///
    /// # Errors
    /// When the map is full. Plain TCP to the address is then neither dropped nor counted.
    pub fn set_addr(&mut self, addr: Addr, wall: Option<Wall>) -> Result<(), KernelError> {
        let Some(wall) = wall else {
            // Absent is as good as removed.
            drop(self.addrs.remove(&Raw(addr)));
            self.known.addrs.remove(&addr);
            return Ok(());
        };
        let written = self.addrs.insert(Raw(addr), wall as u32, 0);
        written.map_err(map_error(maps::WALLED_ADDRS))?;
        self.known.addrs.insert(addr, wall);
        Ok(())
    }

    /// Sets the wall of a pod; none takes it down, with what was listed as older.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_pod(&mut self, pod: u32, wall: Option<Wall>) -> Result<(), KernelError> {
        let Some(wall) = wall else {
            drop(self.pods.remove(&pod));
            self.known.pods.remove(&pod);
            for flow in self.known.older.remove(&pod).into_iter().flatten() {
                drop(self.older.remove(&Raw(flow)));
            }
            return Ok(());
        };
        let written = self.pods.insert(pod, wall as u32, 0);
        written.map_err(map_error(maps::WALLED_PODS))?;
        self.known.pods.insert(pod, wall);
        Ok(())
    }

    /// Sets whether a pod is reached by a waypoint only. Then it gets no datagrams but answers to its own.
    ///
    /// # Errors
    /// When the map is full. Then it gets them all.
    pub fn set_waypoint_only(&mut self, pod: u32, is_so: bool) -> Result<(), KernelError> {
        if is_so == self.known.waypoint_only.contains(&pod) {
            return Ok(());
        }
        if !is_so {
            drop(self.waypoint_only.remove(&pod));
            self.known.waypoint_only.remove(&pod);
            return Ok(());
        }
        let written = self.waypoint_only.insert(pod, 1, 0);
        written.map_err(map_error(maps::WAYPOINT_ONLY))?;
        self.known.waypoint_only.insert(pod);
        Ok(())
    }

    /// Lists a pod's plain connection as older than the wall.
    ///
    /// # Errors
    /// When the map is full. The connection ends where its wall is enforced.
    pub fn list(&mut self, pod: u32, flow: Flow) -> Result<(), KernelError> {
        let written = self.older.insert(Raw(flow), pod, 0);
        written.map_err(map_error(maps::PLAIN_FLOWS))?;
        self.known.older.entry(pod).or_default().insert(flow);
        Ok(())
    }

    /// Takes those of a pod's listed connections off the list that are not among the `living`.
    pub fn keep(&mut self, pod: u32, living: &BTreeSet<Flow>) {
        let Some(listed) = self.known.older.get_mut(&pod) else {
            return;
        };
        for gone in listed.extract_if(.., |flow| !living.contains(flow)) {
            drop(self.older.remove(&Raw(gone)));
        }
        if listed.is_empty() {
            self.known.older.remove(&pod);
        }
    }

    /// How many entries each map has.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, usize); 4] {
        let older = self.known.older.values().map(BTreeSet::len).sum();
        [
            (maps::WALLED_ADDRS, self.known.addrs.len()),
            (maps::WALLED_PODS, self.known.pods.len()),
            (maps::PLAIN_FLOWS, older),
            (maps::WAYPOINT_ONLY, self.known.waypoint_only.len()),
        ]
    }

    /// How many addresses and pods are behind a wall that is enforced, and how many behind one that counts
    /// only: what, which wall, number.
    #[must_use]
    pub fn standing(&self) -> [(&'static str, &'static str, usize); 4] {
        let of =
            |walls: &mut dyn Iterator<Item = &Wall>, wall| walls.filter(|w| **w == wall).count();
        let Known { addrs, pods, .. } = &self.known;
        [
            ("address", "count", of(&mut addrs.values(), Wall::Count)),
            ("address", "enforce", of(&mut addrs.values(), Wall::Enforce)),
            ("pod", "count", of(&mut pods.values(), Wall::Count)),
            ("pod", "enforce", of(&mut pods.values(), Wall::Enforce)),
        ]
    }
}
