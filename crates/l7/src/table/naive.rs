//! The meaning of routes, as the specifications write it: every rule is looked at. Knows nothing of the table.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::request::Request;
use crate::route::{Match, PathMatch, Precedence, RouteRule, Rule};
use crate::text::TextMatch;

/// The rule that decides.
pub(super) fn find<'r>(rules: &'r [RouteRule], request: &Request<'_>) -> Option<&'r Arc<Rule>> {
    let mut winner: Option<(&RouteRule, Match)> = None;
    for rule in rules {
        for m in matches(rule) {
            if holds(&m, request) {
                let wins = winner
                    .as_ref()
                    .is_none_or(|(other, by)| goes_before((rule, &m), (other, by)));
                if wins {
                    winner = Some((rule, m));
                }
            }
        }
    }
    winner.map(|(rule, _)| &rule.rule)
}

fn matches(rule: &RouteRule) -> Vec<Match> {
    if rule.matches.is_empty() {
        vec![Match::default()]
    } else {
        rule.matches.clone()
    }
}

/// VirtualService: in the order of the file (F23). Gateway API: the text of `HTTPRouteRule.matches`.
fn goes_before((a, by_a): (&RouteRule, &Match), (b, by_b): (&RouteRule, &Match)) -> bool {
    let order = match (&a.precedence, &b.precedence) {
        (Precedence::Specific(_), Precedence::Listed(_)) => Ordering::Less,
        (Precedence::Listed(_), Precedence::Specific(_)) => Ordering::Greater,
        (Precedence::Listed(x), Precedence::Listed(y)) => x.cmp(y),
        (Precedence::Specific(x), Precedence::Specific(y)) => {
            let exact = |m: &Match| matches!(m.path, PathMatch::Exact(_));
            let prefix = |m: &Match| {
                matches!(
                    m.path,
                    PathMatch::Any | PathMatch::Prefix(_) | PathMatch::Segments(_)
                )
            };
            exact(by_b)
                .cmp(&exact(by_a))
                .then(prefix(by_b).cmp(&prefix(by_a)))
                .then(characters(by_b).cmp(&characters(by_a)))
                .then(by_b.method.is_some().cmp(&by_a.method.is_some()))
                .then(by_b.headers.len().cmp(&by_a.headers.len()))
                .then(by_b.query.len().cmp(&by_a.query.len()))
                .then(x.cmp(y))
        }
    };
    let order = order.then(a.rule.origin.rule.cmp(&b.rule.origin.rule));
    order == Ordering::Less
}

fn characters(m: &Match) -> usize {
    match &m.path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) | PathMatch::Segments(text) => text.len(),
        PathMatch::Text(TextMatch::Regex(regex)) => regex.pattern().len(),
        PathMatch::Text(_) | PathMatch::Any => 0,
    }
}

fn holds(m: &Match, request: &Request<'_>) -> bool {
    let path = request.path.normal();
    let path_holds = match &m.path {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => path.starts_with(&**prefix),
        PathMatch::Segments(prefix) => {
            let wanted: Vec<&str> = prefix.split('/').filter(|s| !s.is_empty()).collect();
            let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
            segments.starts_with(&wanted)
        }
        PathMatch::Text(text) => text_holds(text, path),
    };
    let headers = m.headers.iter().all(|wanted| {
        let lines: Vec<&str> = request
            .headers
            .get_all(&wanted.name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let found = !lines.is_empty() && text_holds(&wanted.value, &lines.join(","));
        found != wanted.negated
    });
    let query: Vec<(&str, &str)> = request
        .path
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    let parameters = m.query.iter().all(|wanted| {
        let first = query.iter().find(|(name, _)| **name == *wanted.name);
        first.is_some_and(|(_, value)| text_holds(&wanted.value, value))
    });
    let labels = m.client_labels.iter().all(|(name, value)| {
        let labels = request.client.labels;
        labels.and_then(|labels| labels.get(name)) == Some(value)
    });
    let text = |m: &Option<TextMatch>, text: &str| match m {
        Some(m) => text_holds(m, text),
        None => true,
    };
    path_holds
        && headers
        && parameters
        && labels
        && text(&m.method, request.method.as_str())
        && text(&m.scheme, request.scheme)
        && text(&m.authority, request.authority)
        && m.port.is_none_or(|port| port == request.destination.port())
        && match &m.client_namespace {
            Some(namespace) => request.client.namespace == Some(&**namespace),
            None => true,
        }
}

fn text_holds(m: &TextMatch, text: &str) -> bool {
    let lower = text.to_lowercase();
    match m {
        TextMatch::Exact(exact) => text == &**exact,
        TextMatch::ExactIgnoringCase(exact) => lower == exact.to_lowercase(),
        TextMatch::Prefix(prefix) => text.starts_with(&**prefix),
        TextMatch::PrefixIgnoringCase(prefix) => lower.starts_with(&prefix.to_lowercase()),
        TextMatch::Suffix(suffix) => text.ends_with(&**suffix),
        TextMatch::Regex(regex) => {
            let anchored = format!("\\A(?:{})\\z", regex.pattern());
            regex::Regex::new(&anchored).unwrap().is_match(text)
        }
        TextMatch::Present => true,
    }
}
