//! The last good objects on disk: one JSON object a line, so that a controller that starts while a manifest is broken
//! or unreadable still serves what it served before.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manifest::{FieldLines, Kind, Object, Origin, Upsert};
use runtime::file::{PRIVATE, WriteError, atomic_write_mode};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Why the last good objects could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// An object has no JSON form.
    #[error("cannot encode the last good objects")]
    Encode(#[from] serde_json::Error),
    /// The file cannot be written.
    #[error("cannot save the last good objects")]
    Write(#[from] WriteError),
}

/// Why the last good objects could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the last good objects from {path}")]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Line<O> {
    origin: Origin,
    /// `None` in files of versions that read no two kinds of one name.
    group: Option<String>,
    kind: String,
    object: O,
}

/// Writes `objects` over whatever is at `path`.
///
/// # Errors
/// From the file system.
pub(super) fn save(path: &Path, objects: &[Arc<Upsert>]) -> Result<(), SaveError> {
    let mut text = Vec::new();
    for upsert in objects {
        let key = upsert.object.key();
        let line = Line {
            origin: upsert.origin.clone(),
            group: Some(key.kind().group().to_owned()),
            kind: key.kind().as_str().to_owned(),
            object: &upsert.object,
        };
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    Ok(atomic_write_mode(path, &text, PRIVATE)?)
}

/// Reads what an earlier run saved; nothing when there is no file. Lines that mean nothing any more are skipped.
///
/// # Errors
/// From the file system.
pub fn load(path: &Path) -> Result<Vec<Upsert>, LoadError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(LoadError {
                path: path.to_owned(),
                source,
            });
        }
    };
    let read = |line| {
        decode(line).inspect_err(|error| warn!(file = %path.display(), %error, "skipping a last good object that cannot be read")).ok()
    };
    Ok(text.lines().filter_map(read).flatten().collect())
}

fn decode(line: &str) -> serde_json::Result<Option<Upsert>> {
    let Line {
        origin,
        group,
        kind,
        object,
    } = serde_json::from_str::<Line<serde_json::Value>>(line)?;
    let known = match group {
        Some(group) => Kind::find(&group, &kind),
        None => Kind::ALL.into_iter().find(|known| known.as_str() == kind),
    };
    let Some(kind) = known else {
        return Ok(None);
    };
    let object = Object::from_json(kind, &origin, object)?;
    Ok(Some(Upsert {
        object,
        origin,
        lines: FieldLines::default(),
    }))
}

#[cfg(test)]
mod tests {
    use compile::memory::Memory;

    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {action: DENY, rules: [{}]}\n";

    #[test]
    fn a_start_with_broken_files_serves_what_was_good_before() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("writes");
        };
        write("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
        write(
            "gone.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: gone}\n",
        );
        let mut before = Memory::new("istio-system");
        before.scan(dir.path());
        let saved = dir.path().join("saved");
        save(&saved, &before.last_good()).expect("saves");
        write(
            "a.yaml",
            &format!("{NAMESPACE}---\n{}", POLICY.replace("DENY", "DENI")),
        );
        std::fs::remove_file(dir.path().join("gone.yaml")).expect("removes");

        let loaded = load(&saved).expect("loads");
        assert_eq!(loaded.len(), 3);
        let mut after = Memory::new("istio-system").with_last_good(loaded);
        let mut changes = Vec::new();
        let mut findings = Vec::new();
        loop {
            let scan = after.scan(dir.path());
            changes.extend(
                scan.batch
                    .upserts
                    .iter()
                    .map(|u| format!("+{} {}", u.object.key(), u.origin)),
            );
            changes.extend(scan.batch.removals.iter().map(|key| format!("-{key}")));
            findings.extend(scan.batch.diagnostics.into_iter().flatten());
            if !scan.unconfirmed {
                break;
            }
        }
        changes.sort();
        // What went while nobody looked is confirmed by a second look, like everything.
        assert_eq!(
            changes,
            [
                "+AuthorizationPolicy a/p a.yaml:5",
                "+Namespace a a.yaml:1",
                "+Namespace gone gone.yaml:1",
                "-Namespace gone"
            ]
        );
        let stays = "the last good version stays in effect";
        assert!(
            findings.iter().any(|found| found.message.contains(stays)),
            "{findings:?}"
        );
    }

    #[test]
    fn a_line_is_read_by_group_and_kind_and_an_old_one_by_kind_alone() {
        let line = |group: &str, kind: &str| {
            format!(
                r#"{{"origin":{{"file":"a.yaml","line":3}},{group}"kind":"{kind}","object":{{"metadata":{{"name":"a"}}}}}}"#
            )
        };
        let read = |group: &str, kind: &str| {
            let decoded = decode(&line(group, kind)).expect("it is JSON");
            decoded.map(|upsert| format!("{} {}", upsert.object.key(), upsert.origin))
        };
        let namespace = Some("Namespace a a.yaml:3".to_owned());
        assert_eq!(read("", "Namespace"), namespace);
        assert_eq!(read(r#""group":"","#, "Namespace"), namespace);
        assert_eq!(read(r#""group":"projectcalico.org","#, "Namespace"), None);
        assert_eq!(read("", "Unheard"), None);
    }
}
