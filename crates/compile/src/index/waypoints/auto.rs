//! Who needs a waypoint of those who say `keelson.io/l7: auto`: a Service that a route, a VirtualService, a DestinationRule or
//! a policy with HTTP parts is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use l7::backend::{TlsMode, TrafficPolicy};
use manifest::{Kind, NamespacedName};
use model::ServiceKey;
use proto::l7::{self as pb, policy::Scope};

use super::super::authorization::http::At;
use super::super::{Index, waypoint};
use super::Aged;
use crate::l7::{destination_rule, virtual_service};

impl Index {
    /// Namespaces with such Services that an L7 object is for, with the first such object.
    pub(super) fn auto_needs(&self) -> BTreeMap<Arc<str>, String> {
        let mut needs: BTreeMap<Arc<str>, String> = BTreeMap::new();
        for (name, facts) in &self.services {
            let of_namespace = self.namespaces.get(&name.namespace);
            if needs.contains_key(&name.namespace)
                || !waypoint::is_auto(&facts.labels, of_namespace)
            {
                continue;
            }
            if let Some(why) = self.needs_a_waypoint(name) {
                needs.insert(Arc::clone(&name.namespace), why);
            }
        }
        needs
    }

    /// The first object that only a waypoint of this Service can carry out.
    fn needs_a_waypoint(&self, name: &NamespacedName) -> Option<String> {
        let key = self.service_key(name);
        let waypoints = &self.waypoints;
        let mut routes = waypoints.routes.iter().filter(|(_, route)| {
            let mut parents = route.compiled.parents.iter();
            parents.any(|(parent, _)| *parent == key)
        });
        let routed = routes.next().map(|((kind, name), _)| (*kind, name));
        let of_virtual_service = || {
            let mut all = waypoints.virtual_services.iter();
            let found = all.find(|(_, aged)| is_routed(aged, &key));
            found.map(|(name, _)| (Kind::VirtualService, name))
        };
        let of_destination_rule = || {
            let mut all = waypoints.destination_rules.iter();
            let found = all.find(|(_, aged)| is_shaped(aged, &key));
            found.map(|(name, _)| (Kind::DestinationRule, name))
        };
        let of_policy = || {
            let mut all = waypoints.policies.iter();
            let found = all.find(|(policy, known)| {
                known.at == At::Any
                    && has_http(&known.policy)
                    && self.is_for(policy, &known.policy, &key)
            });
            found.map(|(name, _)| (Kind::AuthorizationPolicy, name))
        };
        let found = routed
            .or_else(of_virtual_service)
            .or_else(of_destination_rule)
            .or_else(of_policy);
        found.map(|(kind, name)| format!("{} {name}", kind.as_str()))
    }

    /// Whether a policy is for a Service or what may be behind it.
    fn is_for(&self, policy: &NamespacedName, written: &pb::Policy, key: &ServiceKey) -> bool {
        match &written.scope {
            Some(Scope::All(_)) => true,
            Some(Scope::OfNamespace(of)) => *of.namespace == *key.namespace,
            Some(Scope::OfServices(of)) => {
                let mut services = of.services.iter();
                services
                    .any(|one| *one.namespace == *key.namespace && *one.hostname == *key.hostname)
            }
            Some(Scope::OfEndpoints(_)) => {
                policy.namespace == key.namespace || *policy.namespace == *self.mesh.root_namespace
            }
            None => false,
        }
    }
}

fn is_routed(aged: &Aged<virtual_service::Compiled>, key: &ServiceKey) -> bool {
    let compiled = &aged.compiled;
    compiled.mesh
        && !compiled.rules.is_empty()
        && compiled.hosts.iter().any(|host| host.holds(&key.hostname))
}

fn is_shaped(aged: &Aged<destination_rule::Compiled>, key: &ServiceKey) -> bool {
    let rule = &aged.compiled.rule;
    let mut policies = rule.ports.values().chain([&rule.policy]);
    aged.compiled.host.holds(&key.hostname) && policies.any(|policy| asks(policy))
}

/// Whether a policy asks for something that nodes do not do for every connection.
fn asks(policy: &TrafficPolicy) -> bool {
    let mesh_alone = TrafficPolicy {
        tls: policy
            .tls
            .clone()
            .filter(|tls| matches!(tls, TlsMode::Disable | TlsMode::Mesh)),
        ..TrafficPolicy::default()
    };
    *policy != mesh_alone
}

/// Whether a policy has a part that only who reads requests can judge.
fn has_http(policy: &pb::Policy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut matches = clauses.flat_map(|clause| &clause.matches);
    matches.any(|one| {
        let of_connection = pb::PolicyMatch {
            connection: one.connection.clone(),
            ..pb::PolicyMatch::default()
        };
        *one != of_connection
    })
}
