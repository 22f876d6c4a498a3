//! What is wrong with the configuration, for the person who wrote it: one sentence with file, line and field.

use std::fmt;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::object::{ObjectKey, ObjectKind, Origin};

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
    /// Where.
    #[serde(flatten)]
    pub origin: Origin,
    /// Kind of the object, if it could be read.
    #[serde(flatten, serialize_with = "group_and_kind")]
    pub kind: Option<ObjectKind>,
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
            origin: origin.clone(),
            kind: key.map(|key| key.kind().clone()),
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

/// As the fields `group` and `kind`, empty when the kind could not be read.
fn group_and_kind<S: Serializer>(kind: &Option<ObjectKind>, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(2))?;
    let kind = kind.as_ref();
    map.serialize_entry("group", kind.map_or("", ObjectKind::group))?;
    map.serialize_entry("kind", kind.map_or("", ObjectKind::as_str))?;
    map.end()
}

/// `shop.yaml:12: error: AuthorizationPolicy shop/guard: spec.action: ...`
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.origin, self.severity.as_str())?;
        if let Some(kind) = &self.kind {
            match (self.namespace.as_str(), self.name.as_str()) {
                ("", "") => write!(f, "{kind}: ")?,
                ("", name) => write!(f, "{kind} {name}: ")?,
                (namespace, name) => write!(f, "{kind} {namespace}/{name}: ")?,
            }
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
