//! Every current finding about the configuration, and which of them are news.

use std::collections::BTreeMap;

use manifest::{Diagnostic, ObjectKey, Severity};

/// Every current finding: what the source said about files, what is wrong with the settings, what the index said about objects.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    source: Vec<Diagnostic>,
    settings: Vec<Diagnostic>,
    index: BTreeMap<ObjectKey, Vec<Diagnostic>>,
}

impl Diagnostics {
    /// Replaces the findings of the source and returns those that are new.
    pub fn replace_source(&mut self, mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
        found.sort();
        found.dedup();
        let known = std::mem::take(&mut self.source);
        let new = found
            .iter()
            .filter(|d| known.binary_search(d).is_err())
            .cloned()
            .collect();
        self.source = found;
        new
    }

    /// Replaces the findings about the settings and returns those that are new.
    pub fn replace_settings(&mut self, found: Vec<Diagnostic>) -> Vec<Diagnostic> {
        let known = std::mem::replace(&mut self.settings, found);
        let new = self.settings.iter().filter(|one| !known.contains(one));
        new.cloned().collect()
    }

    /// Replaces the findings of the index about one object and returns those that are new.
    pub fn replace_object(&mut self, key: &ObjectKey, found: Vec<Diagnostic>) -> Vec<Diagnostic> {
        let known = self.index.remove(key).unwrap_or_default();
        let new = found
            .iter()
            .filter(|d| !known.contains(d))
            .cloned()
            .collect();
        if !found.is_empty() {
            self.index.insert(key.clone(), found);
        }
        new
    }

    /// All findings, by file and line.
    pub fn all(&self) -> Vec<Diagnostic> {
        let mut all: Vec<_> = self
            .source
            .iter()
            .chain(&self.settings)
            .chain(self.index.values().flatten())
            .cloned()
            .collect();
        all.sort();
        all
    }

    /// How many findings have this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let source = self.source.iter().chain(&self.settings);
        let all = source.chain(self.index.values().flatten());
        all.filter(|d| d.severity == severity).count()
    }
}
