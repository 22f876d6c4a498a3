//! Servers of Istio's `Gateway`, with the VirtualServices that are bound to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use l7::listener::{Listener, Reads};
use l7::{HostPattern, Origin};
use manifest::{Kind, NamespacedName, ObjectKey};

use super::place::{Api, Attachments, Place};
use super::{Built, error};
use crate::index::Index;
use crate::index::waypoints::Waypoint;
use crate::l7::gateway::IstioServers;

impl Index {
    /// The servers of an Istio `Gateway` at pods that it selects, with the VirtualServices that are bound to it.
    pub(super) fn serve_istio(
        &self,
        waypoint: &Waypoint,
        (name, servers): (&NamespacedName, &IstioServers),
        places: &mut BTreeMap<String, Place>,
        attachments: &mut Attachments,
        built: &mut Built,
    ) {
        let about = ObjectKey::new(Kind::IstioGateway, &name.namespace, &name.name);
        for server in &servers.all {
            let field = format!("spec.servers[{}].tls.credentialName", server.index);
            let mut certificates = Vec::new();
            for secret in server.tls.iter().flatten() {
                // Secrets are those of the gateway's pods, wherever the object is (F51).
                let secret = NamespacedName::new(&waypoint.namespace, secret);
                self.certify(&secret, (&about, &field), &mut certificates, built);
            }
            if server.tls.is_some() && certificates.is_empty() {
                continue;
            }
            let client_roots = match &server.mutual {
                None => None,
                Some(named) => match self.client_roots(waypoint, named) {
                    Some(roots) => Some(roots),
                    None => {
                        let message = format!(
                            "none of the Secrets {} of {} has ca.crt in PEM, so that no client can be believed",
                            named.0.join(", "),
                            waypoint.namespace
                        );
                        built.found.push((about.clone(), error(&field, message)));
                        continue;
                    }
                },
            };
            let mut redirected = BTreeSet::new();
            for served in &server.hosts {
                // Plain servers of a port are one; of those with TLS the name that is asked for chooses.
                let tls = server.tls.as_ref().map(|_| certificates.clone());
                let (label, host) = match (&server.tls, server.reads) {
                    (None, Reads::Requests) => (server.port.to_string(), HostPattern::Any),
                    (None, Reads::Nothing) => (format!("{}/tcp", server.port), HostPattern::Any),
                    _ => {
                        let label = format!("{}/{}", server.port, served.host);
                        (label, served.host.clone())
                    }
                };
                let listener = Listener {
                    name: label.into(),
                    port: server.port,
                    host,
                    tls,
                    reads: server.reads,
                    client_roots: client_roots.clone(),
                    hosts: Vec::new(),
                };
                let place = Place::new(Api::Istio, listener);
                let other = places.values().find(|other| place.clashes(other));
                if let Some(other) = other {
                    let message = format!(
                        "{} is opened for something else on this port ({}): it is left out",
                        served.host, other.name
                    );
                    let field = format!("spec.servers[{}]", server.index);
                    built.found.push((about.clone(), error(&field, message)));
                    continue;
                }
                let place = places.entry(place.name.clone()).or_insert(place);
                for (object, aged) in &self.waypoints.virtual_services {
                    let compiled = &aged.compiled;
                    let is_bound = compiled.gateways.contains_key(name)
                        && compiled.export.holds(&waypoint.namespace);
                    let is_named = served
                        .namespace
                        .as_ref()
                        .is_none_or(|namespace| **namespace == *object.namespace);
                    if !is_bound || !is_named {
                        continue;
                    }
                    let hosts = compiled.hosts.iter().map(|host| host.pattern());
                    for host in hosts.filter_map(|host| served.host.and(&host)) {
                        // Where no name is read, whoever comes asks for what there is.
                        let host = match server.reads {
                            Reads::Nothing => HostPattern::Any,
                            Reads::Requests | Reads::Names => host,
                        };
                        let at = place.attach(&waypoint.namespace, host);
                        redirected.insert(at.clone());
                        let bound = (object.clone(), name.clone());
                        attachments
                            .virtual_services
                            .entry(bound)
                            .or_default()
                            .insert(at);
                    }
                }
                if server.redirect {
                    redirected.insert(place.attach(&waypoint.namespace, served.host.clone()));
                }
            }
            if server.redirect {
                let origin = Origin {
                    kind: l7::Kind::Gateway,
                    namespace: Arc::clone(&name.namespace),
                    name: Arc::clone(&name.name),
                    rule: server.index,
                    rule_name: None,
                };
                attachments.redirects.push((origin, redirected));
            }
        }
    }
}
