//! One document of a file as objects and findings. A document that is wrong says so and yields what is left to know
//! of it: the key, so that its last good version can stay, and for policies a refusal on their scope.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_api::ObjectMeta;
use serde::Deserialize;

use crate::diagnostic::{Diagnostic, Severity};
use crate::document::{Document, split};
use crate::fields::{FieldError, Surplus, read};
use crate::lines::FieldLines;
use crate::object::{Kind, Object, ObjectKey, ObjectKind, Origin, PolicyKind, Upsert};
use crate::pod::{POD_IPS, WEIGHT};
use crate::suggest::closest;
use crate::tree::{self, Node};
use crate::{names, validate};

mod broken;
mod from_server;

pub use from_server::read_object;

/// What a document, or one item of a list in it, turned out to be.
#[derive(Clone, Debug)]
pub enum Claim {
    /// An object in good order.
    Good(Box<Upsert>),
    /// An object that is broken; its last good version should stay.
    Broken {
        /// Who it is, if that can be read.
        key: Option<ObjectKey>,
        /// What to do when there is no last good version.
        fallback: Option<Box<Upsert>>,
        /// Where it is.
        origin: Origin,
    },
    /// An object of a kind that is not read; known so that two of one name are noticed.
    Foreign {
        /// Who it is.
        key: ObjectKey,
        /// Where it is.
        origin: Origin,
    },
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Its objects, in their order.
    pub claims: Vec<Claim>,
    /// What there is to say about them and about what is none.
    pub findings: Vec<Diagnostic>,
}

/// Reads the text of `file`, many documents of YAML or JSON, for a mesh whose root namespace is `root_namespace`.
pub fn read_file(file: &Arc<str>, text: &str, root_namespace: &str) -> Decoded {
    let mut decoded = Decoded::default();
    for piece in split(text) {
        document(file, piece, root_namespace, &mut decoded);
    }
    decoded
}

/// Reads one document of `file`.
fn document(file: &Arc<str>, document: Document<'_>, root_namespace: &str, into: &mut Decoded) {
    match parse(document) {
        Ok(nodes) => {
            for node in &nodes {
                Reader::new(Place::File(file), root_namespace, into).item(node);
            }
        }
        Err(error) => broken::unparsable(file, document, &error, into),
    }
}

/// Parses, and outlives a parser that does not: what is written in one document must not stop another.
pub(crate) fn parse(document: Document<'_>) -> Result<Vec<Node>, tree::SyntaxError> {
    let parsing = std::panic::catch_unwind(|| tree::parse(document.text, document.line));
    parsing.unwrap_or_else(|_panic| {
        let message = "not valid YAML: the parser failed on it".to_owned();
        Err(tree::SyntaxError {
            line: document.line,
            message,
        })
    })
}

/// Where what is read was written.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// In this file.
    File(&'a Arc<str>),
    /// In an API server.
    Object(&'a Origin),
}

/// Reads items: decides which kind each is, and collects findings about it.
struct Reader<'a> {
    place: Place<'a>,
    root_namespace: &'a str,
    into: &'a mut Decoded,
    key: Option<ObjectKey>,
    kind: Option<ObjectKind>,
    failed: bool,
}

impl<'a> Reader<'a> {
    fn new(place: Place<'a>, root_namespace: &'a str, into: &'a mut Decoded) -> Self {
        Self {
            place,
            root_namespace,
            into,
            key: None,
            kind: None,
            failed: false,
        }
    }

    fn origin(&self, line: usize) -> Origin {
        match self.place {
            Place::File(file) => Origin::file(Arc::clone(file), line),
            Place::Object(origin) => origin.clone(),
        }
    }

    fn say(&mut self, severity: Severity, line: usize, field: &str, message: impl Into<String>) {
        self.failed |= severity == Severity::Error;
        let mut finding =
            Diagnostic::new(severity, &self.origin(line), self.key.as_ref(), message).field(field);
        if finding.kind.is_none() {
            finding.kind.clone_from(&self.kind);
        }
        self.into.findings.push(finding);
    }

    fn broken(&mut self, line: usize, fallback: Option<Box<Upsert>>) {
        let origin = self.origin(line);
        self.into.claims.push(Claim::Broken {
            key: self.key.clone(),
            fallback,
            origin,
        });
    }

    fn item(mut self, node: &Node) {
        if node.is_null() {
            return;
        }
        if !node.is_mapping() {
            let message = format!(
                "a document must be an object with apiVersion, kind and metadata; this one is {} and is ignored",
                node.shape()
            );
            return self.say(Severity::Warning, node.line, "", message);
        }
        let (Some(api_version), Some(kind)) =
            (self.word(node, "apiVersion"), self.word(node, "kind"))
        else {
            return self.broken(node.line, None);
        };
        let of = ObjectKind::of(group_of(api_version), kind);
        self.kind = Some(of.clone());
        if kind.ends_with("List") && node.get("items").is_some() {
            for item in node.get("items").map(Node::items).unwrap_or_default() {
                Reader::new(self.place, self.root_namespace, self.into).item(item);
            }
            return;
        }
        match of {
            ObjectKind::Known(kind) => self.known(node, kind, api_version),
            ObjectKind::Foreign { .. } => match meant_policy(group_of(api_version), kind) {
                Some(meant) => self.misspelt(node, api_version, kind, meant.kind()),
                None => self.foreign(node, api_version, of),
            },
        }
    }

    /// The string at a top-level key, or a finding that says what is there instead.
    fn word<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        match node.get(key) {
            Some(value) if value.text().is_some_and(|text| !text.is_empty()) => value.text(),
            Some(value) => {
                self.say(
                    Severity::Error,
                    value.line,
                    key,
                    format!("must be a string, is {}", value.shape()),
                );
                None
            }
            None => {
                let alike = node
                    .entries()
                    .iter()
                    .find(|entry| entry.key.eq_ignore_ascii_case(key));
                let (line, message) = match alike {
                    Some(entry) => (
                        entry.line,
                        format!("unknown field {}, did you mean {key}", entry.key),
                    ),
                    None => (
                        node.line,
                        format!(
                            "{key} is missing; every object needs apiVersion, kind and metadata.name"
                        ),
                    ),
                };
                self.say(Severity::Error, line, key, message);
                None
            }
        }
    }

    /// A policy under a wrong name is no policy that nobody asked for: it refuses like any that cannot be read.
    fn misspelt(mut self, node: &Node, api_version: &str, kind: &str, meant: Kind) {
        let of = ObjectKind::Known(meant);
        let namespace = namespace_for(&of, metadata_text(node, "namespace"));
        self.key = metadata_text(node, "name").map(|name| ObjectKey::of(of, namespace, name));
        let right = format!("{}/{}", meant.group(), meant.versions()[0]);
        let (field, message) = if kind == meant.as_str() {
            let message = format!("{api_version} has no {kind}, did you mean {right}");
            ("apiVersion", message)
        } else {
            let meant = meant.as_str();
            let message =
                format!("unknown kind {kind} ({api_version}), did you mean {meant} ({right})");
            ("kind", message)
        };
        let line = node.entry(field).map_or(node.line, |entry| entry.line);
        self.say(Severity::Error, line, field, message);
        self.refusing(node);
    }

    fn foreign(mut self, node: &Node, api_version: &str, kind: ObjectKind) {
        let namespace = namespace_for(&kind, metadata_text(node, "namespace"));
        let name = metadata_text(node, "name");
        self.key = name.map(|name| ObjectKey::of(kind.clone(), namespace, name));
        self.metadata(node, None);
        let message = format!("kind {kind} ({api_version}) is not supported yet; ignored");
        self.say(Severity::Info, node.line, "", message);
        let origin = self.origin(node.line);
        if let Some(key) = self.key.take() {
            self.into.claims.push(Claim::Foreign { key, origin });
        }
    }

    /// Checks metadata alone, for kinds whose own type is not known.
    fn metadata(&mut self, node: &Node, kind: Option<Kind>) {
        let Some(metadata) = node
            .get("metadata")
            .filter(|metadata| metadata.is_mapping())
        else {
            return self.say(
                Severity::Error,
                node.line,
                "metadata",
                "metadata is missing; every object needs metadata.name",
            );
        };
        let (result, surplus) = read(metadata, |fields| ObjectMeta::deserialize(fields).map(drop));
        for Surplus {
            line,
            field,
            message,
        } in surplus
        {
            let message = message
                .replace(" field ", " field metadata.")
                .replace("mean ", "mean metadata.");
            self.say(Severity::Error, line, &format!("metadata.{field}"), message);
        }
        if let Err(FieldError {
            line,
            field,
            message,
        }) = result
        {
            self.say(Severity::Error, line, &format!("metadata.{field}"), message);
        }
        self.name(node, kind);
    }

    /// Checks that there is a name and that it is one. A misspelt `name` has been reported already.
    fn name(&mut self, node: &Node, kind: Option<Kind>) {
        let metadata = node.get("metadata");
        match metadata_text(node, "name") {
            Some(name) => {
                if let Some(problem) = names::problem(kind, name) {
                    let line = metadata
                        .and_then(|m| m.entry("name"))
                        .map_or(node.line, |entry| entry.line);
                    self.say(Severity::Error, line, "metadata.name", problem);
                }
            }
            None if self.failed => {}
            None => {
                let line = node.entry("metadata").map_or(node.line, |entry| entry.line);
                let message = if metadata.is_some_and(|m| m.get("generateName").is_some()) {
                    "metadata.name is missing; generateName works only through the Kubernetes API"
                } else {
                    "metadata.name is missing"
                };
                self.say(Severity::Error, line, "metadata.name", message);
            }
        }
    }

    fn known(mut self, node: &Node, kind: Kind, api_version: &str) {
        let of = ObjectKind::Known(kind);
        let namespace = namespace_for(&of, metadata_text(node, "namespace"));
        self.key = metadata_text(node, "name").map(|name| ObjectKey::of(of, namespace, name));
        let version = api_version.rsplit('/').next().unwrap_or_default();
        if !kind.versions().contains(&version) {
            let wanted = [kind.group(), kind.versions()[0]].join("/");
            let message = format!(
                "{api_version} is not served; write {}",
                wanted.trim_start_matches('/')
            );
            self.say(
                Severity::Error,
                node.entry("apiVersion").map_or(node.line, |e| e.line),
                "apiVersion",
                message,
            );
        }
        let object = self.typed(node, kind, namespace);
        if let (Some(object), false) = (object, self.failed) {
            let lines = if kind.is_exact() {
                FieldLines::of(node)
            } else {
                FieldLines::default()
            };
            let origin = self.origin(node.line);
            let upsert = Upsert {
                object,
                origin,
                lines,
            };
            return self.into.claims.push(Claim::Good(Box::new(upsert)));
        }
        self.refusing(node);
    }

    /// The object cannot be read: its last good version stays, or it refuses if it is a policy.
    fn refusing(&mut self, node: &Node) {
        let first = self
            .into
            .findings
            .iter()
            .rev()
            .find(|d| d.severity == Severity::Error)
            .cloned();
        let fallback = self
            .key
            .as_ref()
            .zip(first)
            .and_then(|(key, first)| broken::fallback(key, broken::selector(node), &first));
        self.broken(node.line, fallback);
    }

    fn typed(&mut self, node: &Node, kind: Kind, namespace: &str) -> Option<Object> {
        let authorship = self.origin(node.line).authorship();
        let mut wish = Cow::Borrowed(node);
        if !authorship.has_status()
            && node.get("status").is_some()
            && let tree::Value::Mapping(entries) = &mut wish.to_mut().value
        {
            entries.retain(|entry| entry.key != "status");
        }
        let (result, surplus) = read(&wish, |fields| Object::decode(kind, authorship, fields));
        let nameless = metadata_text(node, "name").is_none();
        for Surplus {
            line,
            field,
            message,
        } in surplus
        {
            let about_name = nameless && message.ends_with("did you mean metadata.name");
            let severity = if kind.is_exact() || about_name {
                Severity::Error
            } else {
                Severity::Warning
            };
            self.say(severity, line, &field, message);
        }
        let mut object = match result {
            Ok(object) => object,
            Err(FieldError {
                line,
                field,
                message,
            }) => {
                self.say(Severity::Error, line, &field, message);
                return None;
            }
        };
        self.name(node, Some(kind));
        object.set_namespace(namespace);
        if kind == Kind::Pod {
            self.pod_addresses(node);
            self.pod_weight(node);
        }
        if self.failed {
            // What follows from a lost field would only distract.
            return Some(object);
        }
        let problems = validate::object(&object, authorship, self.root_namespace);
        let lines = if problems.is_empty() {
            FieldLines::default()
        } else {
            FieldLines::of(node)
        };
        for problem in problems {
            let line = lines.line(&problem.field).unwrap_or(node.line);
            self.say(problem.severity, line, &problem.field, problem.message);
        }
        Some(object)
    }

    /// Checks the addresses that a pod's annotation lists; in a cluster they are in the status.
    fn pod_addresses(&mut self, node: &Node) {
        let annotations = node
            .get("metadata")
            .and_then(|metadata| metadata.get("annotations"));
        let Some(entry) = annotations.and_then(|annotations| annotations.entry(POD_IPS)) else {
            return;
        };
        let words = entry
            .value
            .text()
            .unwrap_or_default()
            .split(',')
            .map(str::trim);
        for word in words.filter(|word| !word.is_empty() && word.parse::<IpAddr>().is_err()) {
            let field = format!("metadata.annotations[{POD_IPS:?}]");
            let message =
                format!("{word:?} is not an IP address; write for example 10.244.1.10,fd00::10");
            self.say(Severity::Error, entry.line, &field, message);
        }
    }

    /// Checks the weight that a pod's annotation gives it.
    fn pod_weight(&mut self, node: &Node) {
        let annotations = node
            .get("metadata")
            .and_then(|metadata| metadata.get("annotations"));
        let Some(entry) = annotations.and_then(|annotations| annotations.entry(WEIGHT)) else {
            return;
        };
        let text = entry.value.text().unwrap_or_default();
        if text.parse::<u32>().is_err() {
            let field = format!("metadata.annotations[{WEIGHT:?}]");
            let message = format!("{text:?} is not a whole number; write for example \"3\"");
            self.say(Severity::Error, entry.line, &field, message);
        }
    }
}

/// The kind of policy that an unknown kind was most likely meant to be. Policies of other projects have groups of their
/// own.
fn meant_policy(group: &str, kind: &str) -> Option<PolicyKind> {
    let names = PolicyKind::ALL.map(|policy| policy.kind().as_str());
    let name = closest(kind, &names)?;
    let meant = PolicyKind::ALL
        .into_iter()
        .find(|policy| policy.kind().as_str() == name)?;
    let is_close = closest(group, &[meant.kind().group()]).is_some();
    let is_istios = group == "istio.io" || group.ends_with(".istio.io");
    (is_close || is_istios || !group.contains('.')).then_some(meant)
}

pub(crate) fn metadata_text<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    node.get("metadata")?
        .get(key)?
        .text()
        .filter(|text| !text.is_empty())
}

pub(crate) fn group_of(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// The namespace of an object whose manifest says `written`. Kinds that are not read count as namespaced.
pub(crate) fn namespace_for<'w>(kind: &ObjectKind, written: Option<&'w str>) -> &'w str {
    match kind {
        ObjectKind::Known(kind) if !kind.is_namespaced() => "",
        ObjectKind::Known(_) | ObjectKind::Foreign { .. } => written.unwrap_or(DEFAULT_NAMESPACE),
    }
}

/// Istio's label that sends traffic through a waypoint of this name; `none` leaves it out.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Where objects without a namespace go, as with `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

#[cfg(test)]
mod tests;
