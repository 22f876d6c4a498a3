//! The refusals that are kept for whoever asks later.

use std::collections::{BTreeMap, VecDeque};

use admin_api::Refused;
use model::Reason;
use parking_lot::Mutex;

/// Why a connection was refused, in a word and in a sentence.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The word, which has a flag.
    pub reason: Reason,
    /// What a person reads: object, rule, what would be right.
    pub text: String,
}

/// The last refusals.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<VecDeque<Refused>>);

/// Refusals that are kept.
const KEPT: usize = 512;
/// Bytes of a refusal's text.
const LONGEST_TEXT: usize = 2048;

impl Refusals {
    pub(crate) fn push(&self, refused: Refused) {
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            make_room(&mut kept);
        }
        kept.push_back(refused);
    }

    /// The last refusals, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Refused> {
        self.0.lock().iter().cloned().collect()
    }
}

/// Removes the oldest refusal of the pod that has most.
fn make_room(kept: &mut VecDeque<Refused>) {
    let mut of_pod: BTreeMap<&str, usize> = BTreeMap::new();
    for refused in &*kept {
        *of_pod.entry(&refused.connection.pod).or_default() += 1;
    }
    let most = of_pod.iter().max_by_key(|(_, count)| **count);
    let oldest = most.and_then(|(pod, _)| kept.iter().position(|one| one.connection.pod == **pod));
    kept.remove(oldest.unwrap_or(0));
}

/// What a peer said may stand in a text; much of it would be much memory, here and in the log's queue.
pub(crate) fn shorten(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT)
            .rev()
            .find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::tests::of_pod;

    #[test]
    fn a_pod_that_is_refused_without_end_leaves_its_neighbours_their_places_on_the_page() {
        let refusals = Refusals::default();
        let refused = |pod: &str| Refused {
            time_ms: 0,
            connection: of_pod(pod),
            reason: Reason::PolicyDeny,
            text: String::new(),
        };
        for pod in ["shop/a", "shop/b", "shop/a"] {
            refusals.push(refused(pod));
        }
        for _ in 0..10 * KEPT {
            refusals.push(refused("shop/greedy"));
        }
        let kept = refusals.list();
        let pods: Vec<&str> = kept.iter().map(|one| &*one.connection.pod).collect();
        assert_eq!(pods.len(), KEPT);
        assert_eq!(pods[..4], ["shop/a", "shop/b", "shop/a", "shop/greedy"]);
    }
}
