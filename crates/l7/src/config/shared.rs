//! Values that many have alike, kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// What is shared now.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: SMALLEST_SWEEP,
        }
    }
}

impl<T: Hash + Eq + ?Sized> Shared<T> {
    /// The value of all that are equal to this one.
    pub(super) fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            // What nobody else holds is forgotten. Doubling the next threshold keeps this amortised.
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (2 * self.known.len()).max(SMALLEST_SWEEP);
        }
        self.known.insert(Arc::clone(&value));
        value
    }
}

const SMALLEST_SWEEP: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one_and_those_that_nobody_holds_are_forgotten() {
        let mut shared = Shared::<[u32]>::default();
        let first = shared.share(vec![1, 2].into());
        assert!(Arc::ptr_eq(&first, &shared.share(vec![1, 2].into())));
        assert!(!Arc::ptr_eq(&first, &shared.share(vec![1, 3].into())));
        for value in 0..10_000 {
            shared.share(vec![value].into());
        }
        assert!(shared.known.len() <= SMALLEST_SWEEP);
        assert!(Arc::ptr_eq(&first, &shared.share(vec![1, 2].into())));
    }
}
