//! What is legal in Istio's traffic objects and surely not meant.
//!
//! Who brings them along hears of what is known to go wrong with them: two owners
//! of one host, routes that nothing reaches, hosts and subsets that are nowhere. Of files, only what they themselves
//! contradict is said: a host that is in no file may be in the cluster. Of a cluster everything is known.

mod around;
mod subject;

use manifest::{Diagnostic, FieldLines, ObjectKey, Origin, Severity, Written};

pub(crate) use self::around::{Around, Host, Served};
pub(crate) use self::subject::Subject;

use self::subject::{Rule, Traffic};

/// Looks at all objects of files together.
#[must_use]
pub fn check(objects: &[Written]) -> Vec<Diagnostic> {
    let files = Around::of_files(objects);
    let mut said = Vec::new();
    for object in objects {
        let lines = &object.lines;
        let about = About {
            key: &object.key,
            origin: &object.origin,
            lines: Some(lines),
        };
        if let Some(subject) = Subject::read(&object.key, &object.content) {
            said.extend(files.look(&subject, about));
        }
        let kind = object.key.kind();
        let is_mesh_policy =
            (kind.group(), kind.as_str()) == ("authentication.istio.io", "MeshPolicy");
        if is_mesh_policy && object.key.name() != "default" {
            let message = "a MeshPolicy is ignored unless it is called default";
            said.push(about.finding(Severity::Error, "metadata.name", message));
        }
    }
    said
}

/// Which object it is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'o> {
    pub(crate) key: &'o ObjectKey,
    pub(crate) origin: &'o Origin,
    pub(crate) lines: Option<&'o FieldLines>,
}

impl About<'_> {
    fn finding(self, severity: Severity, field: &str, message: impl Into<String>) -> Diagnostic {
        let line = self.lines.and_then(|lines| lines.line(field));
        let origin = self.origin.at_line(line);
        Diagnostic::new(severity, &origin, Some(self.key), message).field(field)
    }

    fn warning(self, field: &str, message: impl Into<String>) -> Diagnostic {
        self.finding(Severity::Warning, field, message)
    }
}

impl Around {
    /// What there is to say of one object beside these.
    pub(crate) fn look(&self, subject: &Subject, about: About<'_>) -> Vec<Diagnostic> {
        let mut said = Vec::new();
        match subject {
            Subject::VirtualService(traffic) => {
                self.shared_host(traffic, about, &mut said);
                self.left_mesh(traffic, about, &mut said);
                self.unbound(traffic, about, &mut said);
                routes(traffic, about, &mut said);
                for (field, host) in &traffic.destinations {
                    self.known_host(host, field, about, &mut said);
                }
            }
            Subject::DestinationRule(rule) => self.destination_rule(rule, about, &mut said),
        }
        said
    }

    /// Two owners of one host at one gateway (or in the mesh).
    fn shared_host(&self, traffic: &Traffic, about: About<'_>, said: &mut Vec<Diagnostic>) {
        let own = about.key.namespace();
        let bindings = traffic.bindings(own);
        for (index, host) in traffic.hosts.iter().enumerate() {
            let host = self.full(host, own);
            for other in self.owners(&host) {
                // In the mesh more is at stake: one of them counts for nothing.
                let mut common = bindings.intersection(&other.bindings);
                let common = common.clone().find(|one| *one == MESH).or(common.next());
                let (true, Some(common)) = (other.key != *about.key, common) else {
                    continue;
                };
                let theirs = other.key.namespace();
                let of_host = self.namespace_of(&host);
                let counts = if common != MESH {
                    "their routes are taken together, those of the older object first".to_owned()
                } else if own == theirs || of_host.is_none() {
                    "only one of them takes effect, merge them".to_owned()
                } else if of_host == Some(theirs) {
                    format!("clients outside of namespace {own} get its routes, and not these")
                } else {
                    format!("clients of namespace {theirs} get its routes, and not these")
                };
                let message = format!(
                    "{} has the host {host} at {common} too; {counts}",
                    other.said
                );
                said.push(about.warning(&format!("spec.hosts[{index}]"), message));
            }
        }
    }

    /// A gateway in `gateways` takes the routes out of the mesh.
    fn left_mesh(&self, traffic: &Traffic, about: About<'_>, said: &mut Vec<Diagnostic>) {
        if traffic.bindings(about.key.namespace()).contains(MESH) {
            return;
        }
        for host in &traffic.hosts {
            if let Some(service) = self.hosts.get(&self.full(host, about.key.namespace())) {
                let message = format!(
                    "the routes apply at these gateways only; pods that call {} do not get them. Add mesh to the list if they should",
                    service.said
                );
                said.push(about.warning("spec.gateways", message));
            }
        }
    }

    /// A gateway that serves none of the hosts, or that is not there.
    fn unbound(&self, traffic: &Traffic, about: About<'_>, said: &mut Vec<Diagnostic>) {
        let own = about.key.namespace();
        for (index, name) in traffic.gateways.iter().enumerate() {
            if name == MESH {
                continue;
            }
            let field = format!("spec.gateways[{index}]");
            let (namespace, name) = match name.split_once('/') {
                Some((".", name)) => (own, name),
                Some(both) => both,
                None => (own, name.as_str()),
            };
            let key = (namespace.to_owned(), name.to_owned());
            let Some(gateway) = self.gateways.get(&key) else {
                if self.is_all {
                    let message = format!("not bound: there is no Gateway {namespace}/{name}");
                    said.push(about.warning(&field, message));
                }
                continue;
            };
            let binds = |host: &str| {
                gateway.hosts.iter().any(|one| {
                    let (of, one) = one.split_once('/').unwrap_or(("*", one));
                    let of = if of == "." { namespace } else { of };
                    (of == "*" || of == own) && overlap(one, host)
                })
            };
            if !traffic.hosts.is_empty() && !traffic.hosts.iter().any(|host| binds(host)) {
                let message = format!(
                    "not bound: {} serves {}, none of this object's hosts",
                    gateway.said,
                    gateway.hosts.join(", ")
                );
                said.push(about.warning(&field, message));
            }
        }
    }

    fn destination_rule(&self, rule: &Rule, about: About<'_>, said: &mut Vec<Diagnostic>) {
        if !self.known_host(&rule.host, "spec.host", about, said) {
            return;
        }
        let full = self.full(&rule.host, about.key.namespace());
        let Some(service) = self.hosts.get(&full) else {
            return;
        };
        let pods = self.pods.iter();
        let behind = pods.filter(|(of, labels)| {
            *of == service.namespace && around::selects(&service.selector, labels)
        });
        let behind: Vec<_> = behind.map(|(_, labels)| labels).collect();
        if behind.is_empty() {
            return;
        }
        for (index, (name, labels)) in rule.subsets.iter().enumerate() {
            if !behind.iter().any(|pod| around::selects(labels, pod)) {
                let message = format!(
                    "no pod {} that {} selects has the labels of subset {name:?}; connections to it fail",
                    self.of_place(),
                    service.said,
                );
                let field = format!("spec.subsets[{index}].labels");
                said.push(about.warning(&field, message));
            }
        }
    }

    /// Says that nothing has a host, where that can be known. Whether it may exist.
    fn known_host(
        &self,
        host: &str,
        field: &str,
        about: About<'_>,
        said: &mut Vec<Diagnostic>,
    ) -> bool {
        let name = self.full(host, about.key.namespace());
        let Some(of) = self.namespace_of(&name) else {
            return true;
        };
        let is_known = self.is_all || self.namespaces.contains(of);
        if !is_known || host.contains('*') || self.hosts.contains_key(&name) {
            return true;
        }
        let service = name.split('.').next().unwrap_or_default();
        let message = if self.is_all {
            format!("there is no Service {of}/{service}; the host is ignored until there is one")
        } else {
            format!(
                "no Service {of}/{service} is in these files, which have others of that namespace; the host is ignored where it does not exist"
            )
        };
        said.push(about.warning(field, message));
        false
    }
}

/// Routes that nothing reaches, and requests that no route takes.
fn routes(traffic: &Traffic, about: About<'_>, said: &mut Vec<Diagnostic>) {
    let Some(first) = traffic.takes_all else {
        if traffic.routes > 0 {
            let message = "no route takes what matches none of these: such requests get 404. Add a last route without match if they should not";
            said.push(about.warning("spec.http", message));
        }
        return;
    };
    for index in first + 1..traffic.routes {
        let message = format!(
            "nothing reaches this route: spec.http[{first}] takes every request, and the first that matches counts"
        );
        said.push(about.warning(&format!("spec.http[{index}]"), message));
    }
}

/// Whether there is a host that both patterns mean.
fn overlap(one: &str, other: &str) -> bool {
    let covers = |pattern: &str, host: &str| {
        pattern == "*"
            || pattern == host
            || pattern
                .strip_prefix('*')
                .is_some_and(|suffix| host.ends_with(suffix))
    };
    covers(one, other) || covers(other, one)
}

/// The gateway that stands for all clients in the mesh.
const MESH: &str = "mesh";

#[cfg(test)]
mod tests;
