//! Which pods and namespaces belong to the mesh, on disk for the CNI plugin: it decides by that while no agent runs, also
//! after a reboot.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;

use crate::mesh::WantedPods;

/// The file, as the plugin reads it.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Known {
    /// Namespaces whose pods belong to the mesh if nothing else is known of them.
    namespaces: Vec<String>,
    /// The pods of this node, `namespace/name`, and whether they belong to the mesh.
    pods: BTreeMap<String, bool>,
}

/// Writes the file at every change, once the controller has said which namespaces there are.
pub(super) async fn keep(
    state_dir: PathBuf,
    mut namespaces: watch::Receiver<Option<Vec<String>>>,
    mut wanted: watch::Receiver<Arc<WantedPods>>,
) {
    let path = state_dir.join(FILE);
    let mut written = None;
    loop {
        let known = known(&namespaces.borrow_and_update(), &wanted.borrow_and_update());
        if let Some(known) = known
            && written.as_ref() != Some(&known)
        {
            match write(&path, &known) {
                Ok(()) => written = Some(known),
                Err(error) => {
                    tracing::warn!(
                        error,
                        "pods that start while no agent runs are judged by what was known before"
                    );
                }
            }
            // What comes together is written together.
            tokio::time::sleep(SETTLE).await;
        }
        let changed = tokio::select! {
            changed = namespaces.changed() => changed,
            changed = wanted.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn known(namespaces: &Option<Vec<String>>, wanted: &WantedPods) -> Option<Known> {
    let pods = wanted.iter();
    Some(Known {
        namespaces: namespaces.clone()?,
        pods: pods
            .map(|(name, wanted)| (format!("{}/{}", name.namespace, name.name), wanted.capture))
            .collect(),
    })
}

fn write(path: &Path, known: &Known) -> Result<(), String> {
    let bytes = serde_json::to_vec(known).map_err(|error| error.to_string())?;
    runtime::file::atomic_write(path, &bytes).map_err(|error| crate::host::describe(&error))
}

/// Beside the last good configuration: a reboot keeps both.
const FILE: &str = "mesh.json";
const SETTLE: Duration = Duration::from_millis(100);
