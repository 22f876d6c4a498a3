//! What a controller would say of manifests, and what is legal and surely not meant, without a cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use manifest::{Diagnostic, ObjectKey, Upsert, Written, written};

use crate::diagnostics::Diagnostics;
use crate::index::{Index, MeshConfig};
use crate::lint;
use crate::memory::{Memory, content};

/// Something that manifests are in.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A text that somebody has read already.
    Text {
        /// What findings call it.
        name: Arc<str>,
        /// The text.
        text: String,
    },
}

/// What there is to say.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// All findings, by file and line.
    pub findings: Vec<Diagnostic>,
    /// Objects that were read.
    pub objects: usize,
}

/// Reads all places as the folder source of a controller reads its files, as if nothing else were in the mesh and
/// nothing had been good before.
#[must_use]
pub fn validate(places: &[Place], mesh: MeshConfig) -> Said {
    let mut memory = Memory::new(&mesh.root_namespace);
    let mut diagnostics = Diagnostics::default();
    let mut objects: BTreeMap<ObjectKey, Arc<Upsert>> = BTreeMap::new();
    let mut raw: Vec<Written> = Vec::new();
    let mut count = 0;
    for place in places {
        let batch = match place {
            Place::File(path) => {
                let name: Arc<str> = path.display().to_string().into();
                let bytes = content(path).unwrap_or_default();
                raw.extend(written(
                    &name,
                    &String::from_utf8(bytes).unwrap_or_default(),
                ));
                memory.read_path(&name, path)
            }
            Place::Text { name, text } => {
                raw.extend(written(name, text));
                memory.read_text(name, text)
            }
        };
        count = batch.objects;
        for upsert in batch.upserts {
            objects.insert(upsert.object.key(), upsert);
        }
        for key in &batch.removals {
            objects.remove(key);
        }
        diagnostics.replace_source(batch.diagnostics.unwrap_or_default());
    }
    let mut index = Index::new(mesh);
    for upsert in objects.values() {
        index.apply(upsert);
    }
    for (key, found) in index.flush().diagnostics {
        diagnostics.replace_object(&key, found);
    }
    let mut findings = diagnostics.all();
    findings.extend(lint::check(&raw));
    findings.sort();
    Said {
        findings,
        objects: count,
    }
}
