//! What the client holds of each resource: its name, its version, and where its content is. Content that is on
//! disk is not in memory as well.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use runtime::file::WriteError;

use crate::snapshot::{self, Encoder, Stored};

/// All resources by type and name.
#[derive(Debug, Default)]
pub(super) struct Kept {
    types: Types,
    /// The snapshot that contents are in.
    file: Option<Arc<File>>,
}

/// Texts are shared with the copies that writes work on.
type Types = BTreeMap<String, BTreeMap<Arc<str>, Entry>>;

#[derive(Clone, Debug)]
struct Entry {
    /// `None` if a newer version was rejected.
    version: Option<Arc<str>>,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is empty, or nobody will ask for it.
    Nothing,
    /// Not written yet. In a box, for nearly all are written.
    Memory(Box<Bytes>),
    /// In the snapshot.
    File { offset: u64, length: u32 },
}

/// Everything as it was when a write began.
pub(super) struct Copy {
    types: Types,
    file: Option<Arc<File>>,
}

impl Kept {
    /// Takes over what was read from the snapshot, but for the resources that are not used.
    pub(super) fn restore(&mut self, type_url: &str, resources: BTreeMap<String, Stored>) -> usize {
        let kept = self.types.entry(type_url.to_owned()).or_default();
        for (name, stored) in resources {
            let content = Content::of(stored.bytes);
            let version = stored.version.map(Arc::from);
            kept.insert(name.into(), Entry { version, content });
        }
        kept.len()
    }

    pub(super) fn set(&mut self, type_url: &str, name: Arc<str>, version: &str, bytes: Bytes) {
        let entry = Entry {
            version: Some(version.into()),
            content: Content::of(bytes),
        };
        let of = self.of(type_url);
        // A map keeps the name that it has, and others have this one.
        of.remove(&name);
        of.insert(name, entry);
    }

    pub(super) fn remove(&mut self, type_url: &str, name: &str) {
        self.of(type_url).remove(name);
    }

    /// Its newest version was rejected: the content stays, and the controller is to send it again.
    pub(super) fn reject(&mut self, type_url: &str, name: &str) {
        if let Some(entry) = self.of(type_url).get_mut(name) {
            entry.version = None;
        }
    }

    pub(super) fn count(&mut self, type_url: &str) -> usize {
        self.of(type_url).len()
    }

    /// Names with versions, for a controller that is to send the rest.
    pub(super) fn versions(&self, type_url: &str) -> impl Iterator<Item = (String, String)> {
        let kept = self.types.get(type_url).into_iter().flatten();
        kept.filter_map(|(name, entry)| {
            Some((name.to_string(), entry.version.as_deref()?.to_owned()))
        })
    }

    pub(super) fn copy(&self) -> Copy {
        Copy {
            types: self.types.clone(),
            file: self.file.clone(),
        }
    }

    /// The copy is on disk: what has not changed since then is not needed in memory.
    pub(super) fn written(&mut self, copy: &Copy, file: File, places: &[Content]) {
        let written = copy.types.iter().flat_map(|(type_url, resources)| {
            let of = move |(name, entry)| (type_url, name, entry);
            resources.iter().map(of)
        });
        for ((type_url, name, written), place) in written.zip(places) {
            let entry = self.types.get_mut(type_url).and_then(|of| of.get_mut(name));
            if let Some(entry) = entry
                && entry.content == written.content
            {
                entry.content = place.clone();
            }
        }
        self.file = Some(Arc::new(file));
    }

    fn of(&mut self, type_url: &str) -> &mut BTreeMap<Arc<str>, Entry> {
        if !self.types.contains_key(type_url) {
            self.types.insert(type_url.to_owned(), BTreeMap::new());
        }
        self.types.entry(type_url.to_owned()).or_default()
    }
}

impl Content {
    fn of(bytes: Bytes) -> Self {
        match bytes.is_empty() {
            true => Self::Nothing,
            false => Self::Memory(bytes.into()),
        }
    }
}

impl Copy {
    /// Writes the snapshot, and gives the file with the places of contents in it, in order.
    pub(super) fn write(
        &self,
        path: &Path,
        node: &str,
    ) -> Result<(File, Vec<Content>), WriteError> {
        let at = |step| {
            move |source| WriteError {
                path: path.to_owned(),
                step,
                source,
            }
        };
        let mut out = Encoder::new(node, self.types.len());
        let mut places = Vec::new();
        for (type_url, resources) in &self.types {
            out.begin(type_url, resources.len());
            for (name, entry) in resources {
                let bytes = self.read(&entry.content);
                let bytes = bytes.map_err(at("read the snapshot before"))?;
                let offset = out.resource(name, entry.version.as_deref(), &bytes);
                // The snapshot has it in as many bits.
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                places.push(Content::File { offset, length });
            }
        }
        snapshot::write(path, &out.finish())?;
        let file = File::open(path).map_err(at("open the snapshot"))?;
        Ok((file, places))
    }

    fn read(&self, content: &Content) -> std::io::Result<Bytes> {
        match (content, &self.file) {
            (Content::Nothing, _) => Ok(Bytes::new()),
            (Content::Memory(bytes), _) => Ok(Bytes::clone(bytes)),
            (Content::File { offset, length }, Some(file)) => {
                let mut bytes = vec![0; usize::try_from(*length).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, *offset)?;
                Ok(bytes.into())
            }
            (Content::File { .. }, None) => Err(std::io::Error::other("there is none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_leave_memory_and_survive_further_writes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        let mut kept = Kept::default();
        let write = |kept: &mut Kept| {
            let copy = kept.copy();
            let (file, places) = copy.write(&path, "n").unwrap();
            kept.written(&copy, file, &places);
        };
        kept.set("t", "a".into(), "1", Bytes::from_static(b"one"));
        kept.set("t", "b".into(), "1", Bytes::from_static(b"two"));
        write(&mut kept);
        let in_memory = |kept: &Kept| {
            let entries = kept.types.values().flat_map(BTreeMap::values);
            entries
                .filter(|entry| matches!(entry.content, Content::Memory(_)))
                .count()
        };
        assert_eq!(in_memory(&kept), 0);

        // A change while a write is under way is not taken for written.
        let copy = kept.copy();
        let (file, places) = copy.write(&path, "n").unwrap();
        kept.set("t", "b".into(), "2", Bytes::from_static(b"three"));
        kept.written(&copy, file, &places);
        assert_eq!(in_memory(&kept), 1);

        // Somebody else replaced the file: ours is still there to copy from.
        std::fs::remove_file(&path).unwrap();
        kept.reject("t", "a");
        write(&mut kept);
        let read = snapshot::read(&path, "n").unwrap().unwrap();
        let of = |name: &str| {
            let stored = read["t"][name].clone();
            (stored.version, stored.bytes)
        };
        assert_eq!(of("a"), (None, Bytes::from_static(b"one")));
        assert_eq!(
            of("b"),
            (Some("2".to_owned()), Bytes::from_static(b"three"))
        );
    }
}
