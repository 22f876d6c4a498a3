//! `DestinationRule`: how the endpoints of a service are used.

mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_api::DestinationRule;
use l7::backend::{BackendRule, Subset};
use l7::{Kind, Origin};
use manifest::NamespacedName;

use super::hosts::{Export, Host};
use super::notes::Notes;
use crate::index::authorization::Note;

/// What a `DestinationRule` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    /// Whose endpoints it is about.
    pub(crate) host: Host,
    /// For which clients.
    pub(crate) export: Export,
    /// What it says of them.
    pub(crate) rule: Arc<BackendRule>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

/// Compiles one `DestinationRule` of a cluster with this domain.
pub(crate) fn compile(object: &DestinationRule, domain: &str) -> Compiled {
    let key = NamespacedName::of(&object.metadata);
    let spec = &object.spec;
    let mut notes = Notes::default();
    if spec.host.is_empty() {
        notes.error("spec.host", "is missing: the object has no effect");
    }
    if spec.workload_selector.is_some() {
        notes.error(
            "spec.workloadSelector",
            "is not supported: the object counts for all clients",
        );
    }
    let own = spec.traffic_policy.as_ref();
    let (policy, ports) = traffic::of("spec.trafficPolicy", own, &mut notes);
    let mut subsets = BTreeMap::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        if subset.name.is_empty() {
            notes.error(format!("{field}.name"), "is missing");
            continue;
        }
        let of = subset.traffic_policy.as_ref();
        let (policy, ports) = traffic::of(&format!("{field}.trafficPolicy"), of, &mut notes);
        let labels = subset.labels.iter();
        let compiled = Subset {
            labels: labels
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect(),
            policy,
            ports,
        };
        if subsets
            .insert(subset.name.as_str().into(), compiled)
            .is_some()
        {
            let message = format!(
                "{:?} is the name of another subset too; the last one counts",
                subset.name
            );
            notes.error(format!("{field}.name"), message);
        }
    }
    let origin = Origin {
        kind: Kind::DestinationRule,
        namespace: Arc::clone(&key.namespace),
        name: Arc::clone(&key.name),
        rule: 0,
        rule_name: None,
    };
    Compiled {
        host: Host::read(&spec.host, &key.namespace, domain),
        export: Export::read(&spec.export_to, &key.namespace),
        rule: Arc::new(BackendRule {
            origin: Some(origin),
            policy,
            ports,
            subsets,
        }),
        notes: notes.0,
    }
}

#[cfg(test)]
mod tests;
