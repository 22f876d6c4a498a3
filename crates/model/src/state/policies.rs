//! The policies of the mesh, by name and by the workloads that they apply to.

use std::sync::Arc;

use super::sorted::Sorted;
use crate::policy::{Policy, PolicyKey, Scope};

#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    by_key: imbl::HashMap<PolicyKey, Arc<Policy>>,
    of_namespace: imbl::HashMap<Arc<str>, Sorted<Policy>>,
    global: Sorted<Policy>,
}

impl Policies {
    pub(super) fn insert(&mut self, policy: Policy) {
        let policy = Arc::new(policy);
        self.remove(&policy.key);
        match policy.scope {
            Scope::Global => self.global.insert(Arc::clone(&policy)),
            Scope::Namespace => self
                .of_namespace
                .entry(Arc::clone(&policy.key.namespace))
                .or_default()
                .insert(Arc::clone(&policy)),
            Scope::WorkloadSelector => {}
        }
        self.by_key.insert(policy.key.clone(), policy);
    }

    pub(super) fn remove(&mut self, key: &PolicyKey) -> bool {
        let Some(policy) = self.by_key.remove(key) else {
            return false;
        };
        match policy.scope {
            Scope::Global => self.global.remove(&policy),
            Scope::Namespace => {
                if let Some(policies) = self.of_namespace.get_mut(&key.namespace) {
                    policies.remove(&policy);
                    if policies.is_empty() {
                        self.of_namespace.remove(&key.namespace);
                    }
                }
            }
            Scope::WorkloadSelector => {}
        }
        true
    }

    pub(super) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// What applies to a workload of `namespace` that names the policies of `named`; each once.
    pub(super) fn applying<'s>(
        &'s self,
        namespace: &'s str,
        named: &'s [PolicyKey],
    ) -> impl Iterator<Item = &'s Policy> + Clone {
        let own: &[_] = self.of_namespace.get(namespace).map_or(&[], |own| own);
        let named = named
            .iter()
            .filter_map(|key| self.by_key.get(key))
            .filter(move |policy| match policy.scope {
                Scope::Global => false,
                Scope::Namespace => &*policy.key.namespace != namespace,
                Scope::WorkloadSelector => true,
            });
        own.iter()
            .chain(self.global.iter())
            .chain(named)
            .map(Arc::as_ref)
    }
}
