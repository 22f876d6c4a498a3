//! Writes what the direct path goes by into the kernel's maps.

use std::collections::{BTreeMap, HashSet};

use super::{Direct, alias, compile::Tables, verdicts};
use crate::{
    bpf::{Drawn, KernelError},
    host::describe,
};

impl Direct {
    /// Writes the differences; refusals before permissions. Gives the pods to which something that
    /// was allowed is not allowed any more.
    pub(super) fn apply(&self, tables: &mut Tables) -> HashSet<u32> {
        let mut kernel = self.kernel.direct();
        let mut troubles = Troubles::default();
        let withdrawn = verdicts::replace(
            &self.tables.verdicts,
            &mut tables.verdicts,
            |key, verdict| troubles.took(kernel.set_verdict(key, verdict)),
        );
        for (addr, _) in self
            .tables
            .local_pods
            .iter()
            .filter(|(addr, _)| !tables.local_pods.contains_key(*addr))
        {
            drop(kernel.set_local_pod(*addr, None));
        }
        // What does not fit is forgotten here, and tried again with the next change.
        tables.local_pods.retain(|addr, pod| {
            self.tables.local_pods.get(addr) == Some(pod)
                || troubles.took(kernel.set_local_pod(*addr, Some(*pod)))
        });
        for key in self
            .tables
            .services
            .keys()
            .filter(|key| !tables.services.contains_key(*key))
        {
            drop(kernel.set_service(*key, &Drawn::default()));
        }
        tables.services.retain(|key, table| {
            let drawn = || Drawn {
                slots: alias::slots(&table.targets),
                session_seconds: table.session_seconds,
            };
            self.tables.services.get(key) == Some(table)
                || troubles.took(kernel.set_service(*key, &drawn()))
        });
        drop(kernel);
        troubles.say();
        withdrawn
    }
}

/// What could not be written, by reason: said once for all entries of one pass.
#[derive(Default)]
struct Troubles(BTreeMap<String, usize>);

impl Troubles {
    fn took(&mut self, written: Result<(), KernelError>) -> bool {
        let Err(error) = &written else { return true };
        *self.0.entry(describe(error)).or_default() += 1;
        false
    }

    fn say(&self) {
        for (error, entries) in &self.0 {
            tracing::warn!(
                error,
                entries,
                "the agent carries connections that could go directly"
            );
        }
    }
}
