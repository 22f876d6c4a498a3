//! In which line of its manifest each field of an object stands.

use std::collections::BTreeMap;

use crate::{fields, tree};

/// Field path to 1-based line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldLines(BTreeMap<String, usize>);

impl FieldLines {
    /// Every field of a tree.
    pub(crate) fn of(node: &tree::Node) -> Self {
        let mut lines = Self::default();
        lines.collect(node, String::new());
        lines
    }

    /// The line of `field`, or of the nearest field around it.
    pub fn line(&self, field: &str) -> Option<usize> {
        let mut field = field;
        loop {
            if let Some(line) = self.0.get(field) {
                return Some(*line);
            }
            let cut = field.rfind(['.', '['])?;
            field = field.get(..cut)?;
        }
    }

    fn collect(&mut self, node: &tree::Node, path: String) {
        for entry in node.entries() {
            let mut path = path.clone();
            fields::push_key(&mut path, &entry.key);
            self.0.insert(path.clone(), entry.line);
            self.collect(&entry.value, path);
        }
        for (index, item) in node.items().iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.0.insert(path.clone(), item.line);
            self.collect(item, path);
        }
    }
}
