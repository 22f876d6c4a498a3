//! What is wrong with the configuration, for the person who wrote it: one sentence with file, line and field.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::object::{ObjectKey, Origin};

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; the object does what it says, or is not for this controller.
    Info,
    /// In effect, though perhaps not as its author thinks.
    Warning,
    /// Not in effect as written.
    Error,
}

impl Severity {
    /// The word used in logs, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding about one place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The file, relative to the manifests folder.
    pub file: Arc<str>,
    /// 1-based line in the file; 0 when the whole file is meant.
    pub line: usize,
    /// Kind of the object, empty when it could not be read.
    pub kind: String,
    /// Namespace of the object, empty when it has none or could not be read.
    pub namespace: String,
    /// Name of the object, empty when it could not be read.
    pub name: String,
    /// Path of the field, such as `spec.rules[0].from[0].source.principals`.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Diagnostic {
    /// A finding at `origin` about the object `key`.
    pub fn new(
        severity: Severity,
        origin: &Origin,
        key: Option<&ObjectKey>,
        message: impl Into<String>,
    ) -> Self {
        let part = |f: fn(&ObjectKey) -> &str| key.map(f).unwrap_or_default().to_owned();
        Self {
            file: Arc::clone(&origin.file),
            line: origin.line,
            kind: part(|key| key.kind()),
            namespace: part(|key| key.namespace()),
            name: part(|key| key.name()),
            field: String::new(),
            severity,
            message: message.into(),
        }
    }

    /// The same finding about a particular field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }
}

/// `shop.yaml:12: error: AuthorizationPolicy shop/guard: spec.action: ...`
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}: ", self.severity.as_str())?;
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") if self.kind.is_empty() => {}
            ("", "") => write!(f, "{}: ", self.kind)?,
            ("", name) => write!(f, "{} {name}: ", self.kind)?,
            (namespace, name) => write!(f, "{} {namespace}/{name}: ", self.kind)?,
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Every current finding: what the source said about files, what the index said about objects.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    source: Vec<Diagnostic>,
    index: BTreeMap<ObjectKey, Vec<Diagnostic>>,
}

impl Diagnostics {
    /// Replaces the findings of the source and returns those that are new.
    pub fn replace_source(&mut self, mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
        found.sort();
        found.dedup();
        let known = std::mem::take(&mut self.source);
        let new = found
            .iter()
            .filter(|d| known.binary_search(d).is_err())
            .cloned()
            .collect();
        self.source = found;
        new
    }

    /// Replaces the findings of the index about one object and returns those that are new.
    pub fn replace_object(&mut self, key: &ObjectKey, found: Vec<Diagnostic>) -> Vec<Diagnostic> {
        let known = self.index.remove(key).unwrap_or_default();
        let new = found
            .iter()
            .filter(|d| !known.contains(d))
            .cloned()
            .collect();
        if !found.is_empty() {
            self.index.insert(key.clone(), found);
        }
        new
    }

    /// All findings, by file and line.
    pub fn all(&self) -> Vec<Diagnostic> {
        let mut all: Vec<_> = self
            .source
            .iter()
            .chain(self.index.values().flatten())
            .cloned()
            .collect();
        all.sort();
        all
    }

    /// How many findings have this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let all = self.source.iter().chain(self.index.values().flatten());
        all.filter(|d| d.severity == severity).count()
    }
}
