//! Pods whose objects say something else about their capture than their nodes do. Another control plane reads it there, by
//! Istio's annotation `ambient.istio.io/redirection`.

use std::sync::Arc;

use manifest::PodFacts;

use super::Index;
use crate::snapshot::Mark;

impl Index {
    /// Notes how a pod's object is to be marked. Returns whether that is news.
    pub(super) fn flush_mark(&mut self, uid: &Arc<str>) -> bool {
        let pod = self.pods.get(uid);
        let mark = pod.and_then(|pod| self.mark(uid, pod));
        let marks = &mut self.snapshot.marks;
        if marks.get(uid) == mark.as_ref() {
            return false;
        }
        match mark {
            Some(mark) => drop(marks.insert(Arc::clone(uid), mark)),
            None => drop(marks.remove(uid)),
        }
        true
    }

    /// None where the object says what is so, and where it is not known what is so: before an agent of ours has spoken for
    /// the node another mesh's mark is left alone.
    fn mark(&self, uid: &str, pod: &PodFacts) -> Option<Mark> {
        if self.departed.contains(uid) || !self.holdings.has_spoken(&pod.node) {
            return None;
        }
        let captured = self.is_held(uid, pod) && !pod.host_network;
        // What its node may hold without having said so is not taken back.
        let is_known = captured || !self.is_captured(uid, pod);
        (is_known && captured != pod.is_redirected()).then(|| Mark {
            pod: pod.key.clone(),
            uid: pod.uid.clone(),
            captured,
        })
    }
}
