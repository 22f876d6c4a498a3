//! What each waypoint is told: the services that are attached to it, and what these need.
//!
//! A waypoint that something may concern is marked and put together anew; a resource with the same content keeps its
//! version. Marked are: all waypoints by an L7 object or a policy, those that know a Service or one of its endpoints by
//! a change of it, and the old and the new one by a label.

mod assembly;
mod auto;
pub(super) mod edge;
mod patterns;
mod policies;
mod routes;
pub mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::authorization::Note;
use super::authorization::http::HttpPolicy;
use super::{Dirty, Index};
use crate::l7::gateway::IstioServers;
use crate::l7::{destination_rule, gateway_route, virtual_service};
use crate::lint::Subject;
use crate::store::GATEWAY_NAME;
use manifest::{
    Authorship, Diagnostic, Kind, NamespacedName, Object, ObjectKey, Origin, PodFacts, Upsert,
};

/// A `namespace/name`.
type Waypoint = NamespacedName;

/// All L7 objects, and where services and pods belong.
#[derive(Debug, Default)]
pub(super) struct Waypoints {
    virtual_services: BTreeMap<NamespacedName, Aged<virtual_service::Compiled>>,
    destination_rules: BTreeMap<NamespacedName, Aged<destination_rule::Compiled>>,
    routes: BTreeMap<(Kind, NamespacedName), Aged<gateway_route::Compiled>>,
    policies: BTreeMap<NamespacedName, HttpPolicy>,
    attached: BTreeMap<Waypoint, BTreeSet<NamespacedName>>,
    waypoint_of: HashMap<NamespacedName, Waypoint>,
    pods: BTreeMap<Waypoint, BTreeSet<Arc<str>>>,
    waypoint_of_pod: HashMap<Arc<str>, Waypoint>,
    /// Pods whose own addresses are behind a waypoint.
    behind: BTreeMap<Waypoint, BTreeSet<Arc<str>>>,
    behind_of: HashMap<Arc<str>, Waypoint>,
    /// By Service, whether it exists or not, the waypoints that have to do with it.
    involved: HashMap<NamespacedName, BTreeSet<Waypoint>>,
    /// By the name of a workload, the waypoints that know it.
    knowing: HashMap<Arc<str>, BTreeSet<Waypoint>>,
    /// Waypoints that are told of all pods, because a rule asks for labels of clients.
    curious: BTreeSet<Waypoint>,
    /// What is said of gateways at the edge.
    edge: edge::Edge,
    /// Rules that are left out because of their regular expressions.
    patterns: patterns::Patterns,
    /// What routes of a cluster refer to.
    refs: BTreeMap<(Kind, NamespacedName), view::Refs>,
    /// What there may be something to say of beside others; of a cluster alone, for files are looked at together.
    pub(super) subjects: BTreeMap<ObjectKey, (Subject, Origin)>,
    view_version: u64,
    marked: BTreeSet<Waypoint>,
    pub(super) all_marked: bool,
}

/// Something compiled, and when its object was created: the oldest goes first, one without a time last.
#[derive(Clone, Debug, PartialEq)]
struct Aged<T> {
    created: Option<String>,
    compiled: T,
}

impl<T> Aged<T> {
    fn new(metadata: &k8s_api::ObjectMeta, compiled: T) -> Self {
        let time = metadata.creation_timestamp.as_ref();
        let time = time.and_then(|time| serde_json::to_value(time).ok());
        let created = time.and_then(|time| time.as_str().map(str::to_owned));
        Self { created, compiled }
    }

    fn rank(&self) -> (bool, Option<&str>) {
        (self.created.is_none(), self.created.as_deref())
    }
}

impl Waypoints {
    /// Istio's Gateways.
    pub(super) fn istio_gateways(&self) -> impl Iterator<Item = (&NamespacedName, &IstioServers)> {
        let all = self.edge.istio.iter();
        all.map(|(name, written)| (name, &written.compiled))
    }

    /// Notes what there may be something to say of.
    fn note_subject(&mut self, key: &ObjectKey, upsert: &Upsert) {
        if upsert.origin.authorship() == Authorship::Administrator {
            return;
        }
        let content = match &upsert.object {
            Object::VirtualService(object) => serde_json::to_value(object),
            Object::DestinationRule(object) => serde_json::to_value(object),
            _ => return,
        };
        let subject = content
            .ok()
            .and_then(|content| Subject::read(key, &content));
        if let Some(subject) = subject {
            let noted = (subject, upsert.origin.clone());
            self.subjects.insert(key.clone(), noted);
        }
    }
}

impl Index {
    /// Takes an L7 object in.
    pub(super) fn set_l7(&mut self, upsert: &Upsert) {
        let domain = &self.mesh.cluster_domain;
        let waypoints = &mut self.waypoints;
        let created = |metadata: &k8s_api::ObjectMeta| {
            let time = serde_json::to_value(metadata.creation_timestamp.as_ref()?).ok()?;
            time.as_str().map(str::to_owned)
        };
        let key = upsert.object.key();
        let named = NamespacedName::new(key.namespace(), key.name());
        if let (manifest::ObjectKind::Known(kind), Some(refs)) =
            (key.kind(), view::Refs::read(upsert))
        {
            waypoints.refs.insert((*kind, named.clone()), refs);
        }
        waypoints.note_subject(&key, upsert);
        let notes = match &upsert.object {
            Object::VirtualService(object) => {
                let compiled = virtual_service::compile(object, domain);
                let notes = compiled.notes.clone();
                let created = created(&object.metadata);
                let aged = Aged { created, compiled };
                waypoints.virtual_services.insert(named, aged);
                notes
            }
            Object::DestinationRule(object) => {
                let compiled = destination_rule::compile(object, domain);
                let notes = compiled.notes.clone();
                let created = created(&object.metadata);
                let aged = Aged { created, compiled };
                waypoints.destination_rules.insert(named, aged);
                notes
            }
            Object::HttpRoute(object) => {
                let compiled = gateway_route::http(object, domain);
                let notes = compiled.notes.clone();
                let created = created(&object.metadata);
                let aged = Aged { created, compiled };
                waypoints.routes.insert((Kind::HttpRoute, named), aged);
                notes
            }
            Object::GrpcRoute(object) => {
                let compiled = gateway_route::grpc(object, domain);
                let notes = compiled.notes.clone();
                let created = created(&object.metadata);
                let aged = Aged { created, compiled };
                waypoints.routes.insert((Kind::GrpcRoute, named), aged);
                notes
            }
            Object::TlsRoute(object) | Object::TcpRoute(object) => {
                let kind = match &upsert.object {
                    Object::TlsRoute(_) => Kind::TlsRoute,
                    _ => Kind::TcpRoute,
                };
                let compiled = gateway_route::connections(kind, object, domain);
                let notes = compiled.notes.clone();
                let created = created(&object.metadata);
                let aged = Aged { created, compiled };
                waypoints.routes.insert((kind, named), aged);
                notes
            }
            _ => return,
        };
        waypoints.all_marked = true;
        self.note(&key, upsert, &notes);
    }

    /// Forgets an L7 object.
    pub(super) fn unset_l7(&mut self, kind: Kind, named: &NamespacedName) {
        let waypoints = &mut self.waypoints;
        let known = match kind {
            Kind::VirtualService => waypoints.virtual_services.remove(named).is_some(),
            Kind::DestinationRule => waypoints.destination_rules.remove(named).is_some(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                waypoints.routes.remove(&(kind, named.clone())).is_some()
            }
            _ => false,
        };
        waypoints.all_marked |= known;
        waypoints.refs.remove(&(kind, named.clone()));
        let key = ObjectKey::new(kind, &named.namespace, &named.name);
        self.waypoints.subjects.remove(&key);
        self.waypoints.patterns.forget(&key);
        self.dirty.diagnostics.insert(key, Vec::new());
    }

    fn note(&mut self, key: &ObjectKey, upsert: &Upsert, notes: &[Note]) {
        let said = notes.iter().map(|note| {
            let origin = upsert.origin.at_line(upsert.lines.line(&note.field));
            Diagnostic::new(note.severity, &origin, Some(key), &note.message).field(&note.field)
        });
        let said: Vec<Diagnostic> = said.collect();
        let patterns = &mut self.waypoints.patterns;
        patterns.note(key, &upsert.origin, &said);
        self.dirty.diagnostics.insert(key.clone(), said);
    }

    /// Takes in what a `Gateway` says that its waypoint is for; `None` where it is none, or is gone. What is attached to
    /// it is not known by waypoint, so all is looked at.
    pub(super) fn set_gateway(
        &mut self,
        key: &NamespacedName,
        serves: Option<super::waypoint::Serves>,
    ) {
        let before = match &serves {
            Some(serves) => self.gateways.insert(key.clone(), serves.clone()),
            None => self.gateways.remove(key),
        };
        if before != serves {
            self.dirty.pods.extend(self.pods.keys().cloned());
            self.dirty.services.extend(self.services.keys().cloned());
            self.recheck_entries();
        }
    }

    /// Takes in what an `AuthorizationPolicy` means at waypoints; `None` forgets it.
    pub(super) fn set_http_policy(&mut self, key: &NamespacedName, policy: Option<HttpPolicy>) {
        let policies = &mut self.waypoints.policies;
        let before = match &policy {
            Some(new) => policies.insert(key.clone(), new.clone()),
            None => policies.remove(key),
        };
        self.waypoints.all_marked |= before != policy;
    }

    /// Marks waypoints that changes concern, and puts them together anew.
    pub(super) fn flush_waypoints(&mut self, dirty: &Dirty) -> bool {
        // Listeners choose namespaces by their labels.
        self.waypoints.all_marked |= dirty.namespaces;
        self.waypoints.all_marked |= !dirty.peer_authentications.is_empty() || dirty.static_strict;
        for key in &dirty.services {
            self.follow_service(key);
        }
        for uid in &dirty.pods {
            self.follow_pod(uid);
        }
        for (slice, address) in &dirty.endpoints {
            let uid = super::workload::endpoint_uid(&self.mesh, slice, *address);
            self.mark_knowing(&uid);
            if let Some(slice) = self.slices.get(slice) {
                self.mark_involved(&slice.service.clone());
            }
        }
        let mut marked = std::mem::take(&mut self.waypoints.marked);
        if !dirty.services.is_empty() {
            // A route at the edge may lead to one that was not there, and that no rule names therefore.
            marked.extend(self.waypoints.edge.listeners.keys().cloned());
        }
        let all_marked = std::mem::take(&mut self.waypoints.all_marked);
        if all_marked || !marked.is_empty() {
            self.name_secrets();
        }
        let is_seen = all_marked || !marked.is_empty() || !dirty.services.is_empty();
        self.waypoints.view_version += u64::from(is_seen);
        if all_marked {
            marked.extend(self.waypoints.attached.keys().cloned());
            marked.extend(self.waypoints.pods.keys().cloned());
        }
        let mut changed = false;
        for waypoint in &marked {
            changed |= self.flush_waypoint(waypoint);
        }
        changed
    }

    /// The waypoint that a Service is attached to, as its resource says.
    fn follow_service(&mut self, key: &NamespacedName) {
        let now = self
            .services
            .get(key)
            .and_then(|facts| super::waypoint::named(&self.waypoint_of(facts)?));
        let waypoints = &mut self.waypoints;
        let before = match &now {
            Some(now) => waypoints.waypoint_of.insert(key.clone(), now.clone()),
            None => waypoints.waypoint_of.remove(key),
        };
        if before != now {
            if let Some(before) = &before {
                super::track::unlink_ordered(&mut waypoints.attached, before, key);
            }
            if let Some(now) = &now {
                let attached = waypoints.attached.entry(now.clone()).or_default();
                attached.insert(key.clone());
            }
        }
        waypoints.marked.extend(before.into_iter().chain(now));
        self.mark_involved(key);
    }

    /// A pod is a waypoint's own, an endpoint, or a client.
    fn follow_pod(&mut self, uid: &Arc<str>) {
        let pod = self.pods.get(uid).map(Arc::clone);
        let now = pod.as_ref().and_then(|pod| {
            let name = pod.labels.get(GATEWAY_NAME)?;
            Some(NamespacedName::new(&pod.key.namespace, name))
        });
        let waypoints = &mut self.waypoints;
        let before = match &now {
            Some(now) => waypoints
                .waypoint_of_pod
                .insert(Arc::clone(uid), now.clone()),
            None => waypoints.waypoint_of_pod.remove(uid),
        };
        if before != now {
            if let Some(before) = &before {
                super::track::unlink_ordered(&mut waypoints.pods, before, uid);
            }
            if let Some(now) = &now {
                let pods = waypoints.pods.entry(now.clone()).or_default();
                pods.insert(Arc::clone(uid));
            }
        }
        waypoints.marked.extend(before.into_iter().chain(now));
        self.follow_behind(uid, pod.as_deref());
        let waypoints = &mut self.waypoints;
        let curious = waypoints.curious.clone();
        waypoints.marked.extend(curious);
        self.mark_knowing(uid);
        // A pod that a slice names may be no endpoint by that, and is one that waypoints look at.
        let named = self.slices_by_pod.get(uid).into_iter().flatten();
        let named = named.filter_map(|slice| Some(self.slices.get(slice)?.service.clone()));
        let named: Vec<NamespacedName> = named.collect();
        for service in &named {
            self.mark_involved(service);
        }
        if let Some(pod) = pod {
            let addresses = self.addresses_of(uid, &pod);
            let endpoints = self.endpoints_of_pod(uid, &pod, &addresses);
            let services: Vec<NamespacedName> = endpoints.keys().cloned().collect();
            for service in services {
                self.mark_involved(&service);
            }
        }
    }

    /// The waypoint that a pod's own addresses are behind.
    fn follow_behind(&mut self, uid: &Arc<str>, pod: Option<&PodFacts>) {
        let now = pod.and_then(|pod| super::waypoint::named(&self.waypoint_of_pod(pod)?));
        let waypoints = &mut self.waypoints;
        let before = match &now {
            Some(now) => waypoints.behind_of.insert(Arc::clone(uid), now.clone()),
            None => waypoints.behind_of.remove(uid),
        };
        if before == now {
            return;
        }
        if let Some(before) = &before {
            super::track::unlink_ordered(&mut waypoints.behind, before, uid);
        }
        if let Some(now) = &now {
            let behind = waypoints.behind.entry(now.clone()).or_default();
            behind.insert(Arc::clone(uid));
        }
        waypoints.marked.extend(before.into_iter().chain(now));
    }

    pub(super) fn mark_involved(&mut self, service: &NamespacedName) {
        let waypoints = &mut self.waypoints;
        let involved = waypoints.involved.get(service).into_iter().flatten();
        waypoints.marked.extend(involved.cloned());
    }

    fn mark_knowing(&mut self, uid: &str) {
        let waypoints = &mut self.waypoints;
        let knowing = waypoints.knowing.get(uid).into_iter().flatten();
        waypoints.marked.extend(knowing.cloned());
    }
}
