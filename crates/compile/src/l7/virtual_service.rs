//! `VirtualService`, for clients in the mesh and at gateways.

mod action;
mod conditions;
mod connections;
pub(crate) mod delegate;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_api::VirtualService;
use l7::{Kind, Origin};
use manifest::NamespacedName;

use super::Parts;
use super::hosts::{Export, Host};
use super::notes::Notes;
use crate::index::authorization::Note;

/// What a `VirtualService` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    /// Whose requests it is for; none for an object that others delegate to.
    pub(crate) hosts: Vec<Host>,
    /// For which clients.
    pub(crate) export: Export,
    /// Whether it is for clients in the mesh at all, and not only for gateways (F37).
    pub(crate) mesh: bool,
    /// Its rules for HTTP, then those for connections, each in their order, for clients in the mesh.
    pub(crate) rules: Vec<Parts>,
    /// The same at each gateway that it is bound to.
    pub(crate) gateways: BTreeMap<NamespacedName, Vec<Parts>>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

/// Compiles one `VirtualService` of a cluster with this domain.
pub(crate) fn compile(object: &VirtualService, domain: &str) -> Compiled {
    let key = NamespacedName::of(&object.metadata);
    let spec = &object.spec;
    let mut notes = Notes::default();
    let hosts = spec.hosts.iter();
    let hosts = hosts.map(|host| Host::read(host, &key.namespace, domain));
    let hosts: Vec<Host> = hosts.collect();
    let mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == MESH);
    let mut rules = rules(object, &key, MESH, domain, &mut notes);
    let names = action::Names {
        namespace: &key.namespace,
        domain,
    };
    let for_connections = connections::rules(spec, &key, (MESH, names), &mut notes);
    if mesh {
        rules.extend(for_connections);
    }
    let bound = spec.gateways.iter().filter(|name| *name != MESH);
    let gateways = bound.map(|written| {
        // What there is to say about the rules has been said.
        let nobody = &mut Notes::default();
        let mut rules = self::rules(object, &key, written, domain, nobody);
        rules.extend(connections::rules(spec, &key, (written, names), nobody));
        (gateway(written, &key.namespace), rules)
    });
    let gateways = gateways.collect();
    Compiled {
        hosts,
        export: Export::read(&spec.export_to, &key.namespace),
        mesh,
        rules,
        gateways,
        notes: notes.0,
    }
}

/// The rules as they are at a gateway, by the name that the object gives it, or in the mesh.
fn rules(
    object: &VirtualService,
    key: &NamespacedName,
    place: &str,
    domain: &str,
    notes: &mut Notes,
) -> Vec<Parts> {
    let mut rules = Vec::new();
    for (index, http) in (0_u32..).zip(&object.spec.http) {
        let field = format!("spec.http[{index}]");
        let origin = Origin {
            kind: Kind::VirtualService,
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            rule: index,
            rule_name: (!http.name.is_empty()).then(|| http.name.as_str().into()),
        };
        let Some(matches) = conditions::of(&field, http, place, notes) else {
            continue;
        };
        let names = action::Names {
            namespace: &key.namespace,
            domain,
        };
        let rule = Arc::new(action::rule(&field, http, origin, names, notes));
        let delegate = http.delegate.as_ref().map(|to| {
            let namespace = match to.namespace.as_str() {
                "" => &*key.namespace,
                named => named,
            };
            NamespacedName::new(namespace, &to.name)
        });
        rules.push(Parts {
            matches,
            rule,
            delegate,
        });
    }
    rules
}

/// A gateway as an object of this namespace names it: `namespace/name`, or `name` of its own.
fn gateway(written: &str, namespace: &str) -> NamespacedName {
    match written.split_once('/') {
        Some((".", name)) => NamespacedName::new(namespace, name),
        Some((namespace, name)) => NamespacedName::new(namespace, name),
        None => NamespacedName::new(namespace, written),
    }
}

/// The gateway that stands for all clients in the mesh.
const MESH: &str = "mesh";

#[cfg(test)]
mod tests;
