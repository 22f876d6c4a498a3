//! A tree of prefixes, as a sorted list in which each knows the next shorter one that it begins with.

use std::sync::Arc;

use super::Ranks;

/// Ranks by prefix.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// In the order of bytes.
    nodes: Box<[Node]>,
}

#[derive(Debug)]
struct Node {
    prefix: Arc<str>,
    ranks: Ranks,
    /// The longest other prefix that this one begins with.
    parent: Option<u32>,
}

impl Prefixes {
    /// Builds it; ranks of one prefix are in rising order.
    pub(super) fn new(mut all: Vec<(Arc<str>, u32)>) -> Self {
        all.sort();
        let mut nodes: Vec<Node> = Vec::new();
        // The prefixes that the one at hand begins with, the longest last.
        let mut line: Vec<u32> = Vec::new();
        for chunk in all.chunk_by(|a, b| a.0 == b.0) {
            let Some((prefix, _)) = chunk.first() else {
                continue;
            };
            while let Some(&last) = line.last() {
                let begins = |node: &Node| prefix.as_bytes().starts_with(node.prefix.as_bytes());
                if nodes.get(last as usize).is_some_and(begins) {
                    break;
                }
                line.pop();
            }
            let ranks: Vec<u32> = chunk.iter().map(|(_, rank)| *rank).collect();
            let index = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            nodes.push(Node {
                prefix: Arc::clone(prefix),
                ranks: ranks.into(),
                parent: line.last().copied(),
            });
            line.push(index);
        }
        Self {
            nodes: nodes.into(),
        }
    }

    /// The ranks of all prefixes of a text, the longest prefix first.
    pub(super) fn of<'t>(&'t self, text: &'t str) -> impl Iterator<Item = &'t Ranks> {
        // A prefix of the text sorts before it, and all that sorts between begins with that prefix. So every prefix
        // of the text is an ancestor of the last node that sorts before the text, or that node.
        let after = self
            .nodes
            .partition_point(|node| node.prefix.as_bytes() <= text.as_bytes());
        let last = after.checked_sub(1).and_then(|at| self.nodes.get(at));
        let parent = |node: &Node| self.nodes.get(node.parent? as usize);
        std::iter::successors(last, move |node| parent(node))
            .filter(|node| text.as_bytes().starts_with(node.prefix.as_bytes()))
            .map(|node| &node.ranks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_prefixes_are_found_and_nothing_else(
            prefixes in prop::collection::btree_set("[/ab]{0,5}", 0..12),
            text in "[/ab]{0,7}",
        ) {
            let all: Vec<(Arc<str>, u32)> =
                prefixes.iter().map(|p| Arc::from(p.as_str())).zip(0..).collect();
            let expected: Vec<u32> = all
                .iter()
                .rev()
                .filter(|(prefix, _)| text.starts_with(&**prefix))
                .map(|(_, rank)| *rank)
                .collect();
            let tree = Prefixes::new(all.clone());
            let found: Vec<u32> =
                tree.of(&text).flat_map(|r| r.as_slice().to_vec()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
