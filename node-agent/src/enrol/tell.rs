//! What others hear of the pods of this node: metrics, the controller, the same-node path.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    Enroller, Holding,
    addresses::Claims,
    entry::{Entry, Phase},
};
use crate::pod::{Pod, PodName};

impl Enroller {
    pub(super) fn publish(&mut self) {
        self.tell_captured();
        self.tell_direct();
        let unknown = self.unknown();
        self.config.known.set(unknown == 0);
        let missing = self.wanted.as_ref().map_or(0, |wanted| {
            wanted
                .iter()
                .filter(|(name, wish)| {
                    wish.capture
                        && self
                            .entries
                            .get(*name)
                            .is_none_or(|e| e.phase != Phase::Captured)
                })
                .count()
        });
        self.metrics
            .missing
            .set(i64::try_from(missing + unknown).unwrap_or(i64::MAX));
        let captured = self
            .entries
            .values()
            .filter(|entry| entry.phase == Phase::Captured);
        self.metrics
            .captured
            .set(i64::try_from(captured.count()).unwrap_or(i64::MAX));
        let unguarded = self
            .entries
            .values()
            .filter(|entry| entry.phase == Phase::Captured && entry.unguarded.is_some())
            .count();
        self.metrics
            .unguarded
            .set(i64::try_from(unguarded).unwrap_or(i64::MAX));
        let walls = self.kernel.walls();
        let unwalled = self.entries.values().filter(|entry| {
            let stands = walls.known().pods.contains_key(&entry.id) && entry.unguarded.is_none();
            entry.phase == Phase::Captured && !stands
        });
        self.metrics
            .unwalled
            .set(i64::try_from(unwalled.count()).unwrap_or(i64::MAX));
        drop(walls);
        self.store();
    }

    /// How many pods an earlier agent had captured of which the configuration knows nothing or that
    /// cannot be entered: the kernel refuses them, and nobody carries their connections.
    fn unknown(&self) -> usize {
        let wanted = self.wanted.as_ref();
        let is_known = |name: &PodName| wanted.is_some_and(|pods| pods.contains_key(name));
        let left = self
            .entries
            .iter()
            .filter(|(name, entry)| entry.phase == Phase::Unknown && !is_known(name))
            .filter(|(_, entry)| entry.is_captured_by(&self.kernel));
        left.count() + self.earlier.captured()
    }

    /// What the controller hears: pods whose capture is complete, and those of an earlier agent that
    /// the kernel holds captured while this one adopts them. Nothing is said before it is known what
    /// is wanted: peers of a pod that is not named speak to it in the clear.
    ///
    /// Every pod that the kernel holds captured is named, whether or not it is known as a workload: its addresses are
    /// not to be dialled in plain.
    fn tell_captured(&self) {
        let Some(wanted) = &self.wanted else { return };
        let is_captured = |entry: &Entry| match entry.phase {
            Phase::Captured => true,
            Phase::Unknown | Phase::Failed(_) => entry.held || entry.is_captured_by(&self.kernel),
            Phase::Exempt | Phase::Releasing(..) => false,
        };
        let absent = || self.earlier.absent().filter(|saved| saved.captured);
        let known_absent = absent().filter_map(|saved| wanted.get(&saved.sandbox.pod));
        let held = || self.entries.iter().filter(|(_, entry)| is_captured(entry));
        let workloads: BTreeSet<String> = held()
            .filter_map(|(name, entry)| {
                let own = entry.pod.as_ref().map(|pod| &pod.workload);
                let workload = own.or_else(|| wanted.get(name).map(|wish| &wish.workload));
                workload.map(ToString::to_string)
            })
            .chain(known_absent.map(|wish| wish.workload.to_string()))
            .collect();
        let holding = Holding {
            workloads,
            pods: held()
                .map(|(_, entry)| &entry.sandbox)
                .chain(absent().map(|saved| &saved.sandbox))
                .cloned()
                .collect(),
            partial: self.earlier.hides_pods(),
        };
        self.captured.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&holding);
            if changed {
                *current = Some(Arc::new(holding));
            }
            changed
        });
    }

    fn tell_direct(&mut self) {
        let (captured, others): (Vec<&Entry>, Vec<&Entry>) = self
            .entries
            .values()
            .partition(|entry| entry.phase == Phase::Captured && entry.unguarded.is_none());
        let pods = captured.iter().filter_map(|entry| entry.pod.clone());
        let pods: Vec<Arc<Pod>> = pods.collect();
        let known = others.iter().flat_map(|entry| &entry.known).copied();
        let absent = self.earlier.absent();
        let absent = absent.flat_map(|saved| saved.sandbox.ips.iter().copied());
        let claims = Claims::of(&self.entries, self.wanted.as_deref());
        let disputed: Vec<IpAddr> = claims.disputed().collect();
        let told = Told {
            pods: pods
                .iter()
                .map(|pod| (pod.id, pod.addresses.clone()))
                .collect(),
            addresses: known
                .chain(absent)
                .chain(disputed.iter().copied())
                .collect(),
        };
        let count = i64::try_from(disputed.len()).unwrap_or(i64::MAX);
        self.metrics.disputed.set(count);
        if self.told.as_ref() == Some(&told) {
            return;
        }
        self.direct.pods(pods, told.addresses.clone());
        self.told = Some(told);
    }
}

/// What the same-node path was told last.
#[derive(PartialEq, Eq)]
pub(super) struct Told {
    /// The captured pods, with their addresses.
    pods: Vec<(u32, Vec<IpAddr>)>,
    /// Addresses of the node that no captured pod has.
    addresses: Vec<IpAddr>,
}
