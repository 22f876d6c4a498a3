//! A shared list in the order of a key. Cloned only when it is changed while somebody else holds
//! it, so a batch of changes pays for one copy.

use std::ops::Deref;
use std::sync::Arc;

use super::tombstone::Tombstone;
use crate::policy::{Policy, PolicyKey};
use crate::service::Service;
use crate::workload::{Workload, WorkloadUid};

#[derive(Debug)]
pub(super) struct Sorted<T>(Arc<Vec<Arc<T>>>);

/// What a [`Sorted`] list is in the order of.
pub(super) trait Keyed {
    type Key<'a>: Ord
    where
        Self: 'a;

    fn key(&self) -> Self::Key<'_>;
}

impl<T: Keyed> Sorted<T> {
    /// Adds an item, or replaces the one with the same key.
    pub(super) fn insert(&mut self, item: Arc<T>) {
        let place = self
            .0
            .binary_search_by(|other| other.key().cmp(&item.key()));
        let items = Arc::make_mut(&mut self.0);
        match place {
            Ok(at) => {
                if let Some(slot) = items.get_mut(at) {
                    *slot = item;
                }
            }
            Err(at) => items.insert(at, item),
        }
    }

    pub(super) fn remove(&mut self, item: &T) {
        if let Ok(at) = self
            .0
            .binary_search_by(|other| other.key().cmp(&item.key()))
        {
            Arc::make_mut(&mut self.0).remove(at);
        }
    }
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Sorted<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Sorted<T> {
    type Target = [Arc<T>];

    fn deref(&self) -> &[Arc<T>] {
        &self.0
    }
}

impl Keyed for Workload {
    type Key<'a> = &'a WorkloadUid;

    fn key(&self) -> &WorkloadUid {
        &self.uid
    }
}

impl Keyed for Tombstone {
    type Key<'a> = &'a WorkloadUid;

    fn key(&self) -> &WorkloadUid {
        &self.uid
    }
}

impl Keyed for Policy {
    type Key<'a> = &'a PolicyKey;

    fn key(&self) -> &PolicyKey {
        &self.key
    }
}

impl Keyed for Service {
    type Key<'a> = (&'a str, &'a str);

    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.hostname)
    }
}
