//! What is to be said of gateways and of routes on their statuses, in the words of the Gateway API
//! (`gateway.networking.k8s.io/v1`: types `Gateway`, `HTTPRoute`; conditions and reasons have their names there).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_api::gateway::Gateway;
use k8s_api::gateway_route::{BackendRef, Filter, ParentRef};
use manifest::{Kind, NamespacedName, Object, ObjectKey, Origin, Severity, Upsert};

use super::super::Index;
use super::super::authorization::Note;
use super::edge::ingress::TLS_PORT;
use crate::l7::gateway::{self, Door};
use crate::l7::gateway_route::{Compiled, GatewayParent};

pub use super::super::waypoint::{ISTIO_CLASS, WAYPOINT_CLASS, is_waypoint_class};
/// The class of gateways at the edge.
pub const EDGE_CLASS: &str = gateway::CLASS;

/// All that can be said at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Gateways of our classes.
    pub gateways: BTreeMap<NamespacedName, GatewayView>,
    /// Routes that have such a Gateway or a Service as a parent, by kind and name.
    pub routes: BTreeMap<(Kind, NamespacedName), RouteView>,
    /// Ingresses of our classes.
    pub ingresses: BTreeMap<NamespacedName, IngressView>,
    /// Namespaces that say `keelson.io/l7: auto` and that an L7 object is for, with that object.
    pub needs: BTreeMap<Arc<str>, String>,
}

/// One Gateway.
#[derive(Clone, Debug)]
pub struct GatewayView {
    /// The object.
    pub object: Arc<Gateway>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Why nothing is made of it at all, with a reason of `GatewayConditionAccepted`.
    pub refused: Option<(&'static str, String)>,
    /// What is to be said of it beside its listeners.
    pub notes: Vec<String>,
    /// Its listeners, in their order.
    pub listeners: Vec<ListenerView>,
    /// All ports that its pods serve clients at: of its listeners, of Istio's Gateways that select its pods, and
    /// of Ingresses with certificates.
    pub ports: BTreeSet<u16>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerView {
    /// Its name.
    pub name: String,
    /// The kinds of routes that it takes.
    pub kinds: Vec<&'static str>,
    /// How many routes are attached to it.
    pub attached: usize,
    /// `Accepted`.
    pub accepted: Verdict,
    /// `Conflicted`: it holds where it is in conflict with another.
    pub conflicted: Verdict,
    /// `ResolvedRefs`.
    pub resolved: Verdict,
}

/// One Ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressView {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// The Gateway that serves it, if one does.
    pub gateway: Option<NamespacedName>,
    /// What is wrong with it, by field; empty if nothing is.
    pub wrong: String,
}

/// One route.
#[derive(Clone, Debug)]
pub struct RouteView {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// What is said for each parent that is ours.
    pub parents: Vec<ParentView>,
}

/// A route at one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentView {
    /// As the route names it.
    pub reference: ParentRef,
    /// `Accepted`.
    pub accepted: Verdict,
    /// `ResolvedRefs`.
    pub resolved: Verdict,
    /// `PartiallyInvalid`, where some rules cannot be carried out and others can.
    pub partly: Option<String>,
}

/// One condition of a status, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is true.
    pub holds: bool,
    /// A word of the API.
    pub reason: &'static str,
    /// A sentence; empty where the reason says all.
    pub message: String,
}

impl Verdict {
    /// True, for this reason.
    #[must_use]
    pub fn yes(reason: &'static str) -> Self {
        Self {
            holds: true,
            reason,
            message: String::new(),
        }
    }

    /// False, for this reason.
    #[must_use]
    pub fn no(reason: &'static str, message: String) -> Self {
        Self {
            holds: false,
            reason,
            message,
        }
    }
}

/// What of a route its compiled form does not have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refs {
    uid: Arc<str>,
    generation: i64,
    parents: Vec<ParentRef>,
    backends: Vec<BackendRef>,
}

impl Refs {
    /// Of an object of a cluster; files have no status.
    pub(super) fn read(upsert: &Upsert) -> Option<Self> {
        let Origin::Object { uid, generation } = &upsert.origin else {
            return None;
        };
        let mirrors = |filters: &[Filter]| -> Vec<BackendRef> {
            let mirrors = filters.iter().filter_map(|one| one.request_mirror.as_ref());
            mirrors
                .filter_map(|mirror| mirror.backend_ref.clone())
                .collect()
        };
        let mut backends = Vec::new();
        let parents = match &upsert.object {
            Object::HttpRoute(route) => {
                for rule in &route.spec.rules {
                    backends.extend(rule.backend_refs.iter().cloned());
                    backends.extend(mirrors(&rule.filters));
                }
                &route.spec.parent_refs
            }
            Object::GrpcRoute(route) => {
                for rule in &route.spec.rules {
                    backends.extend(rule.backend_refs.iter().cloned());
                    backends.extend(mirrors(&rule.filters));
                }
                &route.spec.parent_refs
            }
            Object::TlsRoute(route) | Object::TcpRoute(route) => {
                for rule in &route.spec.rules {
                    backends.extend(rule.backend_refs.iter().cloned());
                }
                &route.spec.parent_refs
            }
            _ => return None,
        };
        Some(Self {
            uid: Arc::clone(uid),
            generation: *generation,
            parents: parents.clone(),
            backends,
        })
    }
}

impl Index {
    /// Counts up when [`Index::view`] may have something else to say.
    pub fn view_version(&self) -> u64 {
        self.waypoints.view_version
    }

    /// What is to be said of gateways and routes of a cluster, as of the last flush.
    pub fn view(&self) -> View {
        let mut view = View {
            needs: self.auto_needs(),
            ..View::default()
        };
        for (name, (object, origin)) in &self.waypoints.edge.ours {
            if let Origin::Object { uid, generation } = origin {
                let of = (Arc::clone(uid), *generation);
                view.gateways
                    .insert(name.clone(), self.view_of_gateway(name, object, of));
            }
        }
        view.ingresses = self.view_of_ingresses();
        for (key, refs) in &self.waypoints.refs {
            let Some(aged) = self.waypoints.routes.get(key) else {
                continue;
            };
            let named = ObjectKey::new(key.0, &key.1.namespace, &key.1.name);
            let over = self.waypoints.patterns.of(&named);
            let parents = refs.parents.iter().filter_map(|reference| {
                let (accepted, is_gateway) = self.accepts(key, &aged.compiled, reference)?;
                let errors = errors(aged.compiled.notes.iter().chain(&over));
                let (accepted, partly) = match (accepted.holds, errors) {
                    (true, Some(errors)) if aged.compiled.rules.is_empty() => {
                        (Verdict::no("UnsupportedValue", errors), None)
                    }
                    (_, errors) => (accepted, errors),
                };
                Some(ParentView {
                    reference: reference.clone(),
                    accepted,
                    resolved: self.resolves(key, &refs.backends, is_gateway),
                    partly,
                })
            });
            let route = RouteView {
                uid: Arc::clone(&refs.uid),
                generation: refs.generation,
                parents: parents.collect(),
            };
            view.routes.insert(key.clone(), route);
        }
        view
    }

    fn view_of_gateway(
        &self,
        name: &NamespacedName,
        object: &Arc<Gateway>,
        (uid, generation): (Arc<str>, i64),
    ) -> GatewayView {
        let compiled = self.waypoints.edge.listeners.get(name);
        let compiled = compiled.map(|written| &written.compiled);
        let notes = compiled.map_or(&[][..], |one| &one.notes);
        let listeners = object.spec.listeners.iter().enumerate();
        let listeners = listeners.map(|(index, listener)| {
            let door = compiled.and_then(|one| {
                let mut doors = one.all.iter();
                doors.find(|door| door.name == listener.name)
            });
            match (&*object.spec.gateway_class_name, door) {
                (class, _) if is_waypoint_class(class) => {
                    waypoint_listener(&listener.name, &listener.protocol)
                }
                (_, door) => self.view_of_listener(name, (index, &listener.name), door, notes),
            }
        });
        let own = object.spec.listeners.iter();
        let mut ports: BTreeSet<u16> = own.filter_map(|one| one.port).collect();
        ports.extend(self.ports_of_istio(name, object));
        let ingresses = self.ingresses_at(name).into_iter();
        let mut tls = ingresses.flat_map(|ingress| self.tls_of(name, ingress));
        if tls.any(|tls| tls.listener.is_none()) {
            ports.insert(TLS_PORT);
        }
        let refused = object.spec.addresses.is_some().then(|| {
            let message = "spec.addresses is not supported".to_owned();
            ("UnsupportedAddress", message)
        });
        let general = notes
            .iter()
            .filter(|note| !note.field.starts_with("spec.listeners["));
        GatewayView {
            object: Arc::clone(object),
            uid,
            generation,
            refused,
            notes: general.map(sentence).collect(),
            listeners: listeners.collect(),
            ports,
        }
    }

    fn ports_of_istio(&self, name: &NamespacedName, object: &Gateway) -> BTreeSet<u16> {
        if object.spec.gateway_class_name != EDGE_CLASS {
            return BTreeSet::new();
        }
        // As the pods have them, and as those will have them that are not there yet.
        let mut labels = vec![wished_labels(object)];
        let pods = self.waypoints.pods.get(name).into_iter().flatten();
        let pods = pods.filter_map(|uid| self.pods.get(uid));
        labels.extend(pods.map(|pod| pod.labels.clone()));
        let servers = self.waypoints.edge.istio.values();
        let servers = servers.map(|written| &written.compiled).filter(|servers| {
            !servers.selector.is_empty() && labels.iter().any(|one| servers.selects(one))
        });
        let ports = servers.flat_map(|servers| servers.all.iter().map(|server| server.port));
        ports.collect()
    }

    fn view_of_listener(
        &self,
        gateway: &NamespacedName,
        (index, name): (usize, &str),
        door: Option<&Door>,
        notes: &[Note],
    ) -> ListenerView {
        let prefix = format!("spec.listeners[{index}]");
        let notes = notes.iter().filter_map(|note| {
            let field = note.field.strip_prefix(&prefix)?;
            (field.is_empty() || field.starts_with('.')).then_some((field, note))
        });
        let notes: Vec<(&str, &Note)> = notes.collect();
        let mut accepted = Verdict::yes("Accepted");
        let mut conflicted = Verdict::no("NoConflicts", String::new());
        let mut resolved = Verdict::yes("ResolvedRefs");
        for (field, note) in &notes {
            let message = note.message.clone();
            if field.starts_with(".allowedRoutes.kinds") {
                resolved = Verdict::no("InvalidRouteKinds", message);
            } else if field.starts_with(".tls.certificateRefs") {
                resolved = Verdict::no("InvalidCertificateRef", message);
            } else if note.severity != Severity::Error {
                // Nothing that a condition says.
            } else if *field == ".protocol" {
                accepted = Verdict::no("UnsupportedProtocol", message);
            } else if field.is_empty() {
                // Another listener has its place.
                let reason = if message.contains("protocol") {
                    "ProtocolConflict"
                } else {
                    "HostnameConflict"
                };
                conflicted = Verdict {
                    holds: true,
                    reason,
                    message: message.clone(),
                };
                accepted = Verdict::no(reason, message);
            } else {
                accepted = Verdict::no("UnsupportedValue", format!("{field}: {message}"));
            }
        }
        let mut kinds = Vec::new();
        let mut attached = 0;
        if let Some(door) = door {
            kinds.extend(door.kinds.iter().map(|kind| kind.as_str()));
            if let Some(wrong) = self.wrong_certificate(gateway, door) {
                resolved = wrong;
            }
            let routes = self.waypoints.routes.iter();
            attached = routes
                .filter(|((kind, route), aged)| {
                    self.takes(gateway, door, (*kind, route), &aged.compiled)
                })
                .count();
        }
        ListenerView {
            name: name.to_owned(),
            kinds,
            attached,
            accepted,
            conflicted,
            resolved,
        }
    }

    fn wrong_certificate(&self, gateway: &NamespacedName, door: &Door) -> Option<Verdict> {
        let from = (Kind::Gateway, &gateway.namespace);
        door.tls.iter().flatten().find_map(|secret| {
            let is_own = secret.namespace == gateway.namespace;
            if !is_own && !self.is_granted(from, Kind::Secret, secret) {
                let message = format!("Secret {secret} is not granted by a ReferenceGrant there");
                return Some(Verdict::no("RefNotPermitted", message));
            }
            let wrong = self.wrong_secret(secret)?;
            Some(Verdict::no("InvalidCertificateRef", wrong))
        })
    }

    /// Whether a listener takes a route, with a host that both are for.
    fn takes(
        &self,
        gateway: &NamespacedName,
        door: &Door,
        (kind, route): (Kind, &NamespacedName),
        compiled: &Compiled,
    ) -> bool {
        let mut parents = compiled.gateways.iter();
        parents.any(|parent| parent.gateway == *gateway && names(parent, door))
            && self.allows(gateway, door, (kind, route))
            && has_common_host(door, compiled)
    }

    fn allows(
        &self,
        gateway: &NamespacedName,
        door: &Door,
        (kind, route): (Kind, &NamespacedName),
    ) -> bool {
        door.kinds.contains(&kind)
            && self.may_attach(&door.from, &gateway.namespace, &route.namespace)
    }

    /// Whether a parent takes a route, and whether it is a Gateway; `None` for a parent that is not ours to speak for.
    fn accepts(
        &self,
        (kind, route): &(Kind, NamespacedName),
        compiled: &Compiled,
        reference: &ParentRef,
    ) -> Option<(Verdict, bool)> {
        let namespace = reference.namespace.as_deref();
        let parent = NamespacedName::new(namespace.unwrap_or(&route.namespace), &reference.name);
        let group = reference.group.as_deref().unwrap_or(Kind::Gateway.group());
        match (group, reference.kind.as_deref().unwrap_or("Gateway")) {
            ("", "Service") => {
                let service = self.services.get(&parent);
                let port = reference.port;
                let verdict = match service {
                    None => {
                        Verdict::no("NoMatchingParent", format!("there is no Service {parent}"))
                    }
                    Some(facts)
                        if port
                            .is_some_and(|port| facts.ports.iter().all(|one| one.port != port)) =>
                    {
                        let port = port.unwrap_or_default();
                        Verdict::no(
                            "NoMatchingParent",
                            format!("Service {parent} has no port {port}"),
                        )
                    }
                    Some(_) => Verdict::yes("Accepted"),
                };
                Some((verdict, false))
            }
            (group, "Gateway") if group == Kind::Gateway.group() => {
                let listeners = self.waypoints.edge.listeners.get(&parent)?;
                let wanted = GatewayParent {
                    gateway: parent.clone(),
                    section: reference.section_name.clone(),
                    port: reference.port,
                };
                let doors = listeners.compiled.all.iter();
                let named: Vec<&Door> = doors.filter(|door| names(&wanted, door)).collect();
                let allowing = named
                    .iter()
                    .filter(|door| self.allows(&parent, door, (*kind, route)));
                let allowing: Vec<&&Door> = allowing.collect();
                let verdict = if named.is_empty() {
                    let message = format!("Gateway {parent} has no such listener in order");
                    Verdict::no("NoMatchingParent", message)
                } else if allowing.is_empty() {
                    let message = format!(
                        "no such listener of Gateway {parent} allows a {} of namespace {}",
                        kind.as_str(),
                        route.namespace
                    );
                    Verdict::no("NotAllowedByListeners", message)
                } else if !allowing.iter().any(|door| has_common_host(door, compiled)) {
                    let message = "none of its hostnames is one of a listener".to_owned();
                    Verdict::no("NoMatchingListenerHostname", message)
                } else {
                    Verdict::yes("Accepted")
                };
                Some((verdict, true))
            }
            _ => None,
        }
    }

    fn resolves(
        &self,
        (kind, route): &(Kind, NamespacedName),
        backends: &[BackendRef],
        is_gateway: bool,
    ) -> Verdict {
        for backend in backends {
            let group = backend.group.as_deref().unwrap_or_default();
            let of = backend.kind.as_deref().unwrap_or("Service");
            if (group, of) != ("", "Service") {
                let message = format!("a backend of kind {of} is not supported");
                return Verdict::no("InvalidKind", message);
            }
            let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
            let name = NamespacedName::new(namespace, &backend.name);
            let from = (*kind, &route.namespace);
            let is_own = name.namespace == route.namespace;
            // Under a Service a route needs no grant (GEP-1426).
            if is_gateway && !is_own && !self.is_granted(from, Kind::Service, &name) {
                let message = format!("Service {name} is not granted by a ReferenceGrant there");
                return Verdict::no("RefNotPermitted", message);
            }
            if !self.services.contains_key(&name) {
                return Verdict::no("BackendNotFound", format!("there is no Service {name}"));
            }
        }
        Verdict::yes("ResolvedRefs")
    }
}

/// A waypoint's listener is where agents bring connections to.
fn waypoint_listener(name: &str, protocol: &str) -> ListenerView {
    let accepted = match protocol {
        "HBONE" => Verdict::yes("Accepted"),
        other => {
            let message = format!("{other:?} is not what a waypoint listens for; write HBONE");
            Verdict::no("UnsupportedProtocol", message)
        }
    };
    ListenerView {
        name: name.to_owned(),
        kinds: Vec::new(),
        attached: 0,
        accepted,
        conflicted: Verdict::no("NoConflicts", String::new()),
        resolved: Verdict::yes("ResolvedRefs"),
    }
}

/// `spec.infrastructure.labels`.
fn wished_labels(gateway: &Gateway) -> manifest::Labels {
    let wished = gateway.spec.infrastructure.as_ref();
    let wished = wished.and_then(|wished| wished.get("labels")?.as_object());
    let pairs = wished.into_iter().flatten();
    let pairs = pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    pairs.collect()
}

fn names(parent: &GatewayParent, door: &Door) -> bool {
    let section = parent.section.as_deref().filter(|name| !name.is_empty());
    section.is_none_or(|name| name == door.name) && parent.port.is_none_or(|port| port == door.port)
}

fn has_common_host(door: &Door, compiled: &Compiled) -> bool {
    let hosts = &compiled.hostnames;
    hosts.is_empty() || hosts.iter().any(|host| door.host.and(host).is_some())
}

fn errors<'n>(notes: impl Iterator<Item = &'n Note>) -> Option<String> {
    let errors = notes
        .filter(|note| note.severity == Severity::Error)
        .map(sentence);
    let errors: Vec<String> = errors.collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

fn sentence(note: &Note) -> String {
    format!("{}: {}", note.field, note.message)
}
