//! Which captured workloads all nodes know to be captured: the second wall is enforced for these, so they
//! are told apart from those that somebody may still dial in plain.
//!
//! A workload is announced after every node that is served has taken the snapshot that says HBONE. It is
//! let go in the other order: the announcement is taken back, and only when every node has taken that is
//! the workload said to be plain and its node told to release it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use proto::agent;
use proto::type_url;

use super::authorization::octets;
use crate::resource::Resource;

/// Where each captured workload stands. Generations are those of snapshots.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    stages: HashMap<Arc<str>, Stage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The snapshot of this generation says that it is captured, by these addresses.
    Told(u64, Vec<IpAddr>),
    /// All nodes know that.
    Announced(Vec<IpAddr>),
    /// The snapshot of this generation has taken the announcement back; it is still captured.
    Withdrawn(u64),
}

impl Announcements {
    /// Whether a workload that is not wanted captured any more has to stay captured for a moment.
    pub(super) fn is_held(&self, uid: &str) -> bool {
        matches!(
            self.stages.get(uid),
            Some(Stage::Announced(_) | Stage::Withdrawn(_))
        )
    }

    /// What is to be served of a workload.
    pub(super) fn resource(&self, uid: &Arc<str>) -> Option<Resource> {
        let Some(Stage::Announced(addresses)) = self.stages.get(uid) else {
            return None;
        };
        let message = agent::Announced {
            addresses: addresses.iter().map(|ip| octets(*ip)).collect(),
        };
        Some(Resource::new(
            type_url::ANNOUNCED,
            Arc::clone(uid),
            &message,
        ))
    }

    /// The snapshot of `generation` says that the workload is captured, as it is wanted.
    pub(super) fn captured(&mut self, uid: &Arc<str>, addresses: &[IpAddr], generation: u64) {
        match self.stages.get(uid) {
            Some(Stage::Told(_, known) | Stage::Announced(known)) if known == addresses => {}
            _ => {
                let stage = Stage::Told(generation, addresses.to_vec());
                self.stages.insert(Arc::clone(uid), stage);
            }
        }
    }

    /// It is captured and not wanted captured any more; the snapshot of `generation` says so.
    pub(super) fn leaving(&mut self, uid: &Arc<str>, generation: u64) {
        match self.stages.get(uid) {
            Some(Stage::Announced(_)) => {
                self.stages
                    .insert(Arc::clone(uid), Stage::Withdrawn(generation));
            }
            Some(Stage::Withdrawn(_)) => {}
            // Nobody enforces anything yet.
            Some(Stage::Told(..)) | None => drop(self.stages.remove(uid)),
        }
    }

    /// It is not captured.
    pub(super) fn gone(&mut self, uid: &str) {
        self.stages.remove(uid);
    }

    /// Every node has taken the snapshot of this generation, or a later one. Names what changes by that.
    pub(super) fn settle(&mut self, generation: u64) -> Vec<Arc<str>> {
        let mut changed = Vec::new();
        self.stages.retain(|uid, stage| match stage {
            Stage::Told(at, addresses) if *at <= generation => {
                let addresses = std::mem::take(addresses);
                *stage = Stage::Announced(addresses);
                changed.push(Arc::clone(uid));
                true
            }
            Stage::Withdrawn(at) if *at <= generation => {
                changed.push(Arc::clone(uid));
                false
            }
            _ => true,
        });
        changed
    }

    /// Some node has not taken withdrawals for too long: they count as taken. Names the workloads.
    pub(super) fn stop_waiting(&mut self) -> Vec<Arc<str>> {
        let withdrawn = self
            .stages
            .extract_if(|_, stage| matches!(stage, Stage::Withdrawn(_)));
        withdrawn.map(|(uid, _)| uid).collect()
    }

    /// Whether a withdrawal waits for nodes.
    pub(super) fn is_waiting(&self) -> bool {
        self.stages
            .values()
            .any(|stage| matches!(stage, Stage::Withdrawn(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_announced_and_let_go_only_after_all_nodes_know() {
        let (uid, ips): (Arc<str>, Vec<IpAddr>) = ("a".into(), vec!["10.0.0.1".parse().unwrap()]);
        let mut all = Announcements::default();
        all.captured(&uid, &ips, 7);
        assert!(all.settle(6).is_empty() && all.resource(&uid).is_none());
        assert!(!all.is_held(&uid), "nobody enforces anything");
        assert_eq!(all.settle(7), [Arc::clone(&uid)]);
        assert!(all.resource(&uid).is_some() && all.is_held(&uid));
        all.captured(&uid, &ips, 9);
        assert!(all.resource(&uid).is_some(), "nothing is new");
        all.leaving(&uid, 10);
        assert!(all.resource(&uid).is_none() && all.is_held(&uid));
        all.leaving(&uid, 12);
        assert!(all.settle(9).is_empty() && all.is_waiting());
        assert_eq!(all.settle(10), [Arc::clone(&uid)]);
        assert!(!all.is_held(&uid) && !all.is_waiting());
    }

    #[test]
    fn other_addresses_have_to_be_told_anew() {
        let uid: Arc<str> = "a".into();
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let mut all = Announcements::default();
        all.captured(&uid, &ip("10.0.0.1"), 1);
        all.settle(1);
        all.captured(&uid, &ip("10.0.0.2"), 2);
        assert!(all.resource(&uid).is_none());
        all.settle(2);
        assert!(all.resource(&uid).is_some());
        // It comes back while it is being let go.
        all.leaving(&uid, 3);
        all.captured(&uid, &ip("10.0.0.2"), 4);
        assert!(all.settle(3).is_empty() && !all.is_waiting());
        assert_eq!(all.settle(4).len(), 1);
        all.gone(&uid);
        assert!(!all.is_held(&uid));
    }

    #[test]
    fn a_node_that_never_answers_holds_nobody() {
        let uid: Arc<str> = "a".into();
        let mut all = Announcements::default();
        all.captured(&uid, &[], 1);
        all.settle(1);
        all.leaving(&uid, 2);
        assert_eq!(all.stop_waiting(), [Arc::clone(&uid)]);
        assert!(!all.is_held(&uid));
    }
}
