//! Kubernetes `Ingress` and `IngressClass`.
//!
//! A rule that cannot be carried out is left out, with an error on its field. Which Service port a name means is not known
//! here: [`Target`] waits for it.

use std::sync::Arc;

use k8s_api::ingress::{IngressBackend, IngressRule, IngressTls};
use k8s_api::{Ingress, IngressClass, ObjectMeta};
use l7::route::{Match, PathMatch};
use l7::{HostPattern, Kind, Origin};
use manifest::NamespacedName;

use super::notes::Notes;
use crate::index::authorization::Note;

/// `spec.controller` of classes that are ours.
pub(crate) const CONTROLLER: &str = "keelson.io/ingress-controller";

/// What an `Ingress` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    /// The name of its class, if it has one.
    pub(crate) class: Option<Arc<str>>,
    /// For which hosts TLS ends, and with which Secrets, in their order.
    pub(crate) tls: Vec<Tls>,
    /// The hosts of its rules, also of those without paths.
    pub(crate) hosts: Vec<HostPattern>,
    /// Its rules, in their order; the default backend last.
    pub(crate) rules: Vec<Path>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

/// Hosts for which TLS ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tls {
    /// Where it is written.
    pub(crate) field: String,
    /// The hosts.
    pub(crate) hosts: Vec<HostPattern>,
    /// The Secret, of the Ingress's namespace.
    pub(crate) secret: NamespacedName,
}

/// A path of a host, and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path {
    /// Where it is written.
    pub(crate) field: String,
    /// The host; `None` is the default backend, for what no rule takes.
    pub(crate) host: Option<HostPattern>,
    /// The condition on the path.
    pub(crate) condition: Match,
    /// Where to.
    pub(crate) target: Target,
    /// The object, with the field as the rule's name.
    pub(crate) origin: Origin,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// The Service.
    pub(crate) service: NamespacedName,
    /// Its port.
    pub(crate) port: Port,
}

/// A port of a Service, as an Ingress writes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Port {
    /// By number.
    Number(u16),
    /// By name.
    Named(Arc<str>),
}

/// An `IngressClass`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Class {
    /// The Gateway that serves it, or why there is none; `None` for a class of another controller.
    pub(crate) gateway: Option<Result<NamespacedName, String>>,
    /// Whether it is for Ingresses that name no class.
    pub(crate) is_default: bool,
}

/// Reads a class.
pub(crate) fn class(object: &IngressClass) -> Class {
    let spec = &object.spec;
    let gateway = match &spec.parameters {
        None => Err("has no spec.parameters, which name the Gateway that serves it".to_owned()),
        Some(to) if (&*to.api_group, &*to.kind) != (manifest::Kind::Gateway.group(), "Gateway") => {
            Err(format!(
                "spec.parameters: {:?} of {:?} is not supported; a Gateway of {} is",
                to.kind,
                to.api_group,
                manifest::Kind::Gateway.group()
            ))
        }
        Some(to) if to.scope != "Namespace" || to.namespace.is_empty() || to.name.is_empty() => {
            Err(
                "spec.parameters: scope: Namespace, namespace and name have to say which Gateway"
                    .to_owned(),
            )
        }
        Some(to) => Ok(NamespacedName::new(&to.namespace, &to.name)),
    };
    Class {
        gateway: (spec.controller == CONTROLLER).then_some(gateway),
        is_default: annotation(&object.metadata, DEFAULT_CLASS) == Some("true"),
    }
}

/// Compiles one `Ingress`.
pub(crate) fn compile(object: &Ingress) -> Compiled {
    let key = NamespacedName::of(&object.metadata);
    let spec = &object.spec;
    let mut read = Reading {
        key: &key,
        notes: Notes::default(),
        hosts: Vec::new(),
        rules: Vec::new(),
    };
    read.annotations(&object.metadata);
    for (index, rule) in spec.rules.iter().enumerate() {
        read.rule(&format!("spec.rules[{index}]"), rule);
    }
    if let Some(backend) = &spec.default_backend {
        read.path("spec.defaultBackend", None, Match::default(), backend);
    } else if spec.rules.is_empty() {
        let message = "without rules and without a default backend it serves nothing";
        read.notes.error("spec", message);
    }
    let tls = spec.tls.iter().enumerate();
    let tls = tls.filter_map(|(index, tls)| read.tls(&format!("spec.tls[{index}]"), tls));
    let tls = tls.collect();
    let named = Some(spec.ingress_class_name.as_str()).filter(|name| !name.is_empty());
    let class = named.or_else(|| annotation(&object.metadata, OLD_CLASS));
    Compiled {
        class: class.map(Arc::from),
        tls,
        hosts: read.hosts,
        rules: read.rules,
        notes: read.notes.0,
    }
}

struct Reading<'k> {
    key: &'k NamespacedName,
    notes: Notes,
    hosts: Vec<HostPattern>,
    rules: Vec<Path>,
}

impl Reading<'_> {
    /// What other controllers are told by annotations is not done here.
    fn annotations(&mut self, metadata: &ObjectMeta) {
        let all = metadata.annotations.iter().flatten();
        let foreign = all.filter(|(name, _)| name.contains(".ingress.kubernetes.io/"));
        for (name, _) in foreign {
            let field = format!("metadata.annotations.{name}");
            self.notes.warning(field, "has no effect here");
        }
    }

    fn rule(&mut self, field: &str, rule: &IngressRule) {
        let Some(host) = self.host(&format!("{field}.host"), &rule.host) else {
            return;
        };
        self.hosts.push(host.clone());
        // Without paths the default backend is meant, which is for every host of the object.
        let Some(http) = &rule.http else {
            return;
        };
        for (index, path) in http.paths.iter().enumerate() {
            let field = format!("{field}.http.paths[{index}]");
            if let Some(condition) = self.condition(&field, &path.path, &path.path_type) {
                let condition = Match {
                    path: condition,
                    ..Match::default()
                };
                self.path(&field, Some(host.clone()), condition, &path.backend);
            }
        }
    }

    fn path(
        &mut self,
        field: &str,
        host: Option<HostPattern>,
        condition: Match,
        backend: &IngressBackend,
    ) {
        let below = match host {
            Some(_) => format!("{field}.backend"),
            None => field.to_owned(),
        };
        let Some(target) = self.target(&below, backend) else {
            return;
        };
        let origin = Origin {
            kind: Kind::Ingress,
            namespace: Arc::clone(&self.key.namespace),
            name: Arc::clone(&self.key.name),
            rule: u32::try_from(self.rules.len()).unwrap_or(u32::MAX),
            rule_name: Some(field.into()),
        };
        self.rules.push(Path {
            field: field.to_owned(),
            host,
            condition,
            target,
            origin,
        });
    }

    fn condition(&mut self, field: &str, path: &str, path_type: &str) -> Option<PathMatch> {
        if !(path.starts_with('/') || path.is_empty() && path_type == "ImplementationSpecific") {
            let message = format!("{path:?} does not begin with /: it is left out");
            self.notes.error(format!("{field}.path"), message);
            return None;
        }
        match path_type {
            "Exact" => Some(PathMatch::Exact(path.into())),
            // Element by element; a slash at the end changes nothing.
            "Prefix" | "ImplementationSpecific" => {
                Some(PathMatch::Segments(path.trim_end_matches('/').into()))
            }
            other => {
                let message = format!(
                    "{other:?} is not supported; Exact, Prefix and ImplementationSpecific are"
                );
                self.notes.error(format!("{field}.pathType"), message);
                None
            }
        }
    }

    fn target(&mut self, field: &str, backend: &IngressBackend) -> Option<Target> {
        let Some(service) = &backend.service else {
            let message = match &backend.resource {
                Some(_) => "is not supported; a Service is",
                None => "names no Service",
            };
            let part = if backend.resource.is_some() {
                ".resource"
            } else {
                ""
            };
            self.notes.error(format!("{field}{part}"), message);
            return None;
        };
        let port = match (&*service.port.name, service.port.number) {
            ("", 0) => {
                let message = "neither has a name nor a number";
                self.notes.error(format!("{field}.service.port"), message);
                return None;
            }
            ("", number) => Port::Number(number),
            (name, 0) => Port::Named(name.into()),
            _ => {
                let message = "has a name and a number; one of them is enough";
                self.notes.error(format!("{field}.service.port"), message);
                return None;
            }
        };
        Some(Target {
            service: NamespacedName::new(&self.key.namespace, &service.name),
            port,
        })
    }

    fn tls(&mut self, field: &str, tls: &IngressTls) -> Option<Tls> {
        if tls.secret_name.is_empty() {
            let message = "is missing: what the Gateway's own listeners have counts";
            self.notes.warning(format!("{field}.secretName"), message);
            return None;
        }
        let hosts: Vec<HostPattern> = match tls.hosts.as_slice() {
            [] => vec![HostPattern::Any],
            hosts => {
                let hosts = hosts.iter().enumerate();
                hosts
                    .filter_map(|(index, host)| self.host(&format!("{field}.hosts[{index}]"), host))
                    .collect()
            }
        };
        Some(Tls {
            field: field.to_owned(),
            hosts,
            secret: NamespacedName::new(&self.key.namespace, &tls.secret_name),
        })
    }

    /// A host; a wildcard is one label, and the first.
    fn host(&mut self, field: &str, host: &str) -> Option<HostPattern> {
        let host = host.to_ascii_lowercase();
        let rest = host.strip_prefix("*.").unwrap_or(&host);
        let is_label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        match (&*host, rest.split('.').all(is_label)) {
            ("", _) => Some(HostPattern::Any),
            (_, false) => {
                let message = format!("{host:?} is no name of a host: it is left out");
                self.notes.error(field, message);
                None
            }
            (name, true) if name.len() == rest.len() => Some(HostPattern::Exact(name.into())),
            _ => Some(HostPattern::Label(format!(".{rest}").into())),
        }
    }
}

fn annotation<'m>(metadata: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    let found = metadata.annotations.as_ref()?.get(name)?;
    Some(found.as_str()).filter(|text| !text.is_empty())
}

/// Says that a class is for Ingresses that name none.
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Names a class, in objects that are older than `spec.ingressClassName`.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";
