//! Gateways at the edge: their listeners, with the routes that are attached to them and the certificates.
//!
//! Routes are attached to virtual hosts as they are to services: each host of a listener is a service without endpoints,
//! of which the rules say where requests go.

mod rules;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_api::gateway::{Gateway, ReferenceGrantSpec};
use l7::listener::{Listener, Reads, VirtualHost};
use l7::route::{Attachment, RouteRule};
use l7::{HostPattern, Origin, Service};
use manifest::{
    Diagnostic, FieldLines, Kind, Labels, NamespacedName, Object, ObjectKey, Severity, Upsert,
};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use proto::{l7 as pb, type_url};

use self::secrets::{Kept, kept};
use super::super::Index;
use super::super::authorization::Note;
use super::{Waypoint, view};
use crate::l7::gateway::{self, Door, From, IstioServers, Listeners};
use crate::l7::gateway_route::GatewayParent;
use crate::resource::Resource;
use crate::store::{GATEWAY_CLASS_NAME, GATEWAY_NAME, Selector};

/// Everything that is said of gateways.
#[derive(Debug, Default)]
pub(super) struct Edge {
    pub(super) listeners: BTreeMap<NamespacedName, Written<Listeners>>,
    pub(super) istio: BTreeMap<NamespacedName, Written<IstioServers>>,
    secrets: BTreeMap<NamespacedName, Kept>,
    /// Secrets that cannot be read, with the reason.
    unreadable: BTreeMap<NamespacedName, String>,
    /// Secrets that gateways name and may have.
    named: Arc<BTreeSet<NamespacedName>>,
    grants: BTreeMap<NamespacedName, ReferenceGrantSpec>,
    /// Gateways of classes whose pods are made, as they are written.
    pub(super) ours: BTreeMap<NamespacedName, (Arc<Gateway>, manifest::Origin)>,
    /// What was found when a gateway was put together, by the object that it is about.
    found: BTreeMap<Waypoint, Vec<(ObjectKey, Note)>>,
    said: BTreeMap<ObjectKey, Vec<Diagnostic>>,
}

/// What an object says, and where it is written.
#[derive(Debug)]
pub(super) struct Written<T> {
    pub(super) compiled: T,
    origin: manifest::Origin,
    lines: FieldLines,
}

/// What a gateway is told beyond what every waypoint is.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) rules: Vec<(String, RouteRule)>,
    pub(super) services: Vec<Resource>,
    pub(super) listeners: Vec<Resource>,
    pub(super) found: Vec<(ObjectKey, Note)>,
}

/// Whether a pod with these labels is a gateway at the edge.
pub(in crate::index) fn is_gateway(labels: &Labels) -> bool {
    labels.contains_key(GATEWAY_NAME)
        && labels
            .get(GATEWAY_CLASS_NAME)
            .is_some_and(|class| class == gateway::CLASS)
}

/// A listener that is being put together.
struct Place {
    /// Unlike the listener's own name, no other listener of the gateway has it, whichever API that is written in.
    name: String,
    listener: Listener,
    hosts: BTreeMap<HostPattern, ServiceKey>,
}

impl Place {
    fn new(api: Api, listener: Listener) -> Self {
        let api = match api {
            Api::Gateway => "gateway",
            Api::Istio => "istio",
        };
        Self {
            name: format!("{api}/{}/{}", listener.port, listener.name),
            listener,
            hosts: BTreeMap::new(),
        }
    }

    /// Whether what another listener of its port reads leaves nothing for it: TLS and plain HTTP cannot be told apart on one
    /// port, and where nothing is read there is no other.
    fn clashes(&self, other: &Self) -> bool {
        let (own, theirs) = (&self.listener, &other.listener);
        own.port == theirs.port
            && self.name != other.name
            && (own.speaks_tls() != theirs.speaks_tls()
                || (own.reads == Reads::Nothing) != (theirs.reads == Reads::Nothing))
    }

    /// Where rules for a host are attached.
    fn attach(&mut self, namespace: &Arc<str>, host: HostPattern) -> Attachment {
        let name = &self.name;
        let key = self.hosts.entry(host).or_insert_with_key(|host| {
            ServiceKey::new(Arc::clone(namespace), format!("{name}|{host}"))
        });
        Attachment {
            service: key.clone(),
            port: None,
            client_namespace: None,
        }
    }
}

/// What a listener is written in.
#[derive(Clone, Copy)]
enum Api {
    Gateway,
    Istio,
}

/// By object, and by the place where its rules were compiled for, what they are attached to.
#[derive(Default)]
struct Attachments {
    routes: BTreeMap<(Kind, NamespacedName), BTreeSet<Attachment>>,
    virtual_services: BTreeMap<(NamespacedName, NamespacedName), BTreeSet<Attachment>>,
    redirects: Vec<(Origin, BTreeSet<Attachment>)>,
}

impl Index {
    /// Takes in where a `Gateway` of the Gateway API listens.
    pub(in crate::index) fn set_listeners(
        &mut self,
        key: &NamespacedName,
        gateway: &Gateway,
        upsert: &Upsert,
    ) {
        let edge = &mut self.waypoints.edge;
        let class = gateway.spec.gateway_class_name.as_str();
        if [view::EDGE_CLASS, view::WAYPOINT_CLASS].contains(&class) {
            let written = (Arc::new(gateway.clone()), upsert.origin.clone());
            edge.ours.insert(key.clone(), written);
        } else {
            edge.ours.remove(key);
        }
        match gateway::listeners(gateway) {
            Some(compiled) => drop(
                edge.listeners
                    .insert(key.clone(), written(compiled, upsert)),
            ),
            None => drop(edge.listeners.remove(key)),
        }
        self.waypoints.all_marked = true;
    }

    /// Takes in another object that gateways need.
    pub(in crate::index) fn set_edge(&mut self, upsert: &Upsert) {
        let key = upsert.object.key();
        let named = NamespacedName::new(key.namespace(), key.name());
        let edge = &mut self.waypoints.edge;
        match &upsert.object {
            Object::IstioGateway(object) => {
                let compiled = gateway::istio(object, &named.namespace);
                edge.istio.insert(named, written(compiled, upsert));
            }
            Object::ReferenceGrant(object) => {
                edge.grants.insert(named, object.spec.clone());
            }
            Object::Secret(secret) => drop(edge.secrets.insert(named, kept(secret))),
            _ => return,
        }
        self.waypoints.all_marked = true;
    }

    /// Forgets an object of gateways.
    pub(in crate::index) fn unset_edge(&mut self, kind: Kind, named: &NamespacedName) {
        let edge = &mut self.waypoints.edge;
        match kind {
            Kind::Gateway => {
                edge.listeners.remove(named);
                edge.ours.remove(named);
            }
            Kind::IstioGateway => drop(edge.istio.remove(named)),
            Kind::ReferenceGrant => drop(edge.grants.remove(named)),
            Kind::Secret => drop(edge.secrets.remove(named)),
            _ => return,
        }
        self.waypoints.all_marked = true;
    }

    /// What there is to say of gateways, where it has changed.
    pub(in crate::index) fn say_of_gateways(
        &mut self,
        diagnostics: &mut BTreeMap<ObjectKey, Vec<Diagnostic>>,
    ) {
        let edge = &mut self.waypoints.edge;
        let mut now: BTreeMap<ObjectKey, Vec<Diagnostic>> = BTreeMap::new();
        for (kind, key, notes, origin, lines) in edge.objects() {
            let key = ObjectKey::new(kind, &key.namespace, &key.name);
            let found = edge.found.values().flatten();
            let found = found
                .filter(|(about, _)| *about == key)
                .map(|(_, note)| note);
            let said = notes.iter().chain(found).map(|note| {
                let origin = origin.at_line(lines.line(&note.field));
                Diagnostic::new(note.severity, &origin, Some(&key), &note.message)
                    .field(&note.field)
            });
            let said = said.collect();
            now.insert(key, said);
        }
        for (key, said) in &now {
            if edge.said.get(key) != Some(said) {
                diagnostics.insert(key.clone(), said.clone());
            }
        }
        for key in edge.said.keys().filter(|key| !now.contains_key(*key)) {
            diagnostics.insert(key.clone(), Vec::new());
        }
        edge.said = now;
    }

    /// What a gateway is told beyond what waypoints are; `None` if it is no gateway at the edge.
    pub(super) fn at_edge(
        &self,
        waypoint: &Waypoint,
        pods: Option<&BTreeSet<Arc<str>>>,
    ) -> Option<Built> {
        let pods = pods
            .into_iter()
            .flatten()
            .filter_map(|uid| self.pods.get(uid));
        let labels: Vec<&Labels> = pods
            .map(|pod| &pod.labels)
            .filter(|labels| is_gateway(labels))
            .collect();
        let edge = &self.waypoints.edge;
        if labels.is_empty() {
            return None;
        }
        let mut built = Built::default();
        let mut places = BTreeMap::new();
        let mut attachments = Attachments::default();
        if let Some(own) = edge.listeners.get(waypoint) {
            for (index, door) in own.compiled.all.iter().enumerate() {
                self.open(
                    waypoint,
                    (index, door),
                    &mut places,
                    &mut attachments,
                    &mut built,
                );
            }
        }
        for (name, servers) in &edge.istio {
            if labels.iter().any(|one| servers.compiled.selects(one)) {
                let servers = (name, &servers.compiled);
                self.serve_istio(waypoint, servers, &mut places, &mut attachments, &mut built);
            }
        }
        self.rules_at_edge(&attachments, &mut built.rules);
        for place in places.into_values() {
            finish(place, &mut built);
        }
        Some(built)
    }

    /// One listener of the Gateway API, with its routes.
    fn open(
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

    pub(super) fn may_attach(&self, from: &From, own: &Arc<str>, namespace: &Arc<str>) -> bool {
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

    /// The servers of an Istio `Gateway` at pods that it selects, with the VirtualServices that are bound to it.
    fn serve_istio(
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

    /// Notes what was found when a gateway was put together.
    pub(super) fn remember_found(&mut self, waypoint: &Waypoint, found: Vec<(ObjectKey, Note)>) {
        let edge = &mut self.waypoints.edge;
        if found.is_empty() {
            edge.found.remove(waypoint);
        } else {
            edge.found.insert(waypoint.clone(), found);
        }
    }

    /// The policies that a gateway asks: those for it, by selector, namespace or target. Those of the endpoints are asked
    /// by their own nodes.
    pub(super) fn policies_of_gateway(
        &self,
        waypoint: &Waypoint,
        pods: Option<&BTreeSet<Arc<str>>>,
    ) -> Vec<(String, pb::Policy)> {
        use super::super::authorization::http::At;
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
    pub(super) fn by_its_waypoint(&self, name: &NamespacedName) -> Option<l7::Endpoint> {
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

impl Edge {
    /// All objects of gateways, with what there is to say about them alone.
    fn objects(
        &self,
    ) -> impl Iterator<
        Item = (
            Kind,
            &NamespacedName,
            &[Note],
            &manifest::Origin,
            &FieldLines,
        ),
    > {
        let of_api = self.listeners.iter().map(|(key, one)| {
            let notes = one.compiled.notes.as_slice();
            (Kind::Gateway, key, notes, &one.origin, &one.lines)
        });
        let of_istio = self.istio.iter().map(|(key, one)| {
            let notes = one.compiled.notes.as_slice();
            (Kind::IstioGateway, key, notes, &one.origin, &one.lines)
        });
        of_api.chain(of_istio)
    }
}

fn written<T>(compiled: T, upsert: &Upsert) -> Written<T> {
    Written {
        compiled,
        origin: upsert.origin.clone(),
        lines: upsert.lines.clone(),
    }
}

fn error(field: &str, message: String) -> Note {
    Note {
        severity: Severity::Error,
        field: field.to_owned(),
        message,
    }
}

fn finish(place: Place, built: &mut Built) {
    let Place {
        name,
        mut listener,
        hosts,
    } = place;
    for (host, key) in hosts {
        let service = Service {
            key: key.clone(),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                port: listener.port,
                target_port: 0,
                app_protocol: match listener.reads {
                    Reads::Requests => AppProtocol::Http11,
                    Reads::Names => AppProtocol::Tls,
                    Reads::Nothing => AppProtocol::Tcp,
                },
            }],
            attached: true,
        };
        let message = pb::Service::from(&service);
        built.services.push(Resource::new(
            type_url::L7_SERVICE,
            key.to_string(),
            &message,
        ));
        listener.hosts.push(VirtualHost { host, key });
    }
    let message = pb::Listener::from(&listener);
    built
        .listeners
        .push(Resource::new(type_url::L7_LISTENER, name, &message));
}
