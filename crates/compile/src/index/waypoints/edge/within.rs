//! What a gateway asks and where it sends: its policies, and services that have a waypoint of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use manifest::NamespacedName;
use proto::l7 as pb;

use crate::index::Index;
use crate::index::waypoints::Waypoint;

impl Index {
    /// The policies that a gateway asks: those for it, by selector, namespace or target. Those of the endpoints are asked
    /// by their own nodes.
    pub(in crate::index::waypoints) fn policies_of_gateway(
        &self,
        waypoint: &Waypoint,
        pods: Option<&BTreeSet<Arc<str>>>,
    ) -> Vec<(String, pb::Policy)> {
        use crate::index::authorization::http::At;
        use proto::l7::policy::Scope;

        let root: Arc<str> = self.mesh.root_namespace.as_str().into();
        let pods = pods
            .into_iter()
            .flatten()
            .filter_map(|uid| self.pods.get(uid));
        let selecting: BTreeSet<NamespacedName> =
            pods.flat_map(|pod| self.selecting(&root, pod)).collect();
        let is_for = |key: &NamespacedName, at: &At, scope: Option<&Scope>| match at {
            At::Named(names) => {
                key.namespace == waypoint.namespace
                    && names.iter().any(|name| **name == *waypoint.name)
            }
            At::Any => match scope {
                Some(Scope::All(_)) => true,
                Some(Scope::OfNamespace(of)) => *of.namespace == *waypoint.namespace,
                Some(Scope::OfEndpoints(_)) => selecting.contains(key),
                Some(Scope::OfServices(_)) | None => false,
            },
        };
        let policies = self.waypoints.policies.iter();
        policies
            .filter(|(key, known)| is_for(key, &known.at, known.policy.scope.as_ref()))
            .map(|(key, known)| {
                let policy = pb::Policy {
                    scope: Some(Scope::All(true)),
                    ..known.policy.clone()
                };
                (key.to_string(), policy)
            })
            .collect()
    }

    /// Stands for the endpoints of a service that has a waypoint: its address, which leads there. A subset has its own
    /// endpoints all the same, since the waypoint cannot be told which subset the gateway has chosen.
    pub(in crate::index::waypoints) fn by_its_waypoint(
        &self,
        name: &NamespacedName,
    ) -> Option<l7::Endpoint> {
        let facts = self.services.get(name)?;
        // What is outside is reached from here: a gateway is a way out.
        if facts.declared.is_some() {
            return None;
        }
        self.waypoint_of(facts)?;
        if facts.addresses.is_empty() {
            return None;
        }
        let ports = facts.ports.iter().map(|port| l7::backend::EndpointPort {
            service: self.service_key(name),
            port: port.port,
            target: port.port,
            ready: true,
        });
        Some(l7::Endpoint {
            uid: format!("waypoint-of/{name}").into(),
            addresses: facts.addresses.clone(),
            hostname: None,
            identity: None,
            namespace: Arc::clone(&name.namespace),
            labels: Arc::default(),
            node: "".into(),
            locality: l7::backend::Locality::default(),
            weight: 1,
            ports: ports.collect(),
            policies: Vec::new(),
        })
    }
}
