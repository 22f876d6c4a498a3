//! Pods that are to be captured and that no node says it has captured: where an agent is missing, or has trouble.

use std::sync::Arc;

use manifest::PodFacts;

use super::Index;

impl Index {
    /// Notes whether a pod is one of them. Returns whether that is news.
    pub(super) fn flush_unreported(&mut self, uid: &Arc<str>) -> bool {
        let pod = self.pods.get(uid);
        let now = pod
            .filter(|pod| self.is_unreported(uid, pod))
            .map(|pod| Arc::clone(&pod.node));
        let before = match &now {
            Some(node) => self.unreported.insert(Arc::clone(uid), Arc::clone(node)),
            None => self.unreported.remove(uid),
        };
        if before == now {
            return false;
        }
        let nodes = &mut self.snapshot.unreported;
        if let Some(before) = before {
            let rest = nodes.get(&before).map(|pods| pods.without(uid));
            match rest.filter(|rest| !rest.is_empty()) {
                Some(rest) => nodes.insert(before, rest),
                None => nodes.remove(&before),
            };
        }
        if let Some(now) = now {
            let pods = nodes.get(&now).cloned().unwrap_or_default();
            nodes.insert(now, pods.update(Arc::clone(uid)));
        }
        true
    }

    fn is_unreported(&self, uid: &str, pod: &PodFacts) -> bool {
        !pod.node.is_empty()
            && !pod.finished
            && !self.is_captured(uid, pod)
            && self.enrolment(uid, pod).capture
    }
}
