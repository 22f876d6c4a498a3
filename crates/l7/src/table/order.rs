//! The order in which matches are tried.

use std::cmp::Reverse;
use std::sync::Arc;

use super::kept::{Condition, Kept};
use crate::route::{PathMatch, Precedence};
use crate::text::TextMatch;

/// A condition of a rule, by its index there.
#[derive(Debug)]
pub(crate) struct Entry {
    rule: Arc<Kept>,
    index: u32,
}

impl Entry {
    pub(crate) fn rule(&self) -> &Kept {
        &self.rule
    }

    pub(crate) fn condition(&self) -> Option<&Condition> {
        self.rule.conditions().get(self.index as usize)
    }
}

/// Every condition of every rule, the one that goes first in front.
pub(crate) fn sorted<'r>(rules: impl IntoIterator<Item = &'r Arc<Kept>>) -> Vec<Entry> {
    let mut all = Vec::new();
    for rule in rules {
        for (index, condition) in (0_u32..).zip(rule.conditions()) {
            let (specific, text) = match &rule.precedence {
                Precedence::Specific(text) => (Some(specificity(condition)), text),
                Precedence::Listed(text) => (None, text),
            };
            // Without `None` first: what the Gateway API says goes before what Istio says.
            let key = (
                specific.is_none(),
                specific,
                text,
                rule.rule.origin.rule,
                index,
            );
            all.push((key, rule));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let all = all.into_iter().map(|((.., index), rule)| Entry {
        rule: Arc::clone(rule),
        index,
    });
    all.collect()
}

/// Smaller is more specific (Gateway API, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`): an exact path, the
/// longest prefix, a method, the most headers, the most query parameters. Where regular expressions stand is not
/// said there: here they come after prefixes, the longest first, as in Istio.
fn specificity(condition: &Condition) -> impl Ord + use<> {
    let (kind, length) = match condition.path() {
        PathMatch::Exact(path) => (3, path.len()),
        PathMatch::Prefix(path) | PathMatch::Segments(path) => (2, path.len()),
        PathMatch::Text(TextMatch::Regex(regex)) => (1, regex.pattern().len()),
        PathMatch::Text(_) => (1, 0),
        PathMatch::Any => (2, 0),
    };
    let m = condition.whole();
    Reverse((
        kind,
        length,
        m.is_some_and(|m| m.method.is_some()),
        m.map_or(0, |m| m.headers.len()),
        m.map_or(0, |m| m.query.len()),
    ))
}
