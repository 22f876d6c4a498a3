//! What is legal in Istio's traffic objects and surely not meant, as far as files tell.
//!
//! Who brings them along hears of what is known to go wrong with them: two owners
//! of one host, routes that nothing reaches, hosts and subsets that are nowhere. Only what the files themselves
//! contradict is said: a host that is in no file may be in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use manifest::{Diagnostic, Severity, Written};
use serde_json::Value;

/// Looks at all objects together.
#[must_use]
pub fn check(objects: &[Written]) -> Vec<Diagnostic> {
    let files = Files::of(objects);
    let mut said = Vec::new();
    for object in objects {
        match (object.key.kind().group(), object.key.kind().as_str()) {
            ("networking.istio.io", "VirtualService") => {
                files.virtual_service(object, &mut said);
            }
            ("networking.istio.io", "DestinationRule") => {
                files.destination_rule(object, &mut said);
            }
            ("authentication.istio.io", "MeshPolicy") if object.key.name() != "default" => {
                let message = "a MeshPolicy is ignored unless it is called default";
                say(&mut said, object, Severity::Error, "metadata.name", message);
            }
            _ => {}
        }
    }
    said
}

/// What the files have of the kinds that others refer to.
struct Files<'o> {
    /// Full host names, with the object that they come from.
    hosts: BTreeMap<String, &'o Written>,
    /// Namespaces of which the files have Services.
    namespaces: BTreeSet<&'o str>,
    gateways: BTreeMap<(&'o str, &'o str), &'o Written>,
    virtual_services: Vec<&'o Written>,
    /// Namespace and labels of every pod and pod template.
    pods: Vec<(&'o str, &'o Value)>,
}

impl<'o> Files<'o> {
    fn of(objects: &'o [Written]) -> Self {
        let mut files = Self {
            hosts: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            gateways: BTreeMap::new(),
            virtual_services: Vec::new(),
            pods: Vec::new(),
        };
        for object in objects {
            let (namespace, name) = (object.key.namespace(), object.key.name());
            let kind = object.key.kind();
            match (kind.group(), kind.as_str()) {
                ("", "Service") => {
                    files.hosts.insert(full(name, namespace), object);
                    files.namespaces.insert(namespace);
                }
                ("networking.istio.io", "ServiceEntry") => {
                    for (_, host) in texts(object, "spec.hosts") {
                        files.hosts.insert(host.to_owned(), object);
                    }
                }
                ("networking.istio.io", "Gateway") => {
                    files.gateways.insert((namespace, name), object);
                }
                ("networking.istio.io", "VirtualService") => files.virtual_services.push(object),
                ("", "Pod") => files.pods.push((namespace, at(object, "/metadata/labels"))),
                ("apps", _) => {
                    let labels = at(object, "/spec/template/metadata/labels");
                    files.pods.push((namespace, labels));
                }
                _ => {}
            }
        }
        files
    }

    fn virtual_service(&self, object: &Written, said: &mut Vec<Diagnostic>) {
        self.shared_host(object, said);
        self.left_mesh(object, said);
        self.unbound(object, said);
        routes(object, said);
        let namespace = object.key.namespace();
        for kind in ["http", "tls", "tcp"] {
            for (i, route) in list(object, &format!("/spec/{kind}")).iter().enumerate() {
                for (j, one) in items(route, "route").iter().enumerate() {
                    let host = text(one, "/destination/host");
                    let field = format!("spec.{kind}[{i}].route[{j}].destination.host");
                    self.known_host(object, namespace, host, &field, said);
                }
            }
        }
    }

    /// Two owners of one host at one gateway (or in the mesh).
    fn shared_host(&self, object: &Written, said: &mut Vec<Diagnostic>) {
        for (field, host) in texts(object, "spec.hosts") {
            let host = full(host, object.key.namespace());
            for other in &self.virtual_services {
                let is_other = other.key != object.key;
                let mut hosts = texts(other, "spec.hosts").into_iter();
                let same_host = hosts.any(|(_, one)| full(one, other.key.namespace()) == host);
                let common = bindings(object)
                    .intersection(&bindings(other))
                    .next()
                    .cloned();
                if let (true, true, Some(common)) = (is_other, same_host, common) {
                    let message = format!(
                        "{} ({}) has the host {host} at {common} too; only one of them takes effect, merge them",
                        other.key, other.origin
                    );
                    say(said, object, Severity::Warning, &field, message);
                }
            }
        }
    }

    /// A gateway in `gateways` takes the routes out of the mesh.
    fn left_mesh(&self, object: &Written, said: &mut Vec<Diagnostic>) {
        let gateways = texts(object, "spec.gateways");
        if gateways.is_empty() || gateways.iter().any(|(_, name)| *name == "mesh") {
            return;
        }
        for (_, host) in texts(object, "spec.hosts") {
            if let Some(service) = self.hosts.get(&full(host, object.key.namespace())) {
                let message = format!(
                    "the routes apply at these gateways only; pods that call {} do not get them. Add mesh to the list if they should",
                    service.key
                );
                say(said, object, Severity::Warning, "spec.gateways", message);
            }
        }
    }

    /// A gateway of the files that serves none of the hosts.
    fn unbound(&self, object: &Written, said: &mut Vec<Diagnostic>) {
        let own = object.key.namespace();
        for (field, name) in texts(object, "spec.gateways") {
            let key = name.split_once('/').unwrap_or((own, name));
            let Some(gateway) = self.gateways.get(&key) else {
                continue;
            };
            let mut served = Vec::new();
            for i in 0..list(gateway, "/spec/servers").len() {
                let hosts = texts(gateway, &format!("spec.servers[{i}].hosts"));
                served.extend(hosts.into_iter().map(|(_, host)| host));
            }
            let hosts = texts(object, "spec.hosts");
            let binds = |host: &str| {
                served.iter().any(|one| {
                    let (namespace, one) = one.split_once('/').unwrap_or(("*", one));
                    let namespace = if namespace == "." {
                        gateway.key.namespace()
                    } else {
                        namespace
                    };
                    (namespace == "*" || namespace == own) && overlap(one, host)
                })
            };
            if !hosts.is_empty() && !hosts.iter().any(|(_, host)| binds(host)) {
                let message = format!(
                    "not bound: {} ({}) serves {}, none of this object's hosts",
                    gateway.key,
                    gateway.origin,
                    served.join(", ")
                );
                say(said, object, Severity::Warning, &field, message);
            }
        }
    }

    fn destination_rule(&self, object: &Written, said: &mut Vec<Diagnostic>) {
        let namespace = object.key.namespace();
        let host = text(object.content.get("spec").unwrap_or(&Value::Null), "/host");
        if !self.known_host(object, namespace, host, "spec.host", said) {
            return;
        }
        let Some(service) = self.hosts.get(&full(host, namespace)) else {
            return;
        };
        let selector = at(service, "/spec/selector");
        let behind: Vec<&Value> = self
            .pods
            .iter()
            .filter(|(of, labels)| *of == service.key.namespace() && selects(selector, labels))
            .map(|(_, labels)| *labels)
            .collect();
        if behind.is_empty() {
            return;
        }
        for (i, subset) in list(object, "/spec/subsets").iter().enumerate() {
            let labels = subset.get("labels").unwrap_or(&Value::Null);
            if !behind.iter().any(|pod| selects(labels, pod)) {
                let message = format!(
                    "no pod of these files that {} selects has the labels of subset {:?}; connections to it fail",
                    service.key,
                    text(subset, "/name")
                );
                let field = format!("spec.subsets[{i}].labels");
                say(said, object, Severity::Warning, &field, message);
            }
        }
    }

    /// Says that nothing has a host, where the files have Services of its namespace. Whether it may exist.
    fn known_host(
        &self,
        object: &Written,
        namespace: &str,
        host: &str,
        field: &str,
        said: &mut Vec<Diagnostic>,
    ) -> bool {
        let name = full(host, namespace);
        let of = name
            .strip_suffix(CLUSTER)
            .and_then(|name| name.split_once('.'))
            .map(|(_, namespace)| namespace);
        let Some(of) = of.filter(|of| self.namespaces.contains(of)) else {
            return true;
        };
        if host.contains('*') || self.hosts.contains_key(&name) {
            return true;
        }
        let message = format!(
            "no Service {of}/{} is in these files, which have others of that namespace; the host is ignored where it does not exist",
            name.split('.').next().unwrap_or_default()
        );
        say(said, object, Severity::Warning, field, message);
        false
    }
}

/// Routes that nothing reaches, and requests that no route takes.
fn routes(object: &Written, said: &mut Vec<Diagnostic>) {
    let routes = list(object, "/spec/http");
    let takes_all = |route: &Value| {
        let matches = items(route, "match");
        matches.is_empty() || matches.iter().any(is_everything)
    };
    let Some(first) = routes.iter().position(takes_all) else {
        if !routes.is_empty() {
            let message = "no route takes what matches none of these: such requests get 404. Add a last route without match if they should not";
            say(said, object, Severity::Warning, "spec.http", message);
        }
        return;
    };
    for i in first + 1..routes.len() {
        let message = format!(
            "nothing reaches this route: spec.http[{first}] takes every request, and the first that matches counts"
        );
        say(
            said,
            object,
            Severity::Warning,
            &format!("spec.http[{i}]"),
            message,
        );
    }
}

/// A match without conditions, or with the prefix of every path alone.
fn is_everything(one: &Value) -> bool {
    let conditions = one.as_object().map_or(0, |conditions| {
        conditions.keys().filter(|key| *key != "name").count()
    });
    conditions == 0 || (conditions == 1 && text(one, "/uri/prefix") == "/")
}

/// Where an object's routes apply; in the mesh if it does not say.
fn bindings(object: &Written) -> BTreeSet<String> {
    let gateways = texts(object, "spec.gateways");
    if gateways.is_empty() {
        return BTreeSet::from(["mesh".to_owned()]);
    }
    let own = object.key.namespace();
    let name = |name: &str| match name {
        "mesh" => name.to_owned(),
        _ if name.contains('/') => format!("gateway {name}"),
        _ => format!("gateway {own}/{name}"),
    };
    gateways.iter().map(|(_, gateway)| name(gateway)).collect()
}

/// A short host name means a Service of the object's own namespace.
fn full(host: &str, namespace: &str) -> String {
    let parts: Vec<&str> = host.split('.').collect();
    match parts.as_slice() {
        [name] if *name != "*" => format!("{name}.{namespace}{CLUSTER}"),
        [_, _, "svc"] => format!("{host}.cluster.local"),
        _ => host.to_owned(),
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

fn selects(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|wanted| {
        !wanted.is_empty()
            && wanted
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    })
}

fn say(
    said: &mut Vec<Diagnostic>,
    object: &Written,
    severity: Severity,
    field: &str,
    message: impl Into<String>,
) {
    let origin = object.origin.at_line(object.lines.line(field));
    said.push(Diagnostic::new(severity, &origin, Some(&object.key), message).field(field));
}

/// The strings of a list, with the path of each.
fn texts<'o>(object: &'o Written, path: &str) -> Vec<(String, &'o str)> {
    let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
    let items = list(object, &pointer).iter().enumerate();
    items
        .filter_map(|(i, item)| Some((format!("{path}[{i}]"), item.as_str()?)))
        .collect()
}

fn list<'o>(object: &'o Written, pointer: &str) -> &'o [Value] {
    at(object, pointer).as_array().map_or(&[], Vec::as_slice)
}

fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    let items = value.get(key).and_then(Value::as_array);
    items.map_or(&[], Vec::as_slice)
}

fn at<'o>(object: &'o Written, pointer: &str) -> &'o Value {
    object.content.pointer(pointer).unwrap_or(&Value::Null)
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

const CLUSTER: &str = ".svc.cluster.local";

#[cfg(test)]
mod tests;
