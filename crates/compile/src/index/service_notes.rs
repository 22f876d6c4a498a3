//! What there is to say of Services: that a waypoint which one names does not let its namespace in, and addresses that the
//! mesh does not carry.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_api::Service;
use manifest::{Diagnostic, FieldLines, Kind, NamespacedName, ObjectKey, Origin, Severity, Upsert};

use super::{Index, waypoint};

/// Where Services are written, and of which there is something to say.
#[derive(Debug, Default)]
pub(super) struct Said {
    known: HashMap<NamespacedName, Known>,
    said: BTreeSet<NamespacedName>,
}

#[derive(Debug)]
struct Known {
    origin: Origin,
    lines: FieldLines,
    /// Addresses that are outside of the cluster, by the field that has them.
    outside: Vec<(&'static str, String)>,
}

impl Said {
    pub(super) fn forget(&mut self, key: &NamespacedName) {
        self.known.remove(key);
    }
}

impl Index {
    /// Notes where a Service is written. What there is to say of it is said when it is put together.
    pub(super) fn note_service(
        &mut self,
        key: &NamespacedName,
        service: &Service,
        upsert: &Upsert,
    ) {
        let known = Known {
            origin: upsert.origin.clone(),
            lines: upsert.lines.clone(),
            outside: outside(service),
        };
        let before = self.services_said.known.get(key);
        let is_other = before.is_none_or(|before| before.outside != known.outside);
        self.services_said.known.insert(key.clone(), known);
        if is_other {
            self.dirty.services.insert(key.clone());
        }
    }

    /// What there is to say of these Services.
    pub(super) fn say_of_services(
        &mut self,
        services: &BTreeSet<NamespacedName>,
        diagnostics: &mut BTreeMap<ObjectKey, Vec<Diagnostic>>,
    ) {
        for key in services {
            let said = self.said_of_service(key);
            let is_said = !said.is_empty();
            let was_said = match is_said {
                true => !self.services_said.said.insert(key.clone()),
                false => self.services_said.said.remove(key),
            };
            if is_said || was_said {
                let about = ObjectKey::new(Kind::Service, &key.namespace, &key.name);
                diagnostics.insert(about, said);
            }
        }
    }

    fn said_of_service(&self, key: &NamespacedName) -> Vec<Diagnostic> {
        let known = self.services_said.known.get(key);
        let (Some(known), Some(facts)) = (known, self.services.get(key)) else {
            return Vec::new();
        };
        let about = ObjectKey::new(Kind::Service, &key.namespace, &key.name);
        let finding = |severity, field: &str, message: String| {
            let origin = known.origin.at_line(known.lines.line(field));
            Diagnostic::new(severity, &origin, Some(&about), message).field(field)
        };
        let mut said = Vec::new();
        let of_namespace = self.namespaces.get(&key.namespace);
        let named = waypoint::required(
            &self.mesh,
            &key.namespace,
            &facts.labels,
            of_namespace,
            || false,
        );
        if let Some(named) = named.filter(|named| !self.lets_in(named, &key.namespace))
            && let Some(name) = waypoint::named(&named)
        {
            let message = format!(
                "Gateway {name} does not let namespace {} use it, by allowedRoutes of its listener: this Service has no waypoint",
                key.namespace
            );
            said.push(finding(Severity::Warning, "metadata.labels", message));
        }
        for (field, address) in &known.outside {
            let message = format!(
                "the mesh does not carry connections to {address}: pods reach it in plain, as without a mesh. Inside the cluster use the Service's name"
            );
            said.push(finding(Severity::Info, field, message));
        }
        said
    }
}

/// The addresses of a Service that are none of the cluster's own.
fn outside(service: &Service) -> Vec<(&'static str, String)> {
    let spec = service.spec.iter();
    let external = spec.flat_map(|spec| spec.external_ips.iter().flatten());
    let mut found: Vec<_> = external
        .map(|address| ("spec.externalIPs", address.clone()))
        .collect();
    let status = service.status.iter();
    let balancers = status.filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let balancers = balancers.flatten().filter_map(|one| one.ip.clone());
    found.extend(balancers.map(|ip| ("status.loadBalancer", ip)));
    found
}
