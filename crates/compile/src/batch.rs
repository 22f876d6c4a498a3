//! What a source of objects has to say at one time.

use std::collections::BTreeMap;
use std::sync::Arc;

use manifest::{Diagnostic, NamespacedName, ObjectKey, Upsert};

/// What changed since the batch before. The first batch of a source is its whole content.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// New and changed objects.
    pub upserts: Vec<Arc<Upsert>>,
    /// Objects that are gone.
    pub removals: Vec<ObjectKey>,
    /// How many objects the source has now.
    pub objects: usize,
    /// How many files cannot be read of whose objects nothing is known.
    pub unread: usize,
    /// Everything the source has to say at this moment, old and new; `None` when nothing changed.
    pub diagnostics: Option<Vec<Diagnostic>>,
    /// Every Secret that is asked for and cannot be read, with the reason; `None` when nothing changed.
    pub unreadable: Option<BTreeMap<NamespacedName, String>>,
}
