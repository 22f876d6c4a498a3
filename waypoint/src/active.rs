//! What workers decide with: one value, swapped as a whole.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use l7::ClusterKey;
use l7::backend::Locality;
use model::MeshState;
use tokio::sync::watch;

use crate::balance::Resolved;
use crate::balance::state::Registry;

/// A configuration. A request is decided with one from beginning to end.
#[derive(Debug, Default)]
pub struct Active {
    /// Routes, backends, policies.
    pub l7: Arc<l7::Config>,
    /// Who is who, for metrics and the log.
    pub mesh: MeshState,
    /// Where this waypoint runs.
    pub own: Locality,
    /// The labels of this waypoint's pod.
    pub own_labels: Arc<BTreeMap<Arc<str>, Arc<str>>>,
    /// Grows with each configuration.
    pub generation: u64,
}

/// Where the newest configuration is.
#[derive(Debug)]
pub struct Newest {
    active: ArcSwap<Active>,
    generation: watch::Sender<u64>,
}

impl Default for Newest {
    fn default() -> Self {
        Self {
            active: ArcSwap::default(),
            generation: watch::Sender::new(0),
        }
    }
}

impl Newest {
    /// The newest.
    #[must_use]
    pub fn load(&self) -> Arc<Active> {
        self.active.load_full()
    }

    /// Makes this the newest.
    pub fn store(&self, mut active: Active) {
        let generation = *self.generation.borrow() + 1;
        active.generation = generation;
        self.active.store(Arc::new(active));
        self.generation.send_replace(generation);
    }

    /// Changes with each configuration.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// Clusters of the configuration that a worker has used last.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    generation: RefCell<u64>,
    resolved: RefCell<HashMap<ClusterKey, Rc<Resolved>>>,
}

impl Clusters {
    /// A cluster of a configuration, for who dialled this port.
    pub(crate) fn find(
        &self,
        active: &Active,
        (key, dialled): (&ClusterKey, u16),
        registry: &Registry,
    ) -> Option<Rc<Resolved>> {
        let mut resolved = self.resolved.borrow_mut();
        // An older one than the worker's newest belongs to a request that began before.
        if *self.generation.borrow() < active.generation {
            *self.generation.borrow_mut() = active.generation;
            resolved.clear();
        }
        let cluster = active.l7.cluster(key, dialled)?;
        if let Some(known) = resolved.get(&cluster.key)
            && Arc::ptr_eq(&known.cluster, cluster)
        {
            return Some(Rc::clone(known));
        }
        let new = Rc::new(Resolved::new(Arc::clone(cluster), &active.mesh, registry));
        if *self.generation.borrow() == active.generation {
            resolved.insert(cluster.key.clone(), Rc::clone(&new));
        }
        Some(new)
    }
}
