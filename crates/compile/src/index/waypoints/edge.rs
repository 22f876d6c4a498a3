//! Gateways at the edge: their listeners, with the routes that are attached to them and the certificates.
//!
//! Routes are attached to virtual hosts as they are to services: each host of a listener is a service without endpoints,
//! of which the rules say where requests go.

mod gateway_api;
pub(in crate::index::waypoints) mod ingress;
mod istio;
mod place;
mod rules;
mod secrets;
mod within;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_api::gateway::{Gateway, ReferenceGrantSpec};
use l7::route::RouteRule;
use manifest::{
    Diagnostic, FieldLines, Kind, Labels, NamespacedName, Object, ObjectKey, Severity, Upsert,
};

use self::place::{Attachments, finish};
use self::secrets::{Kept, kept};
use super::super::Index;
use super::super::authorization::Note;
use super::super::waypoint::is_waypoint_class;
use super::{Aged, Waypoint, view};
use crate::l7::gateway::{self, IstioServers, Listeners};
use crate::l7::ingress as ingress_object;
use crate::l7::ingress::Class;
use crate::resource::Resource;
use crate::store::{GATEWAY_CLASS_NAME, GATEWAY_NAME};

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
    /// `IngressClass`es, also those of others: who is the default one is decided among all.
    classes: BTreeMap<NamespacedName, Aged<Class>>,
    pub(super) ingresses: BTreeMap<NamespacedName, Aged<Written<ingress_object::Compiled>>>,
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
    pub(super) origin: manifest::Origin,
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
        if class == view::EDGE_CLASS || is_waypoint_class(class) {
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
            Object::IngressClass(object) => {
                let compiled = ingress_object::class(object);
                let aged = Aged::new(&object.metadata, compiled);
                edge.classes.insert(named, aged);
            }
            Object::Ingress(object) => {
                let compiled = written(ingress_object::compile(object), upsert);
                let aged = Aged::new(&object.metadata, compiled);
                edge.ingresses.insert(named, aged);
            }
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
            Kind::IngressClass => drop(edge.classes.remove(named)),
            Kind::Ingress => drop(edge.ingresses.remove(named)),
            _ => return,
        }
        self.waypoints.all_marked = true;
    }

    /// What there is to say of gateways, where it has changed.
    pub(in crate::index) fn say_of_gateways(
        &mut self,
        diagnostics: &mut BTreeMap<ObjectKey, Vec<Diagnostic>>,
    ) {
        let edge = &self.waypoints.edge;
        let mut now: BTreeMap<ObjectKey, Vec<Diagnostic>> = BTreeMap::new();
        for (kind, key, notes, origin, lines) in edge.objects() {
            let key = ObjectKey::new(kind, &key.namespace, &key.name);
            let said = edge.said_of(&key, notes.iter(), (origin, lines));
            now.insert(key, said);
        }
        for (name, aged) in &edge.ingresses {
            let ingress = &aged.compiled;
            // Another controller speaks for its own.
            if !self.is_ours(&ingress.compiled) {
                continue;
            }
            let why = self.why_not_served(name, &ingress.compiled);
            let notes = ingress.compiled.notes.iter().chain(&why);
            let key = ObjectKey::new(Kind::Ingress, &name.namespace, &name.name);
            let said = edge.said_of(&key, notes, (&ingress.origin, &ingress.lines));
            now.insert(key, said);
        }
        let edge = &mut self.waypoints.edge;
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
        self.serve_ingresses(waypoint, &mut places, &mut built);
        self.rules_at_edge(&attachments, &mut built.rules);
        for place in places.into_values() {
            finish(place, &mut built);
        }
        Some(built)
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
}

impl Edge {
    /// These notes on an object, and what was found of it when gateways were put together.
    fn said_of<'n>(
        &'n self,
        key: &ObjectKey,
        notes: impl Iterator<Item = &'n Note>,
        (origin, lines): (&manifest::Origin, &FieldLines),
    ) -> Vec<Diagnostic> {
        let found = self.found.values().flatten();
        let found = found.filter(|(about, _)| about == key);
        let all = notes.chain(found.map(|(_, note)| note));
        let said = all.map(|note| {
            let origin = origin.at_line(lines.line(&note.field));
            Diagnostic::new(note.severity, &origin, Some(key), &note.message).field(&note.field)
        });
        said.collect()
    }

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
