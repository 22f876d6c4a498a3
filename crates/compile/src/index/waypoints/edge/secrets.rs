//! The Secrets of gateways: which are named, and the certificates and roots that they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_api::Secret;
use l7::TrafficPolicy;
use l7::backend::{BackendRule, Roots, TlsMode};
use l7::listener::Certificate;
use manifest::{Kind, Labels, NamespacedName, ObjectKey};

use super::super::Waypoint;
use super::{Built, error, is_gateway};
use crate::index::Index;
use crate::l7::gateway::ClientRoots;

/// What a Secret holds for listeners.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) certificate: Option<Certificate>,
    /// Roots of clients' certificates, in PEM.
    pub(super) roots: Option<Vec<u8>>,
}

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
        for gateway in edge.listeners.keys() {
            for ingress in self.ingresses_at(gateway) {
                let all = self.tls_of(gateway, ingress).into_iter();
                let own = all.filter(|tls| tls.listener.is_none());
                named.extend(own.map(|tls| tls.secret.clone()));
            }
        }
        for (gateway, pods) in &self.waypoints.pods {
            let pods = pods.iter().filter_map(|uid| self.pods.get(uid));
            let labels: Vec<&Labels> = pods
                .map(|pod| &pod.labels)
                .filter(|labels| is_gateway(labels))
                .collect();
            let servers = edge.istio.values().map(|servers| &servers.compiled);
            let servers = servers.filter(|servers| labels.iter().any(|one| servers.selects(one)));
            let secrets = servers.flat_map(|servers| &servers.all).flat_map(|server| {
                let certificates = server.tls.iter().flatten();
                certificates.chain(server.mutual.iter().flat_map(|roots| &roots.0))
            });
            named.extend(secrets.map(|secret| NamespacedName::new(&gateway.namespace, secret)));
        }
        let mut askers: BTreeSet<&Arc<str>> = BTreeSet::new();
        askers.extend(
            self.waypoints
                .pods
                .keys()
                .map(|waypoint| &waypoint.namespace),
        );
        for (object, aged) in &self.waypoints.destination_rules {
            let secrets = named_roots(&aged.compiled.rule);
            let is_for = |namespace: &&&Arc<str>| {
                object.namespace == ***namespace || aged.compiled.export.holds(namespace)
            };
            for namespace in askers.iter().filter(is_for) {
                let secrets = secrets.iter();
                named.extend(secrets.map(|secret| NamespacedName::new(namespace, secret)));
            }
        }
        let edge = &mut self.waypoints.edge;
        if *edge.named != named {
            edge.named = Arc::new(named);
        }
    }

    /// A rule with the roots that it names, as they are in the namespace of who uses it. One that is not there believes nobody.
    pub(in crate::index::waypoints) fn rooted(
        &self,
        namespace: &Arc<str>,
        rule: &Arc<BackendRule>,
    ) -> Arc<BackendRule> {
        if named_roots(rule).is_empty() {
            return Arc::clone(rule);
        }
        let mut rule = Arc::clone(rule);
        for policy in policies_mut(Arc::make_mut(&mut rule)) {
            if let Some(TlsMode::Simple { roots, .. }) = &mut Arc::make_mut(policy).tls
                && let Roots::Named(name) = &*roots
            {
                let name = NamespacedName::new(namespace, name);
                let kept = self.waypoints.edge.secrets.get(&name);
                let pem = kept.and_then(|kept| kept.roots.clone()).unwrap_or_default();
                *roots = Roots::Given(pem.into());
            }
        }
        rule
    }

    /// The roots of clients' certificates, from the first of these Secrets that has some.
    pub(super) fn client_roots(&self, waypoint: &Waypoint, named: &ClientRoots) -> Option<Vec<u8>> {
        named.0.iter().find_map(|name| {
            let name = NamespacedName::new(&waypoint.namespace, name);
            self.waypoints.edge.secrets.get(&name)?.roots.clone()
        })
    }

    pub(super) fn certify(
        &self,
        secret: &NamespacedName,
        (about, field): (&ObjectKey, &str),
        into: &mut Vec<Certificate>,
        built: &mut Built,
    ) {
        let kept = self.waypoints.edge.secrets.get(secret);
        if let Some(certificate) = kept.and_then(|kept| kept.certificate.as_ref()) {
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
            (Some(kept), _) if kept.certificate.is_some() => None,
            (Some(_), _) => Some(format!("Secret {secret} has no tls.crt and tls.key in PEM")),
            (None, Some(why)) => Some(format!("Secret {secret} cannot be read: {why}")),
            (None, None) => Some(format!("there is no Secret {secret}")),
        }
    }
}

/// The Secrets with roots that a rule names.
fn named_roots(rule: &BackendRule) -> BTreeSet<Arc<str>> {
    let of_subsets = rule.subsets.values();
    let of_subsets = of_subsets.flat_map(|subset| subset.ports.values().chain([&subset.policy]));
    let policies = rule.ports.values().chain([&rule.policy]).chain(of_subsets);
    policies
        .filter_map(|policy| match &policy.tls {
            Some(TlsMode::Simple {
                roots: Roots::Named(name),
                ..
            }) => Some(Arc::clone(name)),
            _ => None,
        })
        .collect()
}

fn policies_mut(rule: &mut BackendRule) -> impl Iterator<Item = &mut Arc<TrafficPolicy>> {
    let of_subsets = rule.subsets.values_mut();
    let of_subsets =
        of_subsets.flat_map(|subset| subset.ports.values_mut().chain([&mut subset.policy]));
    let own = rule.ports.values_mut().chain([&mut rule.policy]);
    own.chain(of_subsets)
}

/// What a Secret holds: a certificate as `kubernetes.io/tls` has it, or as Istio also takes it, and roots of clients'.
pub(super) fn kept(secret: &Secret) -> Kept {
    let pem = |names: [&str; 2]| {
        let found = names.into_iter().find_map(|name| secret.get(name))?;
        let text = std::str::from_utf8(found).ok()?;
        text.contains("-----BEGIN ").then(|| found.to_vec())
    };
    let both = pem(["tls.crt", "cert"]).zip(pem(["tls.key", "key"]));
    Kept {
        certificate: both.map(|(chain, key)| Certificate { chain, key }),
        roots: pem(["ca.crt", "cacert"]),
    }
}
