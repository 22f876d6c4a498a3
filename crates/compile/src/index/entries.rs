//! Services that `ServiceEntry` objects declare. Each host of one becomes a service like any other, with slices of its
//! endpoints; what has a name for an endpoint is for waypoints and gateways, which look it up.
//!
//! Of two that declare the same host in a namespace the oldest counts, and a Service goes before both.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_api::ServiceEntry;
use manifest::{Diagnostic, FieldLines, Kind, NamespacedName, ObjectKey, Origin, Severity, Upsert};
use sha2::{Digest as _, Sha256};

use super::Index;
use super::authorization::Note;
use crate::store::{
    Declared, EntryEndpoint, EntryFacts, Place, Readiness, Resolution, ServiceFacts, SliceEndpoint,
    SliceFacts, TargetPort, Traits,
};

/// All `ServiceEntry` objects, and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: BTreeMap<NamespacedName, Entry>,
    /// Services that are Kubernetes' own.
    of_kubernetes: HashSet<NamespacedName>,
    services: BTreeSet<NamespacedName>,
    slices: BTreeSet<NamespacedName>,
    said: BTreeMap<ObjectKey, Vec<Diagnostic>>,
    changed: bool,
}

#[derive(Debug)]
struct Entry {
    facts: EntryFacts,
    notes: Vec<Note>,
    origin: Origin,
    lines: FieldLines,
}

impl Index {
    /// Takes a `ServiceEntry` in.
    pub(super) fn set_entry(&mut self, object: &ServiceEntry, upsert: &Upsert) {
        let (facts, notes) = EntryFacts::read(object, &self.mesh.cluster_domain);
        let entry = Entry {
            notes,
            origin: upsert.origin.clone(),
            lines: upsert.lines.clone(),
            facts,
        };
        self.entries.all.insert(entry.facts.key.clone(), entry);
        self.entries.changed = true;
    }

    /// Forgets one.
    pub(super) fn unset_entry(&mut self, key: &NamespacedName) {
        self.entries.changed |= self.entries.all.remove(key).is_some();
    }

    /// A Service of Kubernetes comes, or goes.
    pub(super) fn set_service_of_kubernetes(
        &mut self,
        key: &NamespacedName,
        facts: Option<ServiceFacts>,
    ) {
        let known = &mut self.entries.of_kubernetes;
        let is_news = match facts {
            Some(_) => known.insert(key.clone()),
            None => known.remove(key),
        };
        self.entries.changed |= is_news && !self.entries.all.is_empty();
        self.set_service(key, facts);
    }

    /// What a waypoint is may have changed for a namespace.
    pub(super) fn recheck_entries(&mut self) {
        self.entries.changed |= !self.entries.all.is_empty();
    }

    /// Makes services of what has changed.
    pub(super) fn settle_entries(&mut self) {
        if !std::mem::take(&mut self.entries.changed) {
            return;
        }
        // A rule may name a host that nobody had, or not for it.
        self.waypoints.all_marked = true;
        let mut wanted: BTreeMap<NamespacedName, ServiceFacts> = BTreeMap::new();
        let mut slices: BTreeMap<NamespacedName, SliceFacts> = BTreeMap::new();
        let mut found: BTreeMap<NamespacedName, Vec<Note>> = BTreeMap::new();
        let mut ordered: Vec<&EntryFacts> =
            self.entries.all.values().map(|one| &one.facts).collect();
        ordered.sort_by_cached_key(|facts| facts.rank());
        let mut taken = ordered
            .iter()
            .flat_map(|facts| &facts.addresses)
            .map(ipnet::IpNet::addr)
            .collect();
        for facts in ordered {
            for host in &facts.hosts {
                let mut say = |message| {
                    let note = Note {
                        severity: Severity::Error,
                        field: format!("spec.hosts[{}]", host.index),
                        message,
                    };
                    found.entry(facts.key.clone()).or_default().push(note);
                };
                if self.entries.of_kubernetes.contains(&host.service) {
                    say("is a Service's, which counts".to_owned());
                    continue;
                }
                if let Some(other) = wanted.get(&host.service) {
                    let other = other.declared.as_ref().map(|declared| &declared.object);
                    let other = other.map(ToString::to_string).unwrap_or_default();
                    say(format!(
                        "is declared by {other} too, which is older and counts"
                    ));
                    continue;
                }
                let service = service(facts, (&host.service, &host.name), &mut taken);
                for slice in slices_of(facts, &host.service) {
                    slices.insert(slice.key.clone(), slice);
                }
                wanted.insert(host.service.clone(), service);
            }
        }
        for facts in self.entries.all.values().map(|one| &one.facts) {
            let mut hosts = facts
                .hosts
                .iter()
                .filter_map(|host| wanted.get(&host.service));
            if facts.resolution == Resolution::Dns
                && hosts.any(|service| self.waypoint_of(service).is_none())
            {
                let note = Note {
                    severity: Severity::Warning,
                    field: "spec.resolution".to_owned(),
                    message: "names are looked up by waypoints and gateways: without a waypoint (istio.io/use-waypoint) nobody in the mesh reaches its addresses".to_owned(),
                };
                found.entry(facts.key.clone()).or_default().push(note);
            }
        }
        self.adopt_entries(wanted, slices);
        self.say_of_entries(&found);
    }

    fn adopt_entries(
        &mut self,
        wanted: BTreeMap<NamespacedName, ServiceFacts>,
        slices: BTreeMap<NamespacedName, SliceFacts>,
    ) {
        let before =
            std::mem::replace(&mut self.entries.services, wanted.keys().cloned().collect());
        for gone in before.iter().filter(|key| !wanted.contains_key(*key)) {
            if !self.entries.of_kubernetes.contains(gone) {
                self.set_service(gone, None);
            }
        }
        for (key, facts) in wanted {
            self.set_service(&key, Some(facts));
        }
        let before = std::mem::replace(&mut self.entries.slices, slices.keys().cloned().collect());
        for gone in before.iter().filter(|key| !slices.contains_key(*key)) {
            self.set_slice(gone, None);
        }
        for (key, facts) in slices {
            self.set_slice(&key, Some(facts));
        }
    }

    fn say_of_entries(&mut self, found: &BTreeMap<NamespacedName, Vec<Note>>) {
        let mut now = BTreeMap::new();
        for (key, entry) in &self.entries.all {
            let object = ObjectKey::new(Kind::ServiceEntry, &key.namespace, &key.name);
            let notes = entry
                .notes
                .iter()
                .chain(found.get(key).into_iter().flatten());
            let said = notes.map(|note| {
                let origin = entry.origin.at_line(entry.lines.line(&note.field));
                Diagnostic::new(note.severity, &origin, Some(&object), &note.message)
                    .field(&note.field)
            });
            let said: Vec<Diagnostic> = said.collect();
            now.insert(object, said);
        }
        let before = std::mem::take(&mut self.entries.said);
        let diagnostics = &mut self.dirty.diagnostics;
        for (key, said) in &now {
            if before.get(key) != Some(said) {
                diagnostics.insert(key.clone(), said.clone());
            }
        }
        for key in before.keys().filter(|key| !now.contains_key(*key)) {
            diagnostics.insert(key.clone(), Vec::new());
        }
        self.entries.said = now;
    }

    /// The service that clients of a namespace mean by a host which is no Service's: what that namespace declares, else the
    /// oldest that others let it see.
    pub(super) fn declared(&self, host: &str, namespace: &Arc<str>) -> Option<NamespacedName> {
        let of = |service: &NamespacedName| {
            let declared = self.services.get(service)?.declared.as_ref()?;
            let is_own = service.namespace == *namespace;
            (is_own || !declared.own_namespace_only).then_some(&declared.object)
        };
        let all = self.entries.services.iter();
        let named = all.filter(|service| *service.name == *host);
        let seen = named.filter_map(|service| {
            let facts = &self.entries.all.get(of(service)?)?.facts;
            Some((service.namespace != *namespace, facts.rank(), service))
        });
        let best = seen.min_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        best.map(|(_, _, service)| service.clone())
    }
}

/// A host of an entry as a service.
fn service(
    facts: &EntryFacts,
    (key, host): (&NamespacedName, &str),
    taken: &mut HashSet<IpAddr>,
) -> ServiceFacts {
    let is_one = |range: &&ipnet::IpNet| range.prefix_len() == range.max_prefix_len();
    let (one, ranges): (Vec<_>, Vec<_>) = facts.addresses.iter().partition(|range| is_one(range));
    let mut addresses: Vec<IpAddr> = one.into_iter().map(ipnet::IpNet::addr).collect();
    let mut named: Vec<EntryEndpoint> = Vec::new();
    if facts.resolution == Resolution::Dns {
        let is_named = |one: &&EntryEndpoint| matches!(one.place, Place::Host(_));
        named.extend(facts.endpoints.iter().filter(is_named).cloned());
        if facts.endpoints.is_empty() {
            named.push(EntryEndpoint {
                place: Place::Host(host.to_owned()),
                ports: BTreeMap::new(),
                labels: BTreeMap::new(),
                locality: l7::backend::Locality::default(),
                weight: 1,
            });
        }
    }
    if addresses.is_empty() && facts.resolution != Resolution::None {
        addresses.extend(own_addresses(key, taken));
    }
    ServiceFacts {
        key: key.clone(),
        labels: facts.labels.clone(),
        selector: facts.selector.clone(),
        addresses,
        headless: false,
        external_name: false,
        ports: facts.ports.clone(),
        ip_families: Vec::new(),
        publish_not_ready: false,
        node_local: false,
        session_timeout: None,
        traffic_distribution: None,
        declared: Some(Box::new(Declared {
            object: facts.key.clone(),
            ranges: ranges.into_iter().copied().collect(),
            passes_through: facts.resolution == Resolution::None,
            own_namespace_only: facts.own_namespace_only,
            named,
        })),
    }
}

/// Addresses of a service that has none: of the ranges of Istio, by the hash of its name, so that every controller finds the
/// same; the next free ones where another has these.
fn own_addresses(key: &NamespacedName, taken: &mut HashSet<IpAddr>) -> [IpAddr; 2] {
    let digest = Sha256::digest(key.to_string().as_bytes());
    let first = u16::from_be_bytes([digest[0], digest[1]]);
    let at = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(240, 240, high, low);
        [
            v4.into(),
            Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number).into(),
        ]
    };
    let mut numbers = (0..=u16::MAX).map(|step| first.wrapping_add(step));
    // 0 and the last one are a network's own in many minds.
    let free = numbers.find(|number| {
        let usable = !matches!(number.to_be_bytes()[1], 0 | 255);
        usable && at(*number).iter().all(|address| !taken.contains(address))
    });
    let chosen = at(free.unwrap_or(first));
    taken.extend(chosen);
    chosen
}

/// The endpoints with addresses, as slices: one for each way in which ports are told.
fn slices_of(facts: &EntryFacts, service: &NamespacedName) -> Vec<SliceFacts> {
    let mut by_ports: BTreeMap<BTreeMap<String, u16>, Vec<SliceEndpoint>> = BTreeMap::new();
    for endpoint in &facts.endpoints {
        let Place::Address(address) = endpoint.place else {
            continue;
        };
        let listed = SliceEndpoint {
            addresses: vec![address],
            pod: None,
            node: "".into(),
            readiness: Readiness::Ready,
            traits: Some(Arc::new(Traits {
                labels: endpoint.labels.clone(),
                locality: endpoint.locality.clone(),
                weight: endpoint.weight,
            })),
        };
        by_ports
            .entry(ports_of(facts, endpoint))
            .or_default()
            .push(listed);
    }
    let numbered = by_ports.into_iter().enumerate();
    numbered
        .map(|(number, (ports, endpoints))| SliceFacts {
            // No slice of Kubernetes has such a name.
            key: NamespacedName::new(
                &facts.key.namespace,
                &format!("serviceentry:{}:{}:{number}", facts.key.name, service.name),
            ),
            service: service.clone(),
            ports,
            endpoints,
        })
        .collect()
}

/// An endpoint's own port for each port of the service, by its name.
fn ports_of(facts: &EntryFacts, endpoint: &EntryEndpoint) -> BTreeMap<String, u16> {
    let ports = facts.ports.iter();
    ports
        .map(|port| (port.name.clone(), own_port(port, endpoint)))
        .collect()
}

/// An endpoint's own port for a port of the service.
pub(super) fn own_port(port: &crate::store::ServicePortFacts, endpoint: &EntryEndpoint) -> u16 {
    let said = endpoint.ports.get(&port.name).copied();
    said.unwrap_or(match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Name(_) => port.port,
    })
}
