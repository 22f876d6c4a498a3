//! Where configuration comes from: a source reports objects that appeared, changed or went, and what is wrong with the
//! rest. It decides nothing about the mesh.

pub mod folder;
pub mod kubernetes;

use std::future::Future;

pub use compile::Batch;
use tokio::sync::mpsc;

/// Something that configuration can be read from.
pub trait Source: Send + 'static {
    /// Sends batches until the receiver is gone.
    fn run(self, batches: mpsc::Sender<Batch>) -> impl Future<Output = ()> + Send;
}
