//! Which destinations the kernel leaves alone: all but those that may have to be carried.
//!
//! The kernel is told those, and that it knows all of them only while it does. An address is added
//! before the configuration that names it is published and acknowledged, and removed after; where one
//! does not fit, or a resource cannot be read, everything is captured as without the set. What is
//! captured is routed by the agent, so a set that holds too much costs speed only.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use model::MeshState;
use parking_lot::Mutex;

use crate::{bpf::Kernel, host::describe, mesh::Mesh};

/// Keeps the kernel's set in step with the mesh.
pub struct Native {
    kernel: Arc<Kernel>,
    mesh: Arc<Mesh>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The set is this agent's to write.
    in_charge: bool,
    /// The whole mesh has been told, and all of it could be read.
    whole: bool,
    /// What did not fit into the kernel's maps.
    missing: BTreeSet<IpNet>,
}

/// One change of the mesh.
pub struct Change<'a> {
    /// The mesh as it becomes.
    pub state: &'a MeshState,
    /// Addresses and ranges of everything that changes, as it was and as it becomes.
    pub named: &'a BTreeSet<IpNet>,
    /// Whether this is the whole mesh, and all of it could be read.
    pub whole: bool,
}

impl Native {
    /// Keeps nothing until it is in charge.
    #[must_use]
    pub fn new(kernel: Arc<Kernel>, mesh: Arc<Mesh>) -> Self {
        Self {
            kernel,
            mesh,
            inner: Mutex::default(),
        }
    }

    /// Calls `publish` between what must be known before the change and what may be forgotten after it.
    pub fn change(&self, change: &Change<'_>, publish: impl FnOnce()) {
        let mut inner = self.inner.lock();
        inner.whole = change.whole;
        if !inner.in_charge {
            return publish();
        }
        let before = self.mesh.state();
        let (carried, free): (Vec<&IpNet>, Vec<&IpNet>) = change
            .named
            .iter()
            .filter(|net| before.carries(net) != change.state.carries(net))
            .partition(|net| change.state.carries(net));
        self.add(&mut inner, carried.into_iter().copied());
        self.say(&inner);
        publish();
        for net in &free {
            self.remove(&mut inner, net);
        }
        if !free.is_empty() && !inner.missing.is_empty() {
            let missing = std::mem::take(&mut inner.missing);
            self.add(&mut inner, missing);
            self.say(&inner);
        }
    }

    /// Takes over the set, with whatever an earlier agent left in it.
    pub fn charge(&self) {
        let mut inner = self.inner.lock();
        self.set(false);
        let wanted: BTreeSet<IpNet> = self.mesh.state().carried().collect();
        let held = self.kernel.carried().list();
        inner.missing.clear();
        for net in held.difference(&wanted) {
            self.remove(&mut inner, net);
        }
        self.add(&mut inner, wanted.difference(&held).copied());
        inner.in_charge = true;
        self.say(&inner);
    }

    /// Leaves the set to another agent. Until that has taken it over everything is captured.
    pub fn pause(&self) {
        let mut inner = self.inner.lock();
        if std::mem::take(&mut inner.in_charge) {
            self.set(false);
        }
    }

    /// Adds until something does not fit.
    fn add(&self, inner: &mut Inner, nets: impl IntoIterator<Item = IpNet>) {
        let mut kernel = self.kernel.carried();
        let mut nets = nets.into_iter();
        while let Some(net) = nets.next() {
            if let Err(error) = kernel.add(&net) {
                inner.missing.insert(net);
                inner.missing.extend(nets);
                tracing::warn!(
                    error = describe(&error),
                    missing = inner.missing.len(),
                    "the agent carries connections that could be left alone"
                );
                return;
            }
        }
    }

    fn remove(&self, inner: &mut Inner, net: &IpNet) {
        if !inner.missing.remove(net) {
            self.kernel.carried().remove(net);
        }
    }

    /// Says whether the set is whole.
    fn say(&self, inner: &Inner) {
        self.set(inner.whole && inner.missing.is_empty());
    }

    fn set(&self, whole: bool) {
        match self.kernel.set_native(whole) {
            Ok(true) => tracing::debug!(
                whole,
                carried = self.kernel.carried().entries(),
                "whether destinations outside of the mesh are left alone"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!(
                error = describe(&error),
                whole,
                "cannot set whether destinations outside of the mesh are left alone"
            ),
        }
    }
}
