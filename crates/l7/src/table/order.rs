//! The order in which matches are tried.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::route::{Match, PathMatch, Precedence, RouteRule, Rule};
use crate::text::TextMatch;

/// Every match of every rule with its rule, the one that goes first in front.
pub(crate) fn sorted<'r>(
    rules: impl IntoIterator<Item = &'r RouteRule>,
) -> Vec<(Match, &'r Arc<Rule>)> {
    let mut all = Vec::new();
    for rule in rules {
        let always = [Match::default()];
        let matches = if rule.matches.is_empty() {
            &always[..]
        } else {
            &rule.matches
        };
        for (index, m) in matches.iter().enumerate() {
            let (specific, text) = match &rule.precedence {
                Precedence::Specific(text) => (Some(specificity(m)), text),
                Precedence::Listed(text) => (None, text),
            };
            let origin = &rule.rule.origin;
            // Without `None` first: what the Gateway API says goes before what Istio says.
            let key = (
                specific.is_none(),
                specific,
                Arc::clone(text),
                origin.rule,
                index,
            );
            all.push((key, m.clone(), &rule.rule));
        }
    }
    all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    all.into_iter().map(|(_, m, rule)| (m, rule)).collect()
}

/// Smaller is more specific (Gateway API, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`): an exact path, the
/// longest prefix, a method, the most headers, the most query parameters. Where regular expressions stand is not
/// said there: here they come after prefixes, the longest first, as in Istio.
fn specificity(m: &Match) -> impl Ord + use<> {
    let (kind, length) = match &m.path {
        PathMatch::Exact(path) => (3, path.len()),
        PathMatch::Prefix(path) | PathMatch::Segments(path) => (2, path.len()),
        PathMatch::Text(TextMatch::Regex(regex)) => (1, regex.pattern().len()),
        PathMatch::Text(_) => (1, 0),
        PathMatch::Any => (2, 0),
    };
    Reverse((
        kind,
        length,
        m.method.is_some(),
        m.headers.len(),
        m.query.len(),
    ))
}
