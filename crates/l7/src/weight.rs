//! What the regular expressions of a rule take of the memory of a waypoint.

use crate::route::{Action, Match, PathMatch, PathRewrite, RouteRule};
use crate::text::TextMatch;

impl RouteRule {
    /// What it takes of [`crate::text::REGEX_TOTAL`].
    pub fn regex_size(&self) -> usize {
        let rule = &self.rule;
        let origins = rule.cors.iter().flat_map(|cors| &cors.origins);
        let rewrite = match &rule.action {
            Action::Forward(to) => to.rewrite.path.as_ref(),
            Action::Redirect(to) => to.path.as_ref(),
            Action::Respond(_) | Action::Fail(_) => None,
        };
        let rewrite = match rewrite {
            Some(PathRewrite::Regex { pattern }) => pattern.size(),
            Some(PathRewrite::Full(_) | PathRewrite::Prefix(_)) | None => 0,
        };
        let matches: usize = self.matches.iter().map(of_match).sum();
        matches + origins.map(of_text).sum::<usize>() + rewrite
    }
}

fn of_match(one: &Match) -> usize {
    let path = match &one.path {
        PathMatch::Text(text) => Some(text),
        PathMatch::Any | PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Segments(_) => {
            None
        }
    };
    let alone = [&one.method, &one.scheme, &one.authority];
    let alone = alone.into_iter().flatten().chain(path);
    let headers = one.headers.iter().map(|header| &header.value);
    let query = one.query.iter().map(|parameter| &parameter.value);
    alone.chain(headers).chain(query).map(of_text).sum()
}

fn of_text(text: &TextMatch) -> usize {
    match text {
        TextMatch::Regex(regex) => regex.size(),
        _ => 0,
    }
}
