//! What others hear of the pods of this node: metrics, the controller, the same-node path.

use std::collections::BTreeSet;

use super::{
    Enroller,
    entry::{Entry, Phase},
};
use crate::pod::PodName;

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
            .filter(|entry| entry.phase == Phase::Captured && !entry.guarded)
            .count();
        self.metrics
            .unguarded
            .set(i64::try_from(unguarded).unwrap_or(i64::MAX));
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
    fn tell_captured(&self) {
        let Some(wanted) = &self.wanted else { return };
        let is_captured = |entry: &Entry| match entry.phase {
            Phase::Captured => true,
            Phase::Unknown | Phase::Failed(_) => entry.held || entry.is_captured_by(&self.kernel),
            Phase::Exempt | Phase::Releasing(..) => false,
        };
        let absent = self.earlier.absent().filter(|saved| saved.captured);
        let absent = absent.filter_map(|saved| wanted.get(&saved.sandbox.pod));
        let captured: BTreeSet<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_captured(entry))
            .filter_map(|(name, entry)| {
                let own = entry.pod.as_ref().map(|pod| &pod.workload);
                let workload = own.or_else(|| wanted.get(name).map(|wish| &wish.workload));
                workload.map(ToString::to_string)
            })
            .chain(absent.map(|wish| wish.workload.to_string()))
            .collect();
        self.captured.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&captured);
            if changed {
                *current = Some(captured);
            }
            changed
        });
    }

    fn tell_direct(&mut self) {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (captured, others): (Vec<&Entry>, Vec<&Entry>) = self
            .entries
            .values()
            .partition(|entry| entry.phase == Phase::Captured);
        let ids = captured.iter().chain(&others).map(|entry| entry.id);
        let told: Vec<u32> = ids
            .chain([captured.len(), self.earlier.absent().count()].map(count))
            .collect();
        if self.told == told {
            return;
        }
        let pods = captured.iter().filter_map(|entry| entry.pod.clone());
        let addresses = others
            .iter()
            .map(|entry| &entry.sandbox)
            .chain(self.earlier.absent().map(|saved| &saved.sandbox))
            .flat_map(|sandbox| sandbox.ips.iter().copied());
        self.direct.pods(pods.collect(), addresses.collect());
        self.told = told;
    }
}
