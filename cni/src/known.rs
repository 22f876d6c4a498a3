//! Who belongs to the mesh, as far as the agent of this node knew when it ran last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

/// Whether a pod has to wait for an agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// It is none of the mesh's.
    No,
    /// It is, or nobody can say that it is not: why.
    Yes(String),
}

#[derive(Debug, Deserialize)]
struct Known {
    /// Namespaces whose pods belong to the mesh if nothing else is known of them.
    namespaces: BTreeSet<String>,
    /// Pods that this node had, and whether they belonged to the mesh.
    pods: BTreeMap<String, bool>,
}

/// Judges by the agent's file.
pub(crate) fn belongs(file: &Path, namespace: &str, name: &str) -> Belongs {
    let read = std::fs::read(file).map_err(|error| error.to_string());
    let known = read
        .and_then(|text| serde_json::from_slice::<Known>(&text).map_err(|error| error.to_string()));
    let known = match known {
        Ok(known) => known,
        Err(error) => {
            return Belongs::Yes(format!(
                "nobody else can say whether the pod belongs to the mesh ({}: {error})",
                file.display()
            ));
        }
    };
    match known.pods.get(&format!("{namespace}/{name}")) {
        Some(true) => Belongs::Yes("the pod belongs to the mesh".to_owned()),
        Some(false) => Belongs::No,
        None if known.namespaces.contains(namespace) => {
            Belongs::Yes(format!("namespace {namespace} belongs to the mesh"))
        }
        None => Belongs::No,
    }
}
