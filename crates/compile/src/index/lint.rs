//! What is legal in Istio's traffic objects and surely not meant, as far as a cluster tells.

use std::collections::BTreeSet;

use manifest::{Diagnostic, Kind, NamespacedName, ObjectKey, Origin};
use serde_json::Value;

use super::{Index, service};
use crate::lint::{About, Around, Host, Served, Subject};

impl Index {
    /// What there is to say of the objects of a cluster beside each other. Pods come and go, so what they lack is said only
    /// to who writes an object.
    #[must_use]
    pub fn lint(&self) -> Vec<Diagnostic> {
        let around = self.around();
        let mut said = Vec::new();
        for (key, (subject, origin)) in &self.waypoints.subjects {
            let about = About {
                key,
                origin,
                lines: None,
            };
            said.extend(around.look(subject, about));
        }
        said
    }

    /// The same of an object that somebody is about to write.
    #[must_use]
    pub fn lint_of(&self, key: &ObjectKey, content: &Value) -> Vec<Diagnostic> {
        let Some(subject) = Subject::read(key, content) else {
            return Vec::new();
        };
        let mut around = self.around();
        if let Subject::DestinationRule(_) = &subject {
            let pods = self.pods.values();
            let pods = pods.map(|pod| (pod.key.namespace.to_string(), pod.labels.clone()));
            around.pods = pods.collect();
        }
        let origin = Origin::file("object", 0);
        let about = About {
            key,
            origin: &origin,
            lines: None,
        };
        around.look(&subject, about)
    }

    /// Authorization policies that a waypoint is told of, as `namespace/name`. Gateways are none: what does not come in by them they
    /// do not see.
    #[must_use]
    pub fn policies_at_waypoints(&self) -> BTreeSet<String> {
        let waypoints = self.snapshot.waypoints.values();
        let inside = waypoints.filter(|entry| entry.listeners.is_empty());
        inside
            .flat_map(|entry| entry.policies.keys().map(ToString::to_string))
            .collect()
    }

    fn around(&self) -> Around {
        let mut around = Around {
            is_all: true,
            domain: self.mesh.cluster_domain.clone(),
            ..Around::default()
        };
        for (key, facts) in &self.services {
            let of = |kind, name: &NamespacedName| {
                ObjectKey::new(kind, &name.namespace, &name.name).to_string()
            };
            let (name, said) = match &facts.declared {
                None => (service::hostname(key, &self.mesh), of(Kind::Service, key)),
                Some(declared) => (
                    key.name.to_string(),
                    of(Kind::ServiceEntry, &declared.object),
                ),
            };
            let host = Host {
                said,
                namespace: key.namespace.to_string(),
                selector: facts.selector.clone(),
            };
            around.hosts.insert(name, host);
        }
        for (name, written) in self.waypoints.istio_gateways() {
            let hosts = written.all.iter().flat_map(|server| &server.hosts);
            let hosts = hosts.map(|host| match &host.namespace {
                Some(namespace) => format!("{namespace}/{}", host.host),
                None => host.host.to_string(),
            });
            let served = Served {
                said: ObjectKey::new(Kind::IstioGateway, &name.namespace, &name.name).to_string(),
                hosts: hosts.collect(),
            };
            let key = (name.namespace.to_string(), name.name.to_string());
            around.gateways.insert(key, served);
        }
        for (key, (subject, _)) in &self.waypoints.subjects {
            around.own(key, &key.to_string(), subject);
        }
        around
    }
}
