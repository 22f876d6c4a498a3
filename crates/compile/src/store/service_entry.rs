//! Facts of a `ServiceEntry`, and what is wrong with one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_api::ServiceEntry;
use k8s_api::service_entry::{ServiceEntrySpec, WorkloadEntry};
use l7::backend::Locality;
use manifest::{Labels, NamespacedName, USE_WAYPOINT};
use model::address::is_of_another;

use super::service::{ServicePortFacts, TargetPort, waypoint_labels};
use crate::index::authorization::Note;
use crate::l7::hosts;
use crate::l7::notes::Notes;

/// What the mesh needs to know of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// When it was created; the oldest goes first.
    pub created: Option<String>,
    /// The labels that name its waypoint.
    pub labels: Labels,
    /// Its hosts in full; none for an object with an error, which declares nothing.
    pub hosts: Vec<EntryHost>,
    /// Addresses and ranges by which clients know it.
    pub addresses: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<ServicePortFacts>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Its endpoints.
    pub endpoints: Vec<EntryEndpoint>,
    /// Pods of its namespace that are endpoints too; empty for none.
    pub selector: Labels,
    /// Only clients of its own namespace may use it.
    pub own_namespace_only: bool,
}

/// A host of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryHost {
    /// Its place in the object.
    pub index: usize,
    /// The full name.
    pub name: String,
    /// The service that it is known as.
    pub service: NamespacedName,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Connections go to the address that was dialled.
    None,
    /// Endpoints have addresses.
    Static,
    /// Endpoints have names.
    Dns,
}

/// An endpoint of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// Where it is.
    pub place: Place,
    /// Its port by the name of the service's.
    pub ports: BTreeMap<String, u16>,
    /// Its labels, for subsets.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Its share.
    pub weight: u32,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this address.
    Address(IpAddr),
    /// Where this name leads.
    Host(String),
}

impl EntryFacts {
    /// Reads a `ServiceEntry` of a cluster with this domain, and says what is wrong with it.
    pub fn read(entry: &ServiceEntry, domain: &str) -> (Self, Vec<Note>) {
        let key = NamespacedName::of(&entry.metadata);
        let labels = waypoint_labels(&entry.metadata);
        let mut notes = Notes::default();
        let spec = &entry.spec;
        let resolution = resolution(spec, &mut notes);
        match spec.location.as_deref() {
            None | Some("MESH_EXTERNAL" | "MESH_INTERNAL") => {}
            Some(other) => {
                let message = format!("{other:?} is none of MESH_EXTERNAL and MESH_INTERNAL");
                notes.error("spec.location", message);
            }
        }
        if !spec.subject_alt_names.is_empty() {
            let message =
                "is not supported: write tls.subjectAltNames of a DestinationRule for the host";
            notes.error("spec.subjectAltNames", message);
        }
        if resolution == Resolution::None && labels.get(USE_WAYPOINT).is_some_and(|w| w != "none") {
            let message = "a waypoint does not know where connections go with resolution NONE; write STATIC or DNS";
            notes.error(format!("metadata.labels[{USE_WAYPOINT:?}]"), message);
        }
        let ports = ports(spec, &mut notes);
        let addresses = addresses(spec, resolution, &mut notes);
        let mut hosts = hosts(spec, &key, (resolution, domain), &mut notes);
        if resolution == Resolution::None && addresses.is_empty() {
            let message = "there are none, and connections are known by their addresses: with resolution NONE it has no effect";
            notes.warning("spec.addresses", message);
        }
        let selector = selector(spec, resolution, &mut notes);
        let endpoints = endpoints(spec, (resolution, &ports), &mut notes);
        let own_namespace_only = exported(spec, &key, &mut notes);
        if notes.errors() > 0 {
            hosts.clear();
        }
        let created = entry.metadata.creation_timestamp.as_ref();
        let created = created.and_then(|time| {
            let text = serde_json::to_value(time).ok()?;
            text.as_str().map(str::to_owned)
        });
        let facts = Self {
            key,
            created,
            labels,
            hosts,
            addresses,
            ports,
            resolution,
            endpoints,
            selector,
            own_namespace_only,
        };
        (facts, notes.0)
    }

    /// The smallest goes first where two declare the same.
    pub(crate) fn rank(&self) -> impl Ord + use<> {
        (
            self.created.is_none(),
            self.created.clone(),
            self.key.clone(),
        )
    }
}

fn resolution(spec: &ServiceEntrySpec, notes: &mut Notes) -> Resolution {
    match spec.resolution.as_deref() {
        None | Some("NONE") => Resolution::None,
        Some("STATIC") => Resolution::Static,
        Some("DNS" | "DNS_ROUND_ROBIN") => Resolution::Dns,
        Some(other) => {
            let message =
                format!("{other:?} is not supported; NONE, STATIC, DNS and DNS_ROUND_ROBIN are");
            notes.error("spec.resolution", message);
            Resolution::None
        }
    }
}

fn ports(spec: &ServiceEntrySpec, notes: &mut Notes) -> Vec<ServicePortFacts> {
    if spec.ports.is_empty() {
        notes.error("spec.ports", "is missing");
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut read = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if port.number == 0 {
            notes.error(format!("{field}.number"), "is missing");
        } else if !numbers.insert(port.number) {
            let message = format!("{} is the number of another port too", port.number);
            notes.error(format!("{field}.number"), message);
        }
        if port.name.is_empty() {
            notes.error(format!("{field}.name"), "is missing");
        } else if !names.insert(port.name.clone()) {
            let message = format!("{:?} is the name of another port too", port.name);
            notes.error(format!("{field}.name"), message);
        }
        // In any case of letters, as Istio takes them (Y23).
        let protocol = port.protocol.to_ascii_lowercase();
        let known = [
            "", "http", "http2", "grpc", "grpc-web", "https", "tls", "tcp", "mongo", "mysql",
            "redis",
        ];
        if !known.contains(&protocol.as_str()) {
            let message = format!(
                "{:?} is not supported; HTTP, HTTP2, GRPC, HTTPS, TLS and TCP are",
                port.protocol
            );
            notes.error(format!("{field}.protocol"), message);
        }
        let protocol = match protocol.as_str() {
            "mongo" | "mysql" | "redis" => "tcp".to_owned(),
            "grpc-web" => "grpc".to_owned(),
            "" => {
                let prefix = port.name.split('-').next();
                prefix.unwrap_or_default().to_owned()
            }
            _ => protocol,
        };
        read.push(ServicePortFacts {
            name: port.name.clone(),
            port: port.number,
            target: TargetPort::Number(port.target_port.unwrap_or(port.number)),
            protocol,
        });
    }
    read
}

fn addresses(spec: &ServiceEntrySpec, resolution: Resolution, notes: &mut Notes) -> Vec<IpNet> {
    let mut read = Vec::new();
    for (index, text) in spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        let range: Option<IpNet> = text.parse().ok();
        let range = range.or_else(|| text.parse().ok().map(|ip: IpAddr| ip.into()));
        match range {
            None => notes.error(
                field,
                format!("{text} is no address and no range of addresses"),
            ),
            Some(range)
                if range.prefix_len() < range.max_prefix_len()
                    && resolution != Resolution::None =>
            {
                let message = "a range is supported with resolution NONE only";
                notes.error(field, message);
            }
            Some(range) if !is_of_another(range.addr()) => notes.error(
                field,
                format!("{text} is no other host's: whoever dials it reaches itself"),
            ),
            Some(range) => read.push(range),
        }
    }
    read
}

fn hosts(
    spec: &ServiceEntrySpec,
    key: &NamespacedName,
    (resolution, domain): (Resolution, &str),
    notes: &mut Notes,
) -> Vec<EntryHost> {
    if spec.hosts.is_empty() {
        notes.error("spec.hosts", "is missing");
    }
    let mut read = Vec::new();
    for (index, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if host.is_empty() || host == "*" {
            notes.error(field, "has to be a name");
            continue;
        }
        if host.starts_with('*') && resolution != Resolution::None {
            let message = "a host with * is supported with resolution NONE only";
            notes.error(field, message);
            continue;
        }
        let name = hosts::full(host, &key.namespace, domain).to_ascii_lowercase();
        let service = match hosts::service(&name, domain) {
            Some(of) if of.namespace != key.namespace => {
                let message = format!(
                    "is the name of a Service of namespace {}, which only that namespace can declare",
                    of.namespace
                );
                notes.error(field, message);
                continue;
            }
            Some(_) => name.split('.').next().unwrap_or_default(),
            None => &name,
        };
        let service = NamespacedName::new(&key.namespace, service);
        read.push(EntryHost {
            index,
            name,
            service,
        });
    }
    read
}

fn selector(spec: &ServiceEntrySpec, resolution: Resolution, notes: &mut Notes) -> Labels {
    let Some(selector) = &spec.workload_selector else {
        return Labels::default();
    };
    if selector.labels.is_empty() {
        notes.error("spec.workloadSelector.labels", "is missing");
    }
    if !spec.endpoints.is_empty() {
        let message = "only one of endpoints and workloadSelector can be set";
        notes.error("spec.workloadSelector", message);
    }
    if resolution != Resolution::Static {
        let message = "is supported with resolution STATIC only";
        notes.error("spec.workloadSelector", message);
    }
    selector.labels.clone()
}

fn endpoints(
    spec: &ServiceEntrySpec,
    (resolution, ports): (Resolution, &[ServicePortFacts]),
    notes: &mut Notes,
) -> Vec<EntryEndpoint> {
    match resolution {
        Resolution::None if !spec.endpoints.is_empty() => {
            let message = "have no effect with resolution NONE; write STATIC or DNS";
            notes.error("spec.endpoints", message);
        }
        Resolution::Static if spec.endpoints.is_empty() && spec.workload_selector.is_none() => {
            notes.error("spec.endpoints", "are missing: resolution is STATIC");
        }
        _ => {}
    }
    let mut read = Vec::new();
    for (index, written) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        read.extend(endpoint(&field, written, (resolution, ports), notes));
    }
    read
}

fn endpoint(
    field: &str,
    written: &WorkloadEntry,
    (resolution, ports): (Resolution, &[ServicePortFacts]),
    notes: &mut Notes,
) -> Option<EntryEndpoint> {
    if !written.network.is_empty() {
        let message = "is not supported: the mesh has one network";
        notes.error(format!("{field}.network"), message);
    }
    if !written.service_account.is_empty() {
        let message = "has no effect: who serves at an address is known by who captured it";
        notes.warning(format!("{field}.serviceAccount"), message);
    }
    for name in written.ports.keys() {
        if !ports.iter().any(|port| port.name == *name) {
            // Y61, Y64.
            let message = format!(
                "no port of the entry is called {name:?}: the endpoint is reached at the entry's own number"
            );
            notes.warning(format!("{field}.ports.{name}"), message);
        }
    }
    let place = match (written.address.parse(), resolution) {
        (Ok(address), _) if !is_of_another(address) => {
            let message = format!("{address} is no other host's: whoever dials it reaches itself");
            notes.error(format!("{field}.address"), message);
            return None;
        }
        (Ok(address), _) => Place::Address(address),
        (Err(_), _) if written.address.is_empty() || written.address.contains([':', '/', '*']) => {
            let message = format!(
                "{:?} is not supported; write an address or a name",
                written.address
            );
            notes.error(format!("{field}.address"), message);
            return None;
        }
        (Err(_), Resolution::Dns) => Place::Host(written.address.to_ascii_lowercase()),
        (Err(_), _) => {
            let message = format!(
                "{} is no address; resolution DNS is for names",
                written.address
            );
            notes.error(format!("{field}.address"), message);
            return None;
        }
    };
    let mut parts = written.locality.split('/').map(Into::into);
    let mut part = || parts.next().unwrap_or_default();
    Some(EntryEndpoint {
        place,
        ports: written.ports.clone(),
        labels: written.labels.clone(),
        locality: Locality {
            region: part(),
            zone: part(),
            subzone: part(),
        },
        weight: written.weight.unwrap_or(1),
    })
}

/// Whether only clients of its own namespace may use it.
fn exported(spec: &ServiceEntrySpec, key: &NamespacedName, notes: &mut Notes) -> bool {
    let mut own = false;
    for (index, to) in spec.export_to.iter().enumerate() {
        match to.as_str() {
            "*" => return false,
            "." => own = true,
            named if *named == *key.namespace => own = true,
            other => {
                let message = format!("{other:?} is not supported; `.` and `*` are");
                notes.error(format!("spec.exportTo[{index}]"), message);
            }
        }
    }
    own
}
