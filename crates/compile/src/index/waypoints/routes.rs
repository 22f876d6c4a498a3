//! Which routes count for a service: for every port, and for everybody or for the clients of a namespace.
//!
//! On a port GRPCRoutes go before HTTPRoutes, these before TLSRoutes, these before TCPRoutes (GEP-1294), and these before a
//! VirtualService. An object of the service's own namespace
//! (a VirtualService also of the waypoint's or the root namespace) counts for everybody; one of another namespace counts
//! for the clients of that namespace, and for them stands in the place of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::StatusCode;
use l7::ClusterKey;
use l7::route::{Action, Attachment, Backend, Match, Precedence, RouteRule};
use manifest::{Kind, NamespacedName};
use model::ServiceKey;

use super::super::{Index, service};
use super::{Aged, Waypoint};
use crate::l7::Parts;
use crate::l7::hosts::Export;
use crate::l7::virtual_service::{self, delegate};

/// A route object.
type Object = (Kind, NamespacedName);
/// Everybody, or the clients of a namespace.
type Audience = Option<Arc<str>>;

/// Where each object counts.
#[derive(Debug, Default)]
pub(super) struct Attached(BTreeMap<Object, BTreeSet<Attachment>>);

impl Index {
    /// Adds the routes of a service that is attached to a waypoint.
    pub(super) fn attach_routes(
        &self,
        waypoint: &Waypoint,
        name: &NamespacedName,
        into: &mut Attached,
    ) {
        let Some(facts) = self.services.get(name) else {
            return;
        };
        let key = ServiceKey::new(
            Arc::clone(&name.namespace),
            service::hostname(name, &self.mesh),
        );
        let mut chosen: BTreeMap<(Object, Audience), BTreeSet<u16>> = BTreeMap::new();
        let routes = self.routes_of(&key);
        let virtual_services = self.virtual_services_of(waypoint, &key);
        let audiences = routes.iter().map(|(_, audience, _)| audience.clone());
        let audiences = audiences.chain(virtual_services.keys().cloned());
        let audiences: BTreeSet<Audience> = audiences.collect();
        for port in facts.ports.iter().map(|port| port.port) {
            for audience in &audiences {
                let of_kind = |kind: Kind| {
                    let here = routes.iter().filter(move |((is, _), to, at)| {
                        *is == kind && to == audience && at.is_none_or(|at| at == port)
                    });
                    here.map(|(object, ..)| object.clone())
                        .collect::<BTreeSet<_>>()
                };
                let kinds = [
                    Kind::GrpcRoute,
                    Kind::HttpRoute,
                    Kind::TlsRoute,
                    Kind::TcpRoute,
                ];
                let mut kinds = kinds.into_iter().map(of_kind);
                let mut winners = kinds.find(|found| !found.is_empty()).unwrap_or_default();
                if winners.is_empty()
                    && let Some(object) = virtual_services.get(audience)
                {
                    winners.insert((Kind::VirtualService, object.clone()));
                }
                for object in winners {
                    let ports = chosen.entry((object, audience.clone())).or_default();
                    ports.insert(port);
                }
            }
        }
        let all: BTreeSet<u16> = facts.ports.iter().map(|port| port.port).collect();
        for ((object, client_namespace), ports) in chosen {
            let ports: Vec<Option<u16>> = if ports == all {
                vec![None]
            } else {
                ports.into_iter().map(Some).collect()
            };
            let attachments = into.0.entry(object).or_default();
            attachments.extend(ports.into_iter().map(|port| Attachment {
                service: key.clone(),
                port,
                client_namespace: client_namespace.clone(),
            }));
        }
    }

    /// The routes of the Gateway API whose parent is a service.
    fn routes_of(&self, key: &ServiceKey) -> Vec<(Object, Audience, Option<u16>)> {
        let mut found = Vec::new();
        for (object, route) in &self.waypoints.routes {
            let namespace = &object.1.namespace;
            let audience = (*namespace != key.namespace).then(|| Arc::clone(namespace));
            for (parent, port) in &route.compiled.parents {
                if parent == key {
                    found.push((object.clone(), audience.clone(), *port));
                }
            }
        }
        found
    }

    /// By audience, the VirtualService that has the service's host: the most specific host, then the oldest object.
    fn virtual_services_of(
        &self,
        waypoint: &Waypoint,
        key: &ServiceKey,
    ) -> BTreeMap<Audience, NamespacedName> {
        let mut best: BTreeMap<Audience, _> = BTreeMap::new();
        for (name, aged) in &self.waypoints.virtual_services {
            let compiled = &aged.compiled;
            let hosts = compiled.hosts.iter();
            let host = hosts
                .filter(|host| host.holds(&key.hostname))
                .min_by(|a, b| a.rank().cmp(&b.rank()));
            let (Some(host), true) = (host, compiled.mesh) else {
                continue;
            };
            let rank = (host.rank(), aged.rank(), name.clone());
            for audience in self.audiences(waypoint, key, name, &compiled.export) {
                match best.get(&audience) {
                    Some((known, _)) if *known <= rank => {}
                    _ => drop(best.insert(audience, (rank.clone(), name.clone()))),
                }
            }
        }
        best.into_iter()
            .map(|(audience, (_, name))| (audience, name))
            .collect()
    }

    fn audiences(
        &self,
        waypoint: &Waypoint,
        key: &ServiceKey,
        object: &NamespacedName,
        export: &Export,
    ) -> Vec<Audience> {
        let namespace = &object.namespace;
        let is_owners = *namespace == key.namespace
            || *namespace == waypoint.namespace
            || **namespace == self.mesh.root_namespace;
        match export {
            Export::All if is_owners => vec![None],
            Export::To(to) if is_owners => {
                let to = to.iter().map(|to| Some(to.as_str().into()));
                to.collect()
            }
            other if other.holds(namespace) => vec![Some(Arc::clone(namespace))],
            _ => Vec::new(),
        }
    }

    /// The rules of all attached objects, with the names of their resources.
    pub(super) fn attached_rules(&self, attached: &Attached) -> Vec<(String, RouteRule)> {
        let mut rules = Vec::new();
        for ((kind, name), attachments) in &attached.0 {
            let mut add = |resource: String, precedence: &Precedence, parts: &Parts| {
                let rule = RouteRule {
                    attachments: attachments.iter().cloned().collect(),
                    precedence: precedence.clone(),
                    matches: parts.matches.clone(),
                    rule: Arc::clone(&parts.rule),
                };
                rules.push((resource, rule));
            };
            if *kind == Kind::VirtualService {
                for (resource, rank, parts) in self.listed(name) {
                    add(resource, &Precedence::Listed(rank.into()), &parts);
                }
                continue;
            }
            let Some(aged) = self.waypoints.routes.get(&(*kind, name.clone())) else {
                continue;
            };
            // A tilde sorts behind every time.
            let created = aged.created.as_deref().unwrap_or("~");
            let rank = Precedence::Specific(format!("{created} {name}").into());
            for parts in &aged.compiled.rules {
                let resource = format!("{}/{name}/{}", kind.as_str(), parts.rule.origin.rule);
                add(resource, &rank, parts);
            }
        }
        rules
    }

    /// The rules of a VirtualService, with their names and what puts them in order. A rule that delegates stands for those
    /// of the other object; what these delegate further goes nowhere, as in Istio.
    fn listed(&self, name: &NamespacedName) -> Vec<(String, String, Parts)> {
        let Some(aged) = self.waypoints.virtual_services.get(name) else {
            return Vec::new();
        };
        self.listed_among(name, aged, &aged.compiled.rules)
    }

    /// The same of those rules of it that count at one place.
    pub(super) fn listed_among(
        &self,
        name: &NamespacedName,
        aged: &Aged<virtual_service::Compiled>,
        rules: &[Parts],
    ) -> Vec<(String, String, Parts)> {
        let mut listed = Vec::new();
        // A tilde sorts behind every time.
        let created = aged.created.as_deref().unwrap_or("~");
        for parts in rules {
            let index = parts.rule.origin.rule;
            let is_for_connections = parts.matches.iter().any(|m| m.connection.is_some());
            // The oldest object first; numbers of one width, so that text is in their order.
            let rank = format!("{created} {name} {index:010}");
            let section = match &parts.rule.origin.rule_name {
                Some(section) if is_for_connections => format!("{section}"),
                _ => index.to_string(),
            };
            let resource = format!("VirtualService/{name}/{section}");
            let to = parts.delegate.as_ref().and_then(|to| {
                let other = self.waypoints.virtual_services.get(to)?;
                let is_for_others = other.compiled.hosts.is_empty();
                let is_visible = other.compiled.export.holds(&name.namespace);
                (is_for_others && is_visible).then_some((to, other))
            });
            let Some((to, other)) = to else {
                let parts = self.leading(parts, &name.namespace);
                listed.push((resource, rank, parts));
                continue;
            };
            // Requests alone are delegated.
            let requests = other.compiled.rules.iter().filter(|inner| {
                let mut matches = inner.matches.iter();
                matches.all(|m| m.connection.is_none())
            });
            for inner in requests {
                if let Some(matches) = of_both(&parts.matches, &inner.matches) {
                    let resource = format!("{resource}/{to}/{}", inner.rule.origin.rule);
                    let inner = Parts {
                        matches,
                        ..self.leading(inner, &to.namespace)
                    };
                    listed.push((resource, rank.clone(), inner));
                }
            }
        }
        listed
    }
}

impl Index {
    /// A rule of an object of a namespace, with the services that its hosts mean there. A host that nobody has is answered
    /// with 503, and no mirror goes there.
    fn leading(&self, parts: &Parts, namespace: &Arc<str>) -> Parts {
        let mut parts = parts.clone();
        let Action::Forward(forward) = &parts.rule.action else {
            return parts;
        };
        let backends = forward.backends.iter();
        let backends = backends.filter_map(|one| match &one.backend {
            Backend::Cluster(key) => Some(key),
            Backend::Invalid { .. } => None,
        });
        let mirrors = forward.mirrors.iter().map(|mirror| &mirror.backend);
        let is_open = |key: &ClusterKey| key.service.namespace.is_empty();
        if !backends.chain(mirrors).any(is_open) {
            return parts;
        }
        let find = |key: &mut ClusterKey| {
            if !is_open(key) {
                return true;
            }
            let found = self.declared(&key.service.hostname, namespace);
            found.is_some_and(|name| {
                key.service = self.service_key(&name);
                true
            })
        };
        let Action::Forward(forward) = &mut Arc::make_mut(&mut parts.rule).action else {
            return parts;
        };
        for one in &mut forward.backends {
            if let Backend::Cluster(key) = &mut one.backend
                && !find(key)
            {
                let host = &key.service.hostname;
                one.backend = Backend::Invalid {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    reason: format!("no Service or ServiceEntry has the host {host}").into(),
                };
            }
        }
        forward
            .mirrors
            .retain_mut(|mirror| find(&mut mirror.backend));
        parts
    }
}

/// Every condition of one rule with every one of another; `None` if no request fulfils any two.
fn of_both(outer: &[Match], inner: &[Match]) -> Option<Vec<Match>> {
    if outer.is_empty() {
        return Some(inner.to_vec());
    }
    if inner.is_empty() {
        return Some(outer.to_vec());
    }
    let pairs = outer.iter().flat_map(|o| inner.iter().map(move |i| (o, i)));
    let both: Vec<Match> = pairs.filter_map(|(o, i)| delegate::both(o, i)).collect();
    (!both.is_empty()).then_some(both)
}
