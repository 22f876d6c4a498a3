//! What is known of the kinds that traffic objects refer to.

use std::collections::{BTreeMap, BTreeSet};

use manifest::{Labels, ObjectKey, Written};
use serde_json::Value;

use super::subject::{Subject, items, labels, strings};

/// What there is beside an object.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// Whether what is not here is nowhere.
    pub(crate) is_all: bool,
    /// The DNS suffix of Services.
    pub(crate) domain: String,
    /// By full host name.
    pub(crate) hosts: BTreeMap<String, Host>,
    /// Namespaces of which the files have Services.
    pub(crate) namespaces: BTreeSet<String>,
    /// Istio's Gateways, by namespace and name.
    pub(crate) gateways: BTreeMap<(String, String), Served>,
    /// VirtualServices, by full host name.
    pub(crate) owners: BTreeMap<String, Vec<Owner>>,
    /// Namespace and labels of every pod and pod template.
    pub(crate) pods: Vec<(String, Labels)>,
}

/// Who has a host name.
#[derive(Debug)]
pub(crate) struct Host {
    /// How it is called.
    pub(crate) said: String,
    pub(crate) namespace: String,
    pub(crate) selector: Labels,
}

/// An Istio `Gateway`.
#[derive(Debug)]
pub(crate) struct Served {
    /// How it is called.
    pub(crate) said: String,
    /// The hosts of its servers, as they are written.
    pub(crate) hosts: Vec<String>,
}

/// A `VirtualService` that has a host.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) key: ObjectKey,
    /// How it is called.
    pub(crate) said: String,
    /// Where its routes apply.
    pub(crate) bindings: BTreeSet<String>,
}

impl Around {
    /// What files have.
    pub(super) fn of_files(objects: &[Written]) -> Self {
        let mut files = Self {
            domain: "cluster.local".to_owned(),
            ..Self::default()
        };
        for object in objects {
            let spec = object.content.get("spec").unwrap_or(&Value::Null);
            let at = |pointer: &str| object.content.pointer(pointer).unwrap_or(&Value::Null);
            let (namespace, name) = (object.key.namespace(), object.key.name());
            let kind = object.key.kind();
            let said = || format!("{} ({})", object.key, object.origin);
            let host = || Host {
                said: object.key.to_string(),
                namespace: namespace.to_owned(),
                selector: labels(at("/spec/selector")),
            };
            match (kind.group(), kind.as_str()) {
                ("", "Service") => {
                    files.hosts.insert(files.full(name, namespace), host());
                    files.namespaces.insert(namespace.to_owned());
                }
                ("networking.istio.io", "ServiceEntry") => {
                    for name in strings(spec, "hosts") {
                        files.hosts.insert(name, host());
                    }
                }
                ("networking.istio.io", "Gateway") => {
                    let servers = items(spec, "servers").iter();
                    let served = Served {
                        said: said(),
                        hosts: servers.flat_map(|one| strings(one, "hosts")).collect(),
                    };
                    let key = (namespace.to_owned(), name.to_owned());
                    files.gateways.insert(key, served);
                }
                ("networking.istio.io", "VirtualService") => {
                    if let Some(subject) = Subject::read(&object.key, &object.content) {
                        files.own(&object.key, &said(), &subject);
                    }
                }
                ("", "Pod") => {
                    let of = labels(at("/metadata/labels"));
                    files.pods.push((namespace.to_owned(), of));
                }
                ("apps", _) => {
                    let of = labels(at("/spec/template/metadata/labels"));
                    files.pods.push((namespace.to_owned(), of));
                }
                _ => {}
            }
        }
        files
    }

    /// Notes which hosts an object has, which is called so.
    pub(crate) fn own(&mut self, key: &ObjectKey, said: &str, subject: &Subject) {
        let Subject::VirtualService(traffic) = subject else {
            return;
        };
        let hosts: BTreeSet<String> = traffic
            .hosts
            .iter()
            .map(|host| self.full(host, key.namespace()))
            .collect();
        for host in hosts {
            self.owners.entry(host).or_default().push(Owner {
                key: key.clone(),
                said: said.to_owned(),
                bindings: traffic.bindings(key.namespace()),
            });
        }
    }

    pub(super) fn owners(&self, host: &str) -> &[Owner] {
        self.owners.get(host).map_or(&[], Vec::as_slice)
    }

    /// A short host name means a Service of the object's own namespace.
    pub(super) fn full(&self, host: &str, namespace: &str) -> String {
        let parts: Vec<&str> = host.split('.').collect();
        match parts.as_slice() {
            [name] if *name != "*" => format!("{name}.{namespace}.svc.{}", self.domain),
            [_, _, "svc"] => format!("{host}.{}", self.domain),
            _ => host.to_owned(),
        }
    }

    /// The namespace of a Service's full host name.
    pub(super) fn namespace_of<'h>(&self, host: &'h str) -> Option<&'h str> {
        let name = host.strip_suffix(&*self.domain)?.strip_suffix(".svc.")?;
        name.split_once('.').map(|(_, namespace)| namespace)
    }

    pub(super) fn of_place(&self) -> &'static str {
        if self.is_all {
            "of the cluster"
        } else {
            "of these files"
        }
    }
}

pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}
