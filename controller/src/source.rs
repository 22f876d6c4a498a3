//! Where configuration comes from: a source reports objects that appeared, changed or went, and what is wrong with the
//! rest. It decides nothing about the mesh.

pub(crate) mod decode;
pub(crate) mod document;
pub(crate) mod fields;
pub mod folder;
mod names;
mod suggest;
pub(crate) mod tree;
mod validate;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::diagnostics::Diagnostic;
use crate::object::{Object, ObjectKey, Origin};

/// A new or changed object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Upsert {
    /// The object.
    pub object: Object,
    /// Its place.
    pub origin: Origin,
    /// The lines of its fields, for kinds whose fields are reported on later; else empty.
    pub lines: FieldLines,
}

/// What changed since the batch before. The first batch of a source is its whole content.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// New and changed objects.
    pub upserts: Vec<Arc<Upsert>>,
    /// Objects that are gone.
    pub removals: Vec<ObjectKey>,
    /// How many objects the source has now.
    pub objects: usize,
    /// Everything the source has to say at this moment, old and new; `None` when nothing changed.
    pub diagnostics: Option<Vec<Diagnostic>>,
}

/// Something that configuration can be read from.
pub trait Source: Send + 'static {
    /// Sends batches until the receiver is gone.
    fn run(self, batches: mpsc::Sender<Batch>) -> impl Future<Output = ()> + Send;
}

/// Field path to 1-based line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldLines(BTreeMap<String, usize>);

impl FieldLines {
    /// Every field of a tree.
    pub(crate) fn of(node: &tree::Node) -> Self {
        let mut lines = Self::default();
        lines.collect(node, String::new());
        lines
    }

    /// The line of `field`, or of the nearest field around it.
    pub fn line(&self, field: &str) -> Option<usize> {
        let mut field = field;
        loop {
            if let Some(line) = self.0.get(field) {
                return Some(*line);
            }
            let cut = field.rfind(['.', '['])?;
            field = field.get(..cut)?;
        }
    }

    fn collect(&mut self, node: &tree::Node, path: String) {
        for entry in node.entries() {
            let mut path = path.clone();
            fields::push_key(&mut path, &entry.key);
            self.0.insert(path.clone(), entry.line);
            self.collect(&entry.value, path);
        }
        for (index, item) in node.items().iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.0.insert(path.clone(), item.line);
            self.collect(item, path);
        }
    }
}
