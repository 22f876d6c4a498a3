//! A rule as it is kept, for the store and for all tables that it is in: small, for there may be tens of thousands.

use std::sync::Arc;

use crate::matching::is_path_alone;
use crate::route::{Attachment, Match, PathMatch, Precedence, RouteRule, Rule};

/// A rule. What many have alike they may share.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) attachments: Arc<[Attachment]>,
    pub(crate) precedence: Precedence,
    matches: Matches,
    pub(crate) rule: Rule,
}

/// Most rules have one.
#[derive(Debug)]
enum Matches {
    One(Condition),
    Listed(Box<[Condition]>),
}

/// Most conditions are of the path alone.
#[derive(Debug)]
pub(crate) enum Condition {
    Path(PathMatch),
    Whole(Box<Match>),
}

impl Kept {
    pub(crate) fn new(from: RouteRule) -> Self {
        let RouteRule {
            attachments,
            precedence,
            matches,
            rule,
        } = from;
        let mut conditions: Vec<Condition> = matches.into_iter().map(Condition::from).collect();
        let only = (conditions.len() == 1).then(|| conditions.pop()).flatten();
        Self {
            attachments: attachments.into(),
            precedence,
            matches: only.map_or_else(|| Matches::Listed(conditions.into()), Matches::One),
            rule: Arc::unwrap_or_clone(rule),
        }
    }

    /// As it was delivered.
    pub(crate) fn delivered(&self) -> RouteRule {
        RouteRule {
            attachments: self.attachments.to_vec(),
            precedence: self.precedence.clone(),
            matches: self.listed().iter().map(Condition::delivered).collect(),
            rule: Arc::new(self.rule.clone()),
        }
    }

    /// When it applies: if one of them holds. One without any always does.
    pub(crate) fn conditions(&self) -> &[Condition] {
        match self.listed() {
            [] => ALWAYS,
            listed => listed,
        }
    }

    /// Whether it is for connections, and not for requests.
    pub(crate) fn is_for_connections(&self) -> bool {
        let mut conditions = self.conditions().iter();
        conditions.any(|one| one.whole().is_some_and(|m| m.connection.is_some()))
    }

    fn listed(&self) -> &[Condition] {
        match &self.matches {
            Matches::One(one) => std::slice::from_ref(one),
            Matches::Listed(listed) => listed,
        }
    }
}

impl Condition {
    pub(crate) fn path(&self) -> &PathMatch {
        match self {
            Self::Path(path) => path,
            Self::Whole(whole) => &whole.path,
        }
    }

    /// All conditions, if there are others than that of the path.
    pub(crate) fn whole(&self) -> Option<&Match> {
        match self {
            Self::Path(_) => None,
            Self::Whole(whole) => Some(whole),
        }
    }

    fn delivered(&self) -> Match {
        match self {
            Self::Path(path) => Match {
                path: path.clone(),
                ..Match::default()
            },
            Self::Whole(whole) => (**whole).clone(),
        }
    }
}

impl From<Match> for Condition {
    fn from(m: Match) -> Self {
        match is_path_alone(&m) {
            true => Self::Path(m.path),
            false => Self::Whole(Box::new(m)),
        }
    }
}

const ALWAYS: &[Condition] = &[Condition::Path(PathMatch::Any)];
