//! Routes, compiled: the first rule that matches is found without trying them one after the other.
//!
//! Every match of every rule is an entry; entries are sorted by precedence once, so the entry of the lowest rank whose
//! conditions hold decides. Candidates come from a map of exact paths, from the prefixes of the path, and from the few
//! entries that neither finds; each is a list in the order of ranks, left at the first rank that cannot win any more.

pub(crate) mod order;
mod prefixes;

use std::collections::HashMap;
use std::sync::Arc;

use self::prefixes::Prefixes;
use crate::matching::{ends_segment, is_path_alone, rest_holds};
use crate::request::Request;
use crate::rewrite::Taken;
use crate::route::{Match, PathMatch, RouteRule, Rule};

/// The routes of a service's port, for one kind of clients.
#[derive(Debug, Default)]
pub struct Table {
    entries: Box<[Entry]>,
    exact: HashMap<Arc<str>, Ranks>,
    prefixes: Prefixes,
    others: Box<[u32]>,
}

/// A match of a rule.
#[derive(Debug)]
struct Entry {
    rule: Arc<Rule>,
    /// What is left to check when the path is found; none for most.
    rest: Option<Box<Match>>,
    path: Check,
}

/// What is left to check of the path.
#[derive(Debug)]
enum Check {
    /// It is found by its path: nothing.
    Found { taken: usize },
    /// It is found by a prefix, and has to end a segment there.
    Segments { prefix: Arc<str> },
    /// Everything.
    Whole(PathMatch),
}

/// Ranks in rising order. Nearly always there is one.
#[derive(Debug, PartialEq, Eq)]
enum Ranks {
    One(u32),
    Many(Box<[u32]>),
}

/// The rule that decides.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'t> {
    /// The rule.
    pub rule: &'t Arc<Rule>,
    /// How much of the path its match has taken.
    pub taken: Taken,
}

impl Table {
    /// Compiles rules; their order does not matter.
    pub fn compile<'r>(rules: impl IntoIterator<Item = &'r RouteRule>) -> Self {
        let mut exact: HashMap<Arc<str>, Vec<u32>> = HashMap::new();
        let mut prefixes: Vec<(Arc<str>, u32)> = Vec::new();
        let mut others = Vec::new();
        let mut entries = Vec::new();
        for (rank, (m, rule)) in (0_u32..).zip(order::sorted(rules)) {
            let path = match &m.path {
                PathMatch::Exact(path) => {
                    exact.entry(Arc::clone(path)).or_default().push(rank);
                    Check::Found { taken: path.len() }
                }
                PathMatch::Prefix(prefix) => {
                    prefixes.push((Arc::clone(prefix), rank));
                    Check::Found {
                        taken: prefix.len(),
                    }
                }
                PathMatch::Segments(prefix) if !prefix.is_empty() => {
                    prefixes.push((Arc::clone(prefix), rank));
                    Check::Segments {
                        prefix: Arc::clone(prefix),
                    }
                }
                other => {
                    others.push(rank);
                    Check::Whole(other.clone())
                }
            };
            entries.push(Entry {
                rule: Arc::clone(rule),
                rest: (!is_path_alone(&m)).then(|| Box::new(m)),
                path,
            });
        }
        Self {
            entries: entries.into(),
            exact: exact
                .into_iter()
                .map(|(path, ranks)| (path, Ranks::from(ranks)))
                .collect(),
            prefixes: Prefixes::new(prefixes),
            others: others.into(),
        }
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The rule that decides about a request.
    pub fn find(&self, request: &Request<'_>) -> Option<Hit<'_>> {
        let path = request.path.normal();
        let mut best = u32::MAX;
        if let Some(ranks) = self.exact.get(path) {
            self.try_ranks(ranks.as_slice(), request, &mut best);
        }
        for ranks in self.prefixes.of(path) {
            self.try_ranks(ranks.as_slice(), request, &mut best);
        }
        self.try_ranks(&self.others, request, &mut best);
        let entry = self.entries.get(best as usize)?;
        Some(Hit {
            rule: &entry.rule,
            taken: entry.path.taken(path),
        })
    }

    fn try_ranks(&self, ranks: &[u32], request: &Request<'_>, best: &mut u32) {
        for &rank in ranks.iter().take_while(|rank| **rank < *best) {
            let holds = |entry: &Entry| entry.holds(request);
            if self.entries.get(rank as usize).is_some_and(holds) {
                *best = rank;
                return;
            }
        }
    }
}

impl Entry {
    fn holds(&self, request: &Request<'_>) -> bool {
        let path = request.path.normal();
        let path_holds = match &self.path {
            Check::Found { .. } => true,
            Check::Segments { prefix } => ends_segment(path, prefix),
            Check::Whole(m) => m.holds(path),
        };
        path_holds && self.rest.as_ref().is_none_or(|m| rest_holds(m, request))
    }
}

impl Check {
    fn taken(&self, path: &str) -> Taken {
        match self {
            Self::Found { taken } => Taken {
                length: *taken,
                by_segments: false,
            },
            Self::Segments { prefix } => Taken {
                length: prefix.len(),
                by_segments: true,
            },
            Self::Whole(m) => m.taken(path),
        }
    }
}

impl PathMatch {
    /// Whether a path in normal form fulfils it.
    pub fn holds(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Segments(prefix) => path.starts_with(&**prefix) && ends_segment(path, prefix),
            Self::Text(text) => text.holds(path),
        }
    }

    /// What a rewrite of the prefix replaces.
    pub fn taken(&self, path: &str) -> Taken {
        let (length, by_segments) = match self {
            // As the prefix `/` in Istio.
            Self::Any => (path.len().min(1), false),
            Self::Exact(text) | Self::Prefix(text) => (text.len(), false),
            Self::Segments(text) => (text.len(), true),
            Self::Text(crate::text::TextMatch::PrefixIgnoringCase(text)) => (text.len(), false),
            // A rewrite of the prefix replaces the whole of what was matched as a whole.
            Self::Text(_) => (path.len(), false),
        };
        Taken {
            length,
            by_segments,
        }
    }
}

impl Ranks {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(rank) => std::slice::from_ref(rank),
            Self::Many(ranks) => ranks,
        }
    }
}

impl From<Vec<u32>> for Ranks {
    fn from(ranks: Vec<u32>) -> Self {
        match *ranks {
            [rank] => Self::One(rank),
            _ => Self::Many(ranks.into()),
        }
    }
}

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;
