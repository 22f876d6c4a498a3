//! The Secrets of gateways: which are named, and whether they are certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_api::Secret;
use l7::listener::Certificate;
use manifest::{Kind, Labels, NamespacedName, ObjectKey};

use super::{Built, error, is_gateway};
use crate::index::Index;

impl Index {
    /// Takes in which Secrets cannot be read, and why.
    pub fn set_unreadable(&mut self, secrets: BTreeMap<NamespacedName, String>) {
        let edge = &mut self.waypoints.edge;
        self.waypoints.all_marked |= edge.unreadable != secrets;
        edge.unreadable = secrets;
    }

    /// The Secrets that gateways name, as of the last flush: a source has to read these and no others.
    pub fn named_secrets(&self) -> &Arc<BTreeSet<NamespacedName>> {
        &self.waypoints.edge.named
    }

    /// Looks which Secrets gateways name. One of another namespace that does not grant it is not read.
    pub(in crate::index) fn name_secrets(&mut self) {
        let edge = &self.waypoints.edge;
        let mut named = BTreeSet::new();
        for (gateway, listeners) in &edge.listeners {
            let from = (Kind::Gateway, &gateway.namespace);
            let doors = listeners.compiled.all.iter();
            let secrets = doors.flat_map(|door| door.tls.iter().flatten());
            let granted = secrets.filter(|secret| {
                secret.namespace == gateway.namespace || self.is_granted(from, Kind::Secret, secret)
            });
            named.extend(granted.cloned());
        }
        for (gateway, pods) in &self.waypoints.pods {
            let pods = pods.iter().filter_map(|uid| self.pods.get(uid));
            let labels: Vec<&Labels> = pods
                .map(|pod| &pod.labels)
                .filter(|labels| is_gateway(labels))
                .collect();
            let servers = edge.istio.values().map(|servers| &servers.compiled);
            let servers = servers.filter(|servers| labels.iter().any(|one| servers.selects(one)));
            let secrets = servers
                .flat_map(|servers| &servers.all)
                .flat_map(|server| server.tls.iter().flatten());
            named.extend(secrets.map(|secret| NamespacedName::new(&gateway.namespace, secret)));
        }
        let edge = &mut self.waypoints.edge;
        if *edge.named != named {
            edge.named = Arc::new(named);
        }
    }

    pub(super) fn certify(
        &self,
        secret: &NamespacedName,
        (about, field): (&ObjectKey, &str),
        into: &mut Vec<Certificate>,
        built: &mut Built,
    ) {
        if let Some(Some(certificate)) = self.waypoints.edge.secrets.get(secret) {
            return into.push(certificate.clone());
        }
        let message = self.wrong_secret(secret).unwrap_or_default();
        built.found.push((about.clone(), error(field, message)));
    }

    /// Why a Secret is no certificate; `None` if it is one.
    pub(in crate::index::waypoints) fn wrong_secret(
        &self,
        secret: &NamespacedName,
    ) -> Option<String> {
        let edge = &self.waypoints.edge;
        match (edge.secrets.get(secret), edge.unreadable.get(secret)) {
            (Some(Some(_)), _) => None,
            (Some(None), _) => Some(format!("Secret {secret} has no tls.crt and tls.key in PEM")),
            (None, Some(why)) => Some(format!("Secret {secret} cannot be read: {why}")),
            (None, None) => Some(format!("there is no Secret {secret}")),
        }
    }
}

/// The certificate in a Secret: as `kubernetes.io/tls` has it, or as Istio also takes it.
pub(super) fn certificate(secret: &Secret) -> Option<Certificate> {
    let pem = |names: [&str; 2]| {
        let found = names.into_iter().find_map(|name| secret.get(name))?;
        let text = std::str::from_utf8(found).ok()?;
        text.contains("-----BEGIN ").then(|| found.to_vec())
    };
    Some(Certificate {
        chain: pem(["tls.crt", "cert"])?,
        key: pem(["tls.key", "key"])?,
    })
}
