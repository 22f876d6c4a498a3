//! What `cargo xtask fuzz` gives arbitrary bytes to. It is compiled for that only.

use std::sync::Arc;

use manifest::{Claim, read_file};

use compile::index::{Index, MeshConfig};

pub use crate::serve::subscriptions;

/// Reads a file of manifests and puts what is good in it, or refuses in place of it, into effect.
pub fn manifests(text: &str) {
    let index = index(text);
    let _served = index.snapshot();
}

/// The mesh that a file describes.
pub(crate) fn index(text: &str) -> Index {
    let config = MeshConfig::default();
    let file = Arc::from("fuzz.yaml");
    let decoded = read_file(&file, text, &config.root_namespace);
    let mut index = Index::new(config);
    for claim in &decoded.claims {
        match claim {
            Claim::Good(upsert) => index.apply(upsert),
            Claim::Broken {
                fallback: Some(fallback),
                ..
            } => index.apply(fallback),
            _ => {}
        }
    }
    index
}
