//! Listeners of the Gateway API, with the routes that name them.

use std::collections::BTreeMap;
use std::sync::Arc;

use l7::HostPattern;
use l7::listener::Listener;
use manifest::{Kind, Labels, ObjectKey};

use super::place::{Api, Attachments, Place};
use super::{Built, error};
use crate::index::Index;
use crate::index::waypoints::Waypoint;
use crate::l7::gateway::{Door, From};
use crate::l7::gateway_route::GatewayParent;
use crate::store::Selector;

impl Index {
    /// One listener of the Gateway API, with its routes.
    pub(super) fn open(
        &self,
        waypoint: &Waypoint,
        (index, door): (usize, &Door),
        places: &mut BTreeMap<String, Place>,
        attachments: &mut Attachments,
        built: &mut Built,
    ) {
        let about = ObjectKey::new(Kind::Gateway, &waypoint.namespace, &waypoint.name);
        let field = format!("spec.listeners[{index}].tls.certificateRefs");
        let mut certificates = Vec::new();
        for secret in door.tls.iter().flatten() {
            let is_own = secret.namespace == waypoint.namespace;
            let from = (Kind::Gateway, &waypoint.namespace);
            if !is_own && !self.is_granted(from, Kind::Secret, secret) {
                let message = format!("Secret {secret} is not granted by a ReferenceGrant there");
                built.found.push((about.clone(), error(&field, message)));
                continue;
            }
            self.certify(secret, (&about, &field), &mut certificates, built);
        }
        if door.tls.is_some() && certificates.is_empty() {
            return;
        }
        let listener = Listener {
            name: door.name.as_str().into(),
            port: door.port,
            host: door.host.clone(),
            tls: door.tls.as_ref().map(|_| certificates),
            reads: door.reads,
            client_roots: None,
            hosts: Vec::new(),
        };
        let mut place = Place::new(Api::Gateway, listener);
        for (object, route) in &self.waypoints.routes {
            let (kind, route_name) = object;
            let asks = |parent: &&GatewayParent| {
                parent.gateway == *waypoint
                    && parent
                        .section
                        .as_ref()
                        .is_none_or(|name| *name == door.name)
                    && parent.port.is_none_or(|port| port == door.port)
            };
            let compiled = &route.compiled;
            if !door.kinds.contains(kind)
                || !compiled.gateways.iter().any(|parent| asks(&parent))
                || !self.may_attach(&door.from, &waypoint.namespace, &route_name.namespace)
            {
                continue;
            }
            let any = [HostPattern::Any];
            let hosts = match compiled.hostnames.as_slice() {
                [] => &any[..],
                hosts => hosts,
            };
            for host in hosts.iter().filter_map(|host| door.host.and(host)) {
                let to = attachments.routes.entry(object.clone()).or_default();
                to.insert(place.attach(&waypoint.namespace, host));
            }
        }
        places.insert(place.name.clone(), place);
    }

    pub(in crate::index) fn may_attach(
        &self,
        from: &From,
        own: &Arc<str>,
        namespace: &Arc<str>,
    ) -> bool {
        match from {
            From::Same => own == namespace,
            From::All => true,
            From::None => false,
            From::Selector(selector) => {
                let none = Labels::default();
                let labels = self.namespaces.get(namespace).unwrap_or(&none);
                Selector::read(Some(selector)).selects(labels)
            }
        }
    }
}
