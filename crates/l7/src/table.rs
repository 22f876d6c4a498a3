//! Routes, compiled: the first rule that matches is found without trying them one after the other.
//!
//! Every match of every rule is an entry; entries are sorted by precedence once, so the entry of the lowest rank whose
//! conditions hold decides. Candidates come from a map of exact paths, from the prefixes of the path, and from the few
//! entries that neither finds; each is a list in the order of ranks, left at the first rank that cannot win any more.

pub(crate) mod kept;
pub(crate) mod order;
mod prefixes;

use std::collections::HashMap;
use std::sync::Arc;

use self::kept::Kept;
use self::order::Entry;
use self::prefixes::Prefixes;
use crate::matching::{ends_segment, rest_holds};
use crate::request::Request;
use crate::rewrite::Taken;
use crate::route::{PathMatch, RouteRule, Rule};

/// The routes of a service's port, for one kind of clients.
#[derive(Debug, Default)]
pub struct Table {
    entries: Box<[Entry]>,
    exact: HashMap<Arc<str>, Ranks>,
    prefixes: Prefixes,
    others: Box<[u32]>,
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
    pub rule: &'t Rule,
    /// How much of the path its match has taken.
    pub taken: Taken,
}

impl Table {
    /// Compiles rules; their order does not matter.
    pub fn compile<'r>(rules: impl IntoIterator<Item = &'r RouteRule>) -> Self {
        let kept = |rule: &RouteRule| Arc::new(Kept::new(rule.clone()));
        let rules: Vec<Arc<Kept>> = rules.into_iter().map(kept).collect();
        Self::of(&rules)
    }

    /// The same, of what is kept of them.
    pub(crate) fn of<'r>(rules: impl IntoIterator<Item = &'r Arc<Kept>>) -> Self {
        let mut exact: HashMap<Arc<str>, Vec<u32>> = HashMap::new();
        let mut prefixes: Vec<(Arc<str>, u32)> = Vec::new();
        let mut others = Vec::new();
        let entries = order::sorted(rules);
        for (rank, entry) in (0_u32..).zip(&entries) {
            match entry.condition().map(|condition| condition.path()) {
                Some(PathMatch::Exact(path)) => {
                    exact.entry(Arc::clone(path)).or_default().push(rank);
                }
                Some(PathMatch::Prefix(prefix)) => prefixes.push((Arc::clone(prefix), rank)),
                Some(PathMatch::Segments(prefix)) if !prefix.is_empty() => {
                    prefixes.push((Arc::clone(prefix), rank));
                }
                _ => others.push(rank),
            }
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
            rule: &entry.rule().rule,
            taken: entry.condition()?.path().taken(path),
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
        let Some(condition) = self.condition() else {
            return false;
        };
        let path = request.path.normal();
        let path_holds = match condition.path() {
            // It was found by its path.
            PathMatch::Exact(_) | PathMatch::Prefix(_) => true,
            PathMatch::Segments(prefix) if !prefix.is_empty() => ends_segment(path, prefix),
            other => other.holds(path),
        };
        path_holds && condition.whole().is_none_or(|m| rest_holds(m, request))
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
