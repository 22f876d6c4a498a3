//! `VirtualService`, for clients in the mesh.

mod action;
mod conditions;
pub(crate) mod delegate;

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
    /// Its rules for HTTP, in their order.
    pub(crate) rules: Vec<Parts>,
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
    if !spec.gateways.is_empty() && spec.gateways.iter().any(|name| name != MESH) {
        notes.warning(
            "spec.gateways",
            "gateways are not supported yet: the object has an effect for clients in the mesh only, if mesh is listed",
        );
    }
    for (field, is_there) in [
        ("spec.tls", !spec.tls.is_empty()),
        ("spec.tcp", !spec.tcp.is_empty()),
    ] {
        if is_there {
            notes.error(
                field,
                "is not supported yet: such connections go to the service's own endpoints",
            );
        }
    }
    let mut rules = Vec::new();
    for (index, http) in (0_u32..).zip(&spec.http) {
        let field = format!("spec.http[{index}]");
        let origin = Origin {
            kind: Kind::VirtualService,
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            rule: index,
            rule_name: (!http.name.is_empty()).then(|| http.name.as_str().into()),
        };
        let Some(matches) = conditions::of(&field, http, &mut notes) else {
            continue;
        };
        let names = action::Names {
            namespace: &key.namespace,
            domain,
        };
        let rule = Arc::new(action::rule(&field, http, origin, names, &mut notes));
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
    Compiled {
        hosts,
        export: Export::read(&spec.export_to, &key.namespace),
        mesh,
        rules,
        notes: notes.0,
    }
}

/// The gateway that stands for all clients in the mesh.
const MESH: &str = "mesh";

#[cfg(test)]
mod tests;
