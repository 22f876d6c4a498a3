//! Ingresses at the Gateway that their class names.
//!
//! An Ingress is served where a route of its namespace would be: at the Gateway's listeners that read requests and take
//! HTTPRoutes of that namespace. Its own certificates open port 443 for their hosts, unless the Gateway has a listener for
//! them there. A host of several Ingresses is one, the most specific path first, of equal ones that of the oldest object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::StatusCode;
use l7::listener::{Listener, Reads};
use l7::route::{
    Action, Attachment, Backend, Forward, HeaderOperations, Precedence, Retries, RouteRule,
    Treatment, WeightedBackend,
};
use l7::{ClusterKey, HostPattern, Rule};
use manifest::{Kind, NamespacedName, ObjectKey, Origin, Severity};

use super::place::{Api, Place};
use super::{Built, Written, error};
use crate::index::Index;
use crate::index::authorization::Note;
use crate::index::waypoints::view::IngressView;
use crate::index::waypoints::{Aged, Waypoint};
use crate::l7::gateway::Door;
use crate::l7::ingress::{Compiled, Path, Port, Target};

/// Where TLS of Ingresses ends.
pub(in crate::index::waypoints) const TLS_PORT: u16 = 443;

/// Hosts for which an Ingress has TLS end.
pub(in crate::index::waypoints) struct TlsHost<'i> {
    host: HostPattern,
    /// Where it is written.
    field: &'i str,
    /// The Secret with the certificate.
    pub(in crate::index::waypoints) secret: &'i NamespacedName,
    /// The Gateway's own listener for it, which counts in the Secret's place.
    pub(in crate::index::waypoints) listener: Option<&'i Door>,
}

/// An Ingress that a Gateway serves.
pub(in crate::index::waypoints) type Served<'i> = (&'i NamespacedName, &'i Aged<Written<Compiled>>);

impl Index {
    /// The class that an Ingress is of, with its Gateway, if it is one of ours: the one that it names, else the newest
    /// default one, as the API server chooses it.
    fn class_of(&self, ingress: &Compiled) -> Option<(&Arc<str>, &Result<Waypoint, String>)> {
        let classes = &self.waypoints.edge.classes;
        let found = match &ingress.class {
            Some(name) => classes.get_key_value(&NamespacedName::new("", name)),
            None => {
                let default = classes.iter().filter(|(_, one)| one.compiled.is_default);
                default.max_by_key(|(_, one)| one.created.as_deref())
            }
        };
        let (class, aged) = found?;
        Some((&class.name, aged.compiled.gateway.as_ref()?))
    }

    /// Whether an Ingress is of a class of ours.
    pub(super) fn is_ours(&self, ingress: &Compiled) -> bool {
        self.class_of(ingress).is_some()
    }

    /// The Gateway that an Ingress asks for.
    pub(in crate::index::waypoints) fn gateway_of(&self, ingress: &Compiled) -> Option<&Waypoint> {
        self.class_of(ingress)?.1.as_ref().ok()
    }

    /// The listeners at which a Gateway serves an Ingress of a namespace.
    fn doors_for(&self, waypoint: &Waypoint, namespace: &Arc<str>) -> Vec<&Door> {
        let listeners = self.waypoints.edge.listeners.get(waypoint);
        let doors = listeners.into_iter().flat_map(|one| &one.compiled.all);
        doors
            .filter(|door| {
                door.reads == Reads::Requests
                    && door.kinds.contains(&Kind::HttpRoute)
                    && self.may_attach(&door.from, &waypoint.namespace, namespace)
            })
            .collect()
    }

    /// The Ingresses of a Gateway that it serves, the oldest first.
    pub(in crate::index::waypoints) fn ingresses_at(&self, waypoint: &Waypoint) -> Vec<Served<'_>> {
        let all = self.waypoints.edge.ingresses.iter();
        let mut served: Vec<Served<'_>> = all
            .filter(|(name, aged)| {
                self.gateway_of(&aged.compiled.compiled) == Some(waypoint)
                    && !self.doors_for(waypoint, &name.namespace).is_empty()
            })
            .collect();
        served.sort_by_key(|(name, aged)| (aged.rank(), *name));
        served
    }

    /// What is to be said of each Ingress of our classes.
    pub(in crate::index::waypoints) fn view_of_ingresses(
        &self,
    ) -> BTreeMap<NamespacedName, IngressView> {
        let edge = &self.waypoints.edge;
        let of = |(name, aged): (&NamespacedName, &Aged<Written<Compiled>>)| {
            let ingress = &aged.compiled;
            let Origin::Object { uid, .. } = &ingress.origin else {
                return None;
            };
            let (_, gateway) = self.class_of(&ingress.compiled)?;
            let is_served =
                |gateway: &&Waypoint| !self.doors_for(gateway, &name.namespace).is_empty();
            let key = ObjectKey::new(Kind::Ingress, &name.namespace, &name.name);
            let said = edge.said.get(&key).into_iter().flatten();
            let errors = said.filter(|one| {
                one.severity == Severity::Error || one.field == "spec.ingressClassName"
            });
            let errors = errors.map(|one| format!("{}: {}", one.field, one.message));
            let view = IngressView {
                uid: Arc::clone(uid),
                gateway: gateway.as_ref().ok().filter(is_served).cloned(),
                wrong: errors.collect::<Vec<_>>().join("; "),
            };
            Some((name.clone(), view))
        };
        edge.ingresses.iter().filter_map(of).collect()
    }

    /// The hosts for which an Ingress has TLS end at a Gateway.
    pub(in crate::index::waypoints) fn tls_of<'i>(
        &'i self,
        waypoint: &Waypoint,
        (name, aged): Served<'i>,
    ) -> Vec<TlsHost<'i>> {
        let listeners = self.waypoints.edge.listeners.get(waypoint);
        let all = listeners.map_or(&[][..], |one| &one.compiled.all);
        let doors = self.doors_for(waypoint, &name.namespace);
        let mut found = Vec::new();
        for tls in &aged.compiled.compiled.tls {
            let hosts = tls.hosts.iter().flat_map(|host| {
                let hosts = doors.iter().filter_map(|door| door.host.and(host));
                hosts.collect::<BTreeSet<_>>()
            });
            for host in hosts {
                let covers = |door: &&Door| {
                    door.port == TLS_PORT && door.host.and(&host).as_ref() == Some(&host)
                };
                let own = all.iter().find(covers);
                found.push(TlsHost {
                    field: &tls.field,
                    secret: &tls.secret,
                    listener: own,
                    host,
                });
            }
        }
        found
    }

    /// The Ingresses of a Gateway, with their certificates.
    pub(super) fn serve_ingresses(
        &self,
        waypoint: &Waypoint,
        places: &mut BTreeMap<String, Place>,
        built: &mut Built,
    ) {
        let ingresses = self.ingresses_at(waypoint);
        let mut claimed: BTreeMap<HostPattern, (&NamespacedName, &NamespacedName)> =
            BTreeMap::new();
        for (name, aged) in &ingresses {
            let about = ObjectKey::new(Kind::Ingress, &name.namespace, &name.name);
            let mut say = |severity, field: &str, message| {
                let note = Note {
                    severity,
                    field: field.to_owned(),
                    message,
                };
                built.found.push((about.clone(), note));
            };
            for tls in self.tls_of(waypoint, (name, aged)) {
                let TlsHost {
                    host,
                    field,
                    secret,
                    listener,
                } = tls;
                if let Some(own) = listener {
                    let message = format!(
                        "{host}: listener {} of Gateway {waypoint} has port {TLS_PORT} for it, and counts",
                        own.name
                    );
                    say(Severity::Warning, field, message);
                    continue;
                }
                let (first, theirs) = *claimed.entry(host.clone()).or_insert((secret, name));
                if first != secret {
                    let message = format!(
                        "{host}: Secret {first} of Ingress {theirs} counts, which is older"
                    );
                    say(Severity::Warning, field, message);
                    continue;
                }
                if theirs != *name {
                    continue;
                }
                let mut certificates = Vec::new();
                let field = format!("{field}.secretName");
                let mut wrong = Built::default();
                self.certify(secret, (&about, &field), &mut certificates, &mut wrong);
                for (_, note) in wrong.found {
                    say(note.severity, &note.field, note.message);
                }
                if certificates.is_empty() {
                    continue;
                }
                let listener = Listener {
                    name: host.to_string().into(),
                    port: TLS_PORT,
                    host,
                    tls: Some(certificates),
                    reads: Reads::Requests,
                    client_roots: None,
                    hosts: Vec::new(),
                };
                let place = Place::new(Api::Ingress, listener);
                if let Some(other) = places.values().find(|other| place.clashes(other)) {
                    let message = format!(
                        "port {TLS_PORT} is opened for something else ({}): no TLS for it",
                        other.name
                    );
                    say(Severity::Error, &field, message);
                    continue;
                }
                places.insert(place.name.clone(), place);
            }
        }
        for (name, aged) in ingresses {
            self.attach_ingress(waypoint, (name, aged), places, built);
        }
    }

    fn attach_ingress(
        &self,
        waypoint: &Waypoint,
        (name, aged): Served<'_>,
        places: &mut BTreeMap<String, Place>,
        built: &mut Built,
    ) {
        let about = ObjectKey::new(Kind::Ingress, &name.namespace, &name.name);
        let doors = self.doors_for(waypoint, &name.namespace);
        let names = doors
            .iter()
            .map(|door| Api::Gateway.place(door.port, &door.name));
        let names: Vec<String> = names.collect();
        let rules = &aged.compiled.compiled.rules;
        // A tilde sorts behind every time, and two behind everything that is no default backend.
        let created = aged.created.as_deref().unwrap_or("~");
        for path in rules {
            let hosts: Vec<HostPattern> = match &path.host {
                Some(host) => vec![host.clone()],
                None => {
                    let own = aged.compiled.compiled.hosts.iter().cloned();
                    own.chain([HostPattern::Any]).collect()
                }
            };
            let mut attachments: Vec<Attachment> = Vec::new();
            let open = places
                .values_mut()
                .filter(|place| place.api == Api::Ingress || names.contains(&place.name));
            for place in open {
                for host in &hosts {
                    if let Some(host) = place.host().and(host) {
                        attachments.push(place.attach(&waypoint.namespace, host));
                    }
                }
            }
            attachments.sort();
            attachments.dedup();
            if attachments.is_empty() {
                let message = format!("none of Gateway {waypoint}'s listeners is for this host");
                built
                    .found
                    .push((about.clone(), error(&path.field, message)));
                continue;
            }
            let backend = self.backend_of(&path.target);
            if let Err(message) = &backend {
                let field = match path.host {
                    Some(_) => format!("{}.backend.service", path.field),
                    None => format!("{}.service", path.field),
                };
                built
                    .found
                    .push((about.clone(), error(&field, message.clone())));
            }
            let precedence = match path.host {
                Some(_) => format!("{created} {name}"),
                None => format!("~~{created} {name}"),
            };
            let rule = RouteRule {
                attachments,
                precedence: Precedence::Specific(precedence.into()),
                matches: vec![path.condition.clone()],
                rule: Arc::new(forward(path, backend)),
            };
            let resource = format!("gateway/Ingress/{name}/{}", path.origin.rule);
            built.rules.push((resource, rule));
        }
    }

    /// The cluster that a backend means, or what is wrong with it.
    fn backend_of(&self, target: &Target) -> Result<ClusterKey, String> {
        let name = &target.service;
        let facts = self.services.get(name);
        let facts = facts.ok_or_else(|| format!("there is no Service {name}"))?;
        let port = match &target.port {
            Port::Number(number) => facts.ports.iter().find(|port| port.port == *number),
            Port::Named(called) => facts.ports.iter().find(|port| *port.name == **called),
        };
        let port = port.ok_or_else(|| match &target.port {
            Port::Number(number) => format!("Service {name} has no port {number}"),
            Port::Named(called) => format!("Service {name} has no port called {called:?}"),
        })?;
        Ok(ClusterKey {
            service: self.service_key(name),
            port: port.port,
            subset: None,
        })
    }

    /// What keeps an Ingress of one of our classes from being served at all.
    pub(super) fn why_not_served(&self, name: &NamespacedName, ingress: &Compiled) -> Option<Note> {
        let (class, gateway) = self.class_of(ingress)?;
        let message = match gateway {
            Err(why) => format!("IngressClass {class} {why}: nothing serves this Ingress"),
            // It may come yet, or be in no file that somebody checks.
            Ok(gateway) if !self.waypoints.edge.listeners.contains_key(gateway) => {
                let message = format!(
                    "there is no Gateway {gateway} of class keelson, which IngressClass {class} names: nothing serves this Ingress"
                );
                return Some(Note {
                    severity: Severity::Warning,
                    ..error("spec.ingressClassName", message)
                });
            }
            Ok(gateway) if self.doors_for(gateway, &name.namespace).is_empty() => format!(
                "no listener of Gateway {gateway} takes HTTP of namespace {}, by its allowedRoutes: nothing serves this Ingress",
                name.namespace
            ),
            Ok(_) => return None,
        };
        Some(error("spec.ingressClassName", message))
    }
}

fn forward(path: &Path, backend: Result<ClusterKey, String>) -> Rule {
    let backend = match backend {
        Ok(key) => Backend::Cluster(key),
        Err(reason) => Backend::Invalid {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: reason.into(),
        },
    };
    Rule::new(
        path.origin.clone(),
        Treatment {
            action: Action::Forward(Forward {
                backends: vec![WeightedBackend {
                    backend,
                    weight: 1,
                    request_headers: HeaderOperations::NONE,
                    response_headers: HeaderOperations::NONE,
                    authority: None,
                }],
                retries: Retries::standard().into(),
                ..Forward::default()
            }),
            timeout: None,
            fault: None,
            cors: None,
            request_headers: HeaderOperations::NONE,
            response_headers: HeaderOperations::NONE,
        },
    )
}
