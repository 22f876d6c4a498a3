//! Where configuration comes from: a source reports objects that appeared, changed or went, and what is wrong with the
//! rest. It decides nothing about the mesh.

pub mod folder;
pub mod kubernetes;

use std::future::Future;
use std::sync::Arc;

use manifest::{Diagnostic, ObjectKey, Upsert};
use tokio::sync::mpsc;

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
}

/// Something that configuration can be read from.
pub trait Source: Send + 'static {
    /// Sends batches until the receiver is gone.
    fn run(self, batches: mpsc::Sender<Batch>) -> impl Future<Output = ()> + Send;
}
