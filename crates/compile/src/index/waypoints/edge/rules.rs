//! The rules of a gateway: routes and VirtualServices at its virtual hosts, and redirections to HTTPS.

use std::sync::Arc;

use http::StatusCode;
use l7::route::{Action, Backend, HeaderOperations, Precedence, Redirect, RouteRule, Treatment};
use l7::{ClusterKey, Origin, Rule};
use manifest::{Kind, NamespacedName};

use super::place::Attachments;
use crate::index::{Index, service};

impl Index {
    /// The rules that are attached somewhere, each with the name of its resource.
    pub(super) fn rules_at_edge(
        &self,
        attachments: &Attachments,
        into: &mut Vec<(String, RouteRule)>,
    ) {
        for ((kind, name), at) in &attachments.routes {
            let Some(aged) = self.waypoints.routes.get(&(*kind, name.clone())) else {
                continue;
            };
            // A tilde sorts behind every time.
            let created = aged.created.as_deref().unwrap_or("~");
            let precedence = Precedence::Specific(format!("{created} {name}").into());
            for parts in &aged.compiled.rules {
                let index = parts.rule.origin.rule;
                let rule = RouteRule {
                    attachments: at.iter().cloned().collect(),
                    precedence: precedence.clone(),
                    matches: parts.matches.clone(),
                    rule: Arc::new(self.permitted(&parts.rule, *kind, &name.namespace)),
                };
                into.push((format!("gateway/{}/{name}/{index}", kind.as_str()), rule));
            }
        }
        for ((name, gateway), at) in &attachments.virtual_services {
            let Some(aged) = self.waypoints.virtual_services.get(name) else {
                continue;
            };
            let none = Vec::new();
            let rules = aged.compiled.gateways.get(gateway).unwrap_or(&none);
            for (resource, rank, parts) in self.listed_among(name, aged, rules) {
                let rule = RouteRule {
                    attachments: at.iter().cloned().collect(),
                    precedence: Precedence::Listed(rank.into()),
                    matches: parts.matches.clone(),
                    rule: Arc::clone(&parts.rule),
                };
                into.push((format!("gateway/{gateway}/{resource}"), rule));
            }
        }
        for (origin, at) in &attachments.redirects {
            let name = format!(
                "gateway/{}/{}/redirect/{}",
                origin.namespace, origin.name, origin.rule
            );
            let rule = RouteRule {
                attachments: at.iter().cloned().collect(),
                // Before all others.
                precedence: Precedence::Listed("".into()),
                matches: Vec::new(),
                rule: Arc::new(to_https(origin.clone())),
            };
            into.push((name, rule));
        }
    }

    /// A rule under a Gateway: a backend that is not there, or is of another namespace that does not grant it, fails its
    /// share of the requests with 500 (`HTTPBackendRef`), and no mirror goes to such a one.
    fn permitted(&self, rule: &Rule, kind: Kind, namespace: &Arc<str>) -> Rule {
        let mut rule = rule.clone();
        let Action::Forward(forward) = &mut rule.action else {
            return rule;
        };
        let wrong = |key: &ClusterKey| {
            let name = service::name_of(&key.service, &self.mesh);
            let is_own = name.namespace == *namespace;
            if !is_own && !self.is_granted((kind, namespace), Kind::Service, &name) {
                return Some(format!(
                    "Service {name} is not granted by a ReferenceGrant there"
                ));
            }
            (!self.services.contains_key(&name)).then(|| format!("there is no Service {name}"))
        };
        for one in &mut forward.backends {
            if let Backend::Cluster(key) = &one.backend
                && let Some(reason) = wrong(key)
            {
                one.backend = Backend::Invalid {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    reason: reason.into(),
                };
            }
        }
        forward
            .mirrors
            .retain(|mirror| wrong(&mirror.backend).is_none());
        rule
    }

    /// Whether a reference from objects of this kind and namespace is allowed where it leads.
    pub(in crate::index::waypoints) fn is_granted(
        &self,
        (kind, namespace): (Kind, &Arc<str>),
        to: Kind,
        named: &NamespacedName,
    ) -> bool {
        let grants = self.waypoints.edge.grants.iter();
        let there = grants.filter(|(grant, _)| grant.namespace == named.namespace);
        there.map(|(_, spec)| spec).any(|spec| {
            let is_from = spec.from.iter().any(|from| {
                from.group == kind.group()
                    && from.kind == kind.as_str()
                    && *from.namespace == **namespace
            });
            is_from
                && spec.to.iter().any(|one| {
                    let name = one.name.as_deref().filter(|name| !name.is_empty());
                    one.group == to.group()
                        && one.kind == to.as_str()
                        && name.is_none_or(|name| *name == *named.name)
                })
        })
    }
}

fn to_https(origin: Origin) -> Rule {
    Rule::new(
        origin,
        Treatment {
            action: Action::Redirect(Redirect {
                status: StatusCode::MOVED_PERMANENTLY,
                scheme: Some("https".into()),
                host: None,
                port: l7::route::RedirectPort::Unsaid,
                path: None,
            }),
            timeout: None,
            fault: None,
            cors: None,
            request_headers: HeaderOperations::default(),
            response_headers: HeaderOperations::default(),
        },
    )
}
