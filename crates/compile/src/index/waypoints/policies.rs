//! Which policies a waypoint is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use manifest::{NamespacedName, PodFacts};
use prost::Message;
use proto::istio::security::Authorization;
use proto::l7::{self as pb, policy::Scope};

use super::super::authorization::http::At;
use super::super::peer_authentication::{Effect, converted, strict_key};
use super::super::{Index, service};
use super::Waypoint;
use super::assembly::Need;

impl Index {
    /// Names of the policies that select a pod.
    pub(super) fn http_policies_of(&self, pod: &PodFacts) -> Vec<String> {
        let root: Arc<str> = self.mesh.root_namespace.as_str().into();
        let keys = self.selecting(&root, pod);
        let selects = |key: &NamespacedName| {
            let policy = self.waypoints.policies.get(key);
            policy.is_some_and(|known| matches!(known.policy.scope, Some(Scope::OfEndpoints(_))))
        };
        let names = keys.iter().filter(|key| selects(key));
        let mut names: Vec<String> = names.map(ToString::to_string).collect();
        names.extend(match self.peer_authentication_of_pod(pod) {
            Effect::Permissive => None,
            Effect::Strict { .. } => Some(strict_key(&root).to_string()),
            Effect::Converted { from } => Some(converted(from).to_string()),
        });
        names.sort();
        names
    }

    /// The policies that count for what a waypoint sees, by name.
    pub(super) fn policies_at(
        &self,
        waypoint: &Waypoint,
        need: &Need,
    ) -> Vec<(String, pb::Policy)> {
        let mut found = Vec::new();
        for (key, known) in &self.waypoints.policies {
            let name = key.to_string();
            let is_here = match &known.at {
                At::Any => true,
                At::Named(names) => {
                    key.namespace == waypoint.namespace
                        && names.iter().any(|name| **name == *waypoint.name)
                }
            };
            let is_needed = match &known.policy.scope {
                Some(Scope::All(_)) => true,
                Some(Scope::OfNamespace(of)) => need.namespaces.contains(of.namespace.as_str()),
                Some(Scope::OfServices(of)) => of.services.iter().any(|wanted| {
                    need.attached.iter().any(|attached| {
                        *attached.namespace == *wanted.namespace
                            && service::hostname(attached, &self.mesh) == wanted.hostname
                    })
                }),
                Some(Scope::OfEndpoints(_)) => need.policies.contains(&name),
                None => false,
            };
            if is_here && is_needed {
                found.push((name, known.policy.clone()));
            }
        }
        let named: BTreeSet<&String> = found.iter().map(|(name, _)| name).collect();
        let others = need.policies.iter().filter(|name| !named.contains(name));
        let others: Vec<_> = others
            .filter_map(|name| Some((name.clone(), self.of_connections(name)?)))
            .collect();
        found.extend(others);
        found
    }

    /// What was made of a `PeerAuthentication`, as waypoints read it.
    fn of_connections(&self, name: &str) -> Option<pb::Policy> {
        let resource = self.snapshot.authorizations.get(name)?;
        let authorization = Authorization::decode(resource.body()).ok()?;
        let rules = authorization.rules.into_iter().map(|rule| {
            let clauses = rule.clauses.into_iter().map(|clause| {
                let matches = clause.matches.into_iter().map(|m| pb::PolicyMatch {
                    connection: Some(m),
                    ..pb::PolicyMatch::default()
                });
                pb::PolicyClause {
                    matches: matches.collect(),
                }
            });
            pb::PolicyRule {
                clauses: clauses.collect(),
            }
        });
        let action = match authorization.action {
            0 => pb::policy::Action::Allow,
            _ => pb::policy::Action::Deny,
        };
        Some(pb::Policy {
            origin: Some(pb::Origin {
                kind: l7::Kind::PeerAuthentication.as_str().to_owned(),
                namespace: authorization.namespace,
                name: authorization.name,
                ..pb::Origin::default()
            }),
            scope: Some(Scope::OfEndpoints(true)),
            action: action.into(),
            dry_run: authorization.dry_run,
            rules: rules.collect(),
            ..pb::Policy::default()
        })
    }
}
