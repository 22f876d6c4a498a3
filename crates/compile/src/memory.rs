//! What is known of each file: its objects with their last good versions. Compares the folder with it, synchronously.
//!
//! A broken document never takes an object away, and above all no policy. What becomes of an object:
//!
//! | what a scan finds | the object | what is said |
//! |---|---|---|
//! | a good document | as written | nothing |
//! | a document that names its object and is wrong otherwise | its last good version, from this file or from wherever it is in effect | the error, and that the last good version stays |
//! | the same, a policy that was never good | one that refuses everything on its scope (`is_fallback`) | that it refuses until it is repaired |
//! | a document of which not even the name can be read | none; every object that the file had and does not list now stays, as it may be that one | the error, at each of them |
//! | the file has become unreadable: no text, too large, a FIFO | all that it had stay | the error |
//! | the file lacks an object, and all documents are good | stays until a later scan, which removes it: an editor may be in the midst of writing ([`Memory::remove_after`]) | nothing |
//! | the file is gone | the same, for all of its objects | nothing |
//! | two places define it | the last one by file name and position | the others have no effect |
//! | the folder cannot be read | everything stays | the error |
//!
//! What is sent on is the winner of each object's places. An object that refuses for want of a good version is
//! sent, but not kept over a restart ([`Memory::last_good`]): the next run finds the document itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manifest::{Claim, Decoded, Diagnostic, ObjectKey, Origin, Severity, Upsert, read_file};

use self::files::{Stamp, Unread, stamp};
use self::places::Places;
use crate::Batch;

mod files;
mod places;

pub(crate) use self::files::content;
pub use self::files::list;

/// The files of a folder as last read.
#[derive(Debug, Default)]
pub struct Memory {
    root_namespace: String,
    files: BTreeMap<Arc<str>, File>,
    /// Every place that defines an object, in the order of file names and positions: the last one counts.
    places: BTreeMap<ObjectKey, Places<Arc<Held>>>,
    /// What the receiver of the batches has.
    sent: BTreeMap<ObjectKey, Arc<Held>>,
    diagnostics: Vec<Diagnostic>,
    folder_error: Option<String>,
    remove_after: Duration,
}

/// The result of one comparison.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// What changed.
    pub batch: Batch,
    /// Objects are missing that were there before; another scan shortly after tells whether they are gone.
    pub unconfirmed: bool,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// Keys by position, of everything this file defines or defined last when it was in order.
    keys: Vec<(usize, ObjectKey)>,
    findings: Vec<Diagnostic>,
    /// Since when the file lacks objects that it had, until a later scan confirms it.
    shrinking: Option<Instant>,
    /// It cannot be read, and nothing of it was known before.
    is_unread: bool,
}

/// An object at a place.
#[derive(Debug, PartialEq)]
struct Held {
    /// `None` for kinds that are not read, which only count as duplicates.
    upsert: Option<Arc<Upsert>>,
    origin: Origin,
    /// A policy that refuses because it cannot be read: no last good version.
    is_fallback: bool,
}

impl File {
    /// Whether it has lacked objects for so long; the first look at which it lacks some begins to count.
    fn has_lacked_for(&mut self, time: Duration) -> bool {
        match self.shrinking {
            Some(since) => since.elapsed() >= time,
            None => {
                self.shrinking = Some(Instant::now());
                false
            }
        }
    }
}

impl Memory {
    /// Knows nothing yet.
    pub fn new(root_namespace: &str) -> Self {
        Self {
            root_namespace: root_namespace.to_owned(),
            ..Self::default()
        }
    }

    /// For how long an object must be missing until a scan removes it; without, the second scan that misses it does.
    #[must_use]
    pub fn remove_after(mut self, time: Duration) -> Self {
        self.remove_after = time;
        self
    }

    /// Adds objects that an earlier run knew, so that a file that is broken or unreadable now keeps them.
    #[must_use]
    pub fn with_last_good(mut self, objects: Vec<Upsert>) -> Self {
        for upsert in objects {
            // What is no file's is another source's business.
            let Origin::File { path, .. } = &upsert.origin else {
                continue;
            };
            let (key, name) = (upsert.object.key(), Arc::clone(path));
            let file = self.files.entry(Arc::clone(&name)).or_default();
            let position = file.keys.len();
            file.keys.push((position, key.clone()));
            let origin = upsert.origin.clone();
            let held = Held {
                upsert: Some(Arc::new(upsert)),
                origin,
                is_fallback: false,
            };
            self.places
                .entry(key)
                .or_default()
                .insert(name, position, Arc::new(held));
        }
        self
    }

    /// Whether no object is known.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The objects in effect that are good; a policy that refuses because it cannot be read is none.
    pub fn last_good(&self) -> Vec<Arc<Upsert>> {
        self.sent
            .values()
            .filter(|held| !held.is_fallback)
            .filter_map(|held| held.upsert.clone())
            .collect()
    }

    /// Reads what changed in `folder`.
    pub fn scan(&mut self, folder: &Path) -> Scan {
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut unconfirmed = false;
        match list(folder) {
            Ok(present) => {
                self.folder_error = None;
                let gone = self.files.keys().filter(|name| !present.contains(*name));
                let gone: Vec<_> = gone.cloned().collect();
                for name in &gone {
                    unconfirmed |= self.missing(name, &mut touched);
                }
                for name in &present {
                    unconfirmed |= self.read(&folder.join(&**name), name, &mut touched);
                }
            }
            // Everything known stays.
            Err(error) => {
                self.folder_error = Some(format!(
                    "the folder cannot be read: {error}; the last good configuration stays"
                ))
            }
        }
        if self.sent.is_empty() {
            touched.extend(self.places.keys().cloned());
        }
        let mut batch = self.resolve(touched);
        let diagnostics = self.findings(folder);
        if diagnostics != self.diagnostics {
            self.diagnostics.clone_from(&diagnostics);
            batch.diagnostics = Some(diagnostics);
        }
        Scan { batch, unconfirmed }
    }

    /// Reads a text as all that there is of the file `name`, for those who have no folder.
    pub fn read_text(&mut self, name: &Arc<str>, text: &str) -> Batch {
        let mut touched = BTreeSet::new();
        let decoded = read_file(name, text, &self.root_namespace);
        self.replace(name, decoded, &mut touched);
        self.all_said(touched)
    }

    /// Reads one file, which findings call `name`, for those who have no folder.
    pub fn read_path(&mut self, name: &Arc<str>, path: &Path) -> Batch {
        let mut touched = BTreeSet::new();
        self.read(path, name, &mut touched);
        self.all_said(touched)
    }

    fn all_said(&mut self, touched: BTreeSet<ObjectKey>) -> Batch {
        let mut batch = self.resolve(touched);
        batch.diagnostics = Some(self.findings(Path::new("")));
        batch
    }

    /// A file that is not there: gone at the second look.
    fn missing(&mut self, name: &Arc<str>, touched: &mut BTreeSet<ObjectKey>) -> bool {
        let Some(file) = self.files.get_mut(name) else {
            return false;
        };
        if !file.keys.is_empty() && !file.has_lacked_for(self.remove_after) {
            file.stamp = None;
            return true;
        }
        if let Some(file) = self.files.remove(name) {
            self.forget(name, file.keys, touched);
        }
        false
    }

    fn forget(
        &mut self,
        name: &Arc<str>,
        keys: Vec<(usize, ObjectKey)>,
        touched: &mut BTreeSet<ObjectKey>,
    ) {
        for (position, key) in keys {
            if let Some(places) = self.places.get_mut(&key) {
                places.remove(name, position);
                if places.is_empty() {
                    self.places.remove(&key);
                }
            }
            touched.insert(key);
        }
    }

    /// Reads a file if it changed. Returns whether it lacks objects that only a second look removes.
    fn read(&mut self, path: &Path, name: &Arc<str>, touched: &mut BTreeSet<ObjectKey>) -> bool {
        let file = self.files.entry(Arc::clone(name)).or_default();
        let stamp = stamp(path);
        if file.shrinking.is_none()
            && file.stamp.is_some()
            && file.stamp == stamp
            && stamp.is_some_and(|s| !s.racy)
        {
            return false;
        }
        file.stamp = stamp;
        let text = match content(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                let line = 1 + error
                    .as_bytes()
                    .iter()
                    .take(error.utf8_error().valid_up_to())
                    .filter(|b| **b == b'\n')
                    .count();
                return self.unreadable(name, line, "is not UTF-8 text");
            }
            Err(Unread::Absent) => return self.missing(name, touched),
            Err(Unread::Wrong(what)) => return self.unreadable(name, 0, &what),
        };
        let decoded = read_file(name, &text, &self.root_namespace);
        self.replace(name, decoded, touched)
    }

    /// A file that cannot be read as text keeps what it had.
    fn unreadable(&mut self, name: &Arc<str>, line: usize, what: &str) -> bool {
        let origin = Origin::file(Arc::clone(name), line);
        if let Some(file) = self.files.get_mut(name) {
            let rest = match file.keys.is_empty() {
                true => "nothing is known of its objects",
                false => "the last good version of its objects stays",
            };
            let message = format!("the file {what}; {rest}");
            file.shrinking = None;
            file.is_unread = file.keys.is_empty();
            file.findings = vec![Diagnostic::new(Severity::Error, &origin, None, message)];
        }
        false
    }

    fn replace(
        &mut self,
        name: &Arc<str>,
        decoded: Decoded,
        touched: &mut BTreeSet<ObjectKey>,
    ) -> bool {
        let Decoded {
            claims,
            mut findings,
        } = decoded;
        let mut file = self.files.remove(name).unwrap_or_default();
        let mut before: BTreeMap<ObjectKey, Arc<Held>> = BTreeMap::new();
        for (position, key) in &file.keys {
            let held = self
                .places
                .get(key)
                .and_then(|places| places.get(name, *position));
            if let Some(held) = held {
                before.insert(key.clone(), Arc::clone(held));
            }
        }
        let mut now: Vec<(ObjectKey, Arc<Held>)> = Vec::new();
        let mut anonymous = None;
        for claim in claims {
            match claim {
                Claim::Good(upsert) => {
                    let origin = upsert.origin.clone();
                    now.push((
                        upsert.object.key(),
                        Arc::new(Held {
                            upsert: Some(Arc::from(upsert)),
                            origin,
                            is_fallback: false,
                        }),
                    ));
                }
                Claim::Foreign { key, origin } => {
                    now.push((
                        key,
                        Arc::new(Held {
                            upsert: None,
                            origin,
                            is_fallback: false,
                        }),
                    ));
                }
                Claim::Broken {
                    key: None, origin, ..
                } => anonymous = Some(origin),
                Claim::Broken {
                    key: Some(key),
                    fallback,
                    origin,
                } => {
                    now.extend(keep(
                        &mut findings,
                        before.get(&key).or_else(|| self.sent.get(&key)),
                        key,
                        fallback,
                        &origin,
                    ));
                }
            }
        }
        let listed: BTreeSet<_> = now.iter().map(|(key, _)| key.clone()).collect();
        let lacking: Vec<_> = before
            .iter()
            .filter(|(key, held)| !listed.contains(*key) && held.upsert.is_some())
            .collect();
        let mut shrinking = None;
        if let (Some(origin), false) = (&anonymous, lacking.is_empty()) {
            // One of these may be what the broken document was.
            for (key, held) in lacking {
                let message =
                    "its document may be the one that cannot be read; the last good version stays";
                findings.push(Diagnostic::new(
                    Severity::Warning,
                    origin,
                    Some(key),
                    message,
                ));
                now.push((key.clone(), Arc::clone(held)));
            }
        } else if !lacking.is_empty() && !file.has_lacked_for(self.remove_after) {
            shrinking = file.shrinking;
            now.extend(
                lacking
                    .into_iter()
                    .map(|(key, held)| (key.clone(), Arc::clone(held))),
            );
        }
        self.forget(name, file.keys, touched);
        let mut keys = Vec::with_capacity(now.len());
        for (position, (key, held)) in now.into_iter().enumerate() {
            self.places
                .entry(key.clone())
                .or_default()
                .insert(Arc::clone(name), position, held);
            touched.insert(key.clone());
            keys.push((position, key));
        }
        self.files.insert(
            Arc::clone(name),
            File {
                stamp: file.stamp,
                keys,
                findings,
                shrinking,
                is_unread: false,
            },
        );
        shrinking.is_some()
    }

    /// Works out which of the touched objects changed for the receiver.
    fn resolve(&mut self, touched: BTreeSet<ObjectKey>) -> Batch {
        let mut batch = Batch::default();
        for key in touched {
            let winner = self
                .places
                .get(&key)
                .and_then(|places| places.last())
                .cloned();
            match winner.filter(|held| held.upsert.is_some()) {
                Some(held) => {
                    let known = self.sent.get(&key).is_some_and(|sent| *sent == held);
                    if let (false, Some(upsert)) = (known, &held.upsert) {
                        batch.upserts.push(Arc::clone(upsert));
                    }
                    self.sent.insert(key, held);
                }
                None => {
                    if self.sent.remove(&key).is_some() {
                        batch.removals.push(key);
                    }
                }
            }
        }
        batch.objects = self.sent.len();
        batch.unread = self.files.values().filter(|file| file.is_unread).count();
        batch
    }

    fn findings(&self, folder: &Path) -> Vec<Diagnostic> {
        let mut all: Vec<_> = self
            .files
            .values()
            .flat_map(|file| file.findings.iter().cloned())
            .collect();
        if let Some(message) = &self.folder_error {
            let origin = Origin::file(folder.display().to_string(), 0);
            all.push(Diagnostic::new(Severity::Error, &origin, None, message));
        }
        for (key, places) in self.places.iter().filter(|(_, places)| places.len() > 1) {
            let Some(winner) = places.last() else {
                continue;
            };
            for held in places.values().filter(|held| held.origin != winner.origin) {
                let message = format!(
                    "is defined again at {}; the later definition counts, this one has no effect",
                    winner.origin
                );
                all.push(
                    Diagnostic::new(Severity::Error, &held.origin, Some(key), message)
                        .field("metadata.name"),
                );
            }
        }
        all.sort();
        all
    }
}

/// What stays of a broken object: its last good version, or for a policy a refusal.
fn keep(
    findings: &mut Vec<Diagnostic>,
    known: Option<&Arc<Held>>,
    key: ObjectKey,
    fallback: Option<Box<Upsert>>,
    origin: &Origin,
) -> Option<(ObjectKey, Arc<Held>)> {
    if let Some(held) = known.filter(|held| !held.is_fallback && held.upsert.is_some()) {
        findings.push(Diagnostic::new(
            Severity::Warning,
            origin,
            Some(&key),
            "the last good version stays in effect",
        ));
        return Some((key, Arc::clone(held)));
    }
    let upsert = *fallback?;
    let message = "there is no earlier good version, so it refuses everything on its scope until it is repaired";
    findings.push(Diagnostic::new(
        Severity::Warning,
        origin,
        Some(&key),
        message,
    ));
    let origin = upsert.origin.clone();
    Some((
        key,
        Arc::new(Held {
            upsert: Some(Arc::new(upsert)),
            origin,
            is_fallback: true,
        }),
    ))
}

#[cfg(test)]
mod tests;
