//! Finds selectors by labels and labels by selectors without looking at every pod.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use manifest::Labels;

use crate::store::selects;

/// One label of a namespace.
type Pair = (Arc<str>, String, String);

/// Things that select pods of a namespace, found by the labels of a pod.
#[derive(Debug)]
pub(super) struct Selectors<K> {
    /// Each selector is filed under one of its pairs: whoever matches it has that pair.
    by_pair: HashMap<Pair, HashMap<K, Labels>>,
    /// Selectors without pairs select every pod of the namespace.
    all: HashMap<Arc<str>, BTreeSet<K>>,
}

impl<K> Default for Selectors<K> {
    fn default() -> Self {
        Self {
            by_pair: HashMap::new(),
            all: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Selectors<K> {
    pub(super) fn insert(&mut self, namespace: &Arc<str>, selector: &Labels, key: K) {
        match pair(namespace, selector) {
            Some(pair) => {
                self.by_pair
                    .entry(pair)
                    .or_default()
                    .insert(key, selector.clone());
            }
            None => {
                self.all
                    .entry(Arc::clone(namespace))
                    .or_default()
                    .insert(key);
            }
        }
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, selector: &Labels, key: &K) {
        match pair(namespace, selector) {
            Some(pair) => {
                if let Some(filed) = self.by_pair.get_mut(&pair) {
                    filed.remove(key);
                    if filed.is_empty() {
                        self.by_pair.remove(&pair);
                    }
                }
            }
            None => {
                if let Some(filed) = self.all.get_mut(namespace) {
                    filed.remove(key);
                }
            }
        }
    }

    /// Everything that selects a pod of `namespace` with these labels.
    pub(super) fn matching(&self, namespace: &Arc<str>, labels: &Labels) -> BTreeSet<K> {
        let mut found = self.all.get(namespace).cloned().unwrap_or_default();
        for (key, value) in labels {
            let filed = self
                .by_pair
                .get(&(Arc::clone(namespace), key.clone(), value.clone()));
            for (key, selector) in filed.into_iter().flatten() {
                if selects(selector, labels) {
                    found.insert(key.clone());
                }
            }
        }
        found
    }
}

/// Pods by each of their labels.
#[derive(Debug, Default)]
pub(super) struct PodLabels {
    by_pair: HashMap<Pair, BTreeSet<Arc<str>>>,
}

impl PodLabels {
    pub(super) fn insert(&mut self, namespace: &Arc<str>, labels: &Labels, uid: &Arc<str>) {
        for pair in pairs(namespace, labels) {
            self.by_pair
                .entry(pair)
                .or_default()
                .insert(Arc::clone(uid));
        }
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, labels: &Labels, uid: &Arc<str>) {
        for pair in pairs(namespace, labels) {
            if let Some(pods) = self.by_pair.get_mut(&pair) {
                pods.remove(uid);
                if pods.is_empty() {
                    self.by_pair.remove(&pair);
                }
            }
        }
    }

    /// The pods of `namespace` that carry every pair; a selector without pairs is the caller's business.
    pub(super) fn carrying(&self, namespace: &Arc<str>, selector: &Labels) -> BTreeSet<Arc<str>> {
        let mut sets: Vec<_> = Vec::new();
        for pair in pairs(namespace, selector) {
            match self.by_pair.get(&pair) {
                Some(pods) => sets.push(pods),
                None => return BTreeSet::new(),
            }
        }
        sets.sort_by_key(|pods| pods.len());
        let Some((smallest, others)) = sets.split_first() else {
            return BTreeSet::new();
        };
        smallest
            .iter()
            .filter(|uid| others.iter().all(|pods| pods.contains(*uid)))
            .cloned()
            .collect()
    }
}

fn pair(namespace: &Arc<str>, labels: &Labels) -> Option<Pair> {
    pairs(namespace, labels).next()
}

fn pairs<'a>(namespace: &'a Arc<str>, labels: &'a Labels) -> impl Iterator<Item = Pair> + 'a {
    labels
        .iter()
        .map(move |(key, value)| (Arc::clone(namespace), key.clone(), value.clone()))
}
