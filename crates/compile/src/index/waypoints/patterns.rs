//! Regular expressions of a waypoint have a bound together. The rules of the oldest objects have theirs; a rule that is over
//! the bound is left out, and its object says so. Others go on.

use std::collections::{BTreeMap, BTreeSet};

use l7::route::{Precedence, RouteRule};
use l7::text::REGEX_TOTAL;
use l7::{Kind as Of, Origin as RuleOrigin};
use manifest::{Diagnostic, Kind, ObjectKey, Origin, Severity};

use super::Waypoint;
use crate::index::Index;
use crate::index::authorization::Note;

/// Rules that are left out.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// By waypoint, what there is to say of objects.
    over: BTreeMap<Waypoint, Vec<(ObjectKey, Note)>>,
    /// The objects that something was said of.
    said: BTreeMap<ObjectKey, Vec<Note>>,
    /// Where objects with rules are, and what was found in each alone.
    written: BTreeMap<ObjectKey, (Origin, Vec<Diagnostic>)>,
}

impl Patterns {
    /// Notes where an object is, and what was found in it alone.
    pub(super) fn note(&mut self, key: &ObjectKey, origin: &Origin, found: &[Diagnostic]) {
        let noted = (origin.clone(), found.to_vec());
        self.written.insert(key.clone(), noted);
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.written.remove(key);
        self.said.remove(key);
    }

    /// What there is to say of an object because of its rules that are left out.
    pub(super) fn of(&self, key: &ObjectKey) -> Vec<Note> {
        let all = self.over.values().flatten();
        let of_object = all.filter(|(about, _)| about == key);
        of_object.map(|(_, note)| note.clone()).collect()
    }
}

impl Index {
    /// Leaves out the rules of a waypoint whose patterns are over the bound.
    pub(super) fn bound_patterns(
        &mut self,
        waypoint: &Waypoint,
        rules: &mut Vec<(String, RouteRule)>,
    ) {
        let over = bound(waypoint, rules, REGEX_TOTAL);
        let known = &mut self.waypoints.patterns.over;
        if over.is_empty() {
            known.remove(waypoint);
        } else {
            known.insert(waypoint.clone(), over);
        }
    }

    /// The waypoint is none any more.
    pub(super) fn forget_patterns(&mut self, waypoint: &Waypoint) {
        self.waypoints.patterns.over.remove(waypoint);
    }

    /// What there is to say of rules that are left out, where that has changed.
    pub(in crate::index) fn say_of_patterns(
        &mut self,
        diagnostics: &mut BTreeMap<ObjectKey, Vec<Diagnostic>>,
    ) {
        let patterns = &mut self.waypoints.patterns;
        let mut now: BTreeMap<ObjectKey, Vec<Note>> = BTreeMap::new();
        for (key, note) in patterns.over.values().flatten() {
            now.entry(key.clone()).or_default().push(note.clone());
        }
        let none = Vec::new();
        let both = now.keys().chain(patterns.said.keys());
        for key in both {
            let (is, was) = (now.get(key), patterns.said.get(key));
            if is == was && !diagnostics.contains_key(key) {
                continue;
            }
            let Some((origin, found)) = patterns.written.get(key) else {
                continue;
            };
            let mut all = found.clone();
            all.extend(is.unwrap_or(&none).iter().map(|note| {
                Diagnostic::new(note.severity, origin, Some(key), &note.message).field(&note.field)
            }));
            diagnostics.insert(key.clone(), all);
        }
        patterns.said = now;
    }
}

/// Takes the rules out that are over a bound, and says so of their objects.
fn bound(
    waypoint: &Waypoint,
    rules: &mut Vec<(String, RouteRule)>,
    most: usize,
) -> Vec<(ObjectKey, Note)> {
    let sizes = rules.iter().enumerate();
    let mut sizes: Vec<(usize, usize)> = sizes
        .map(|(at, (_, rule))| (at, rule.regex_size()))
        .filter(|(_, size)| *size > 0)
        .collect();
    let total: usize = sizes.iter().map(|(_, size)| size).sum();
    if total <= most {
        return Vec::new();
    }
    let age = |at: usize| rules.get(at).map(|(name, rule)| (rank(rule), name));
    sizes.sort_by(|(a, _), (b, _)| age(*a).cmp(&age(*b)));
    let mut taken = 0;
    let mut left_out = Vec::new();
    for (at, size) in sizes {
        if taken + size <= most {
            taken += size;
        } else {
            left_out.push((at, size));
        }
    }
    let mut found = Vec::new();
    for (at, size) in &left_out {
        let Some((_, rule)) = rules.get(*at) else {
            continue;
        };
        let message = format!(
            "its regular expressions take {} KiB, and those of older rules leave less of the {} KiB that waypoint {waypoint} has for them: the rule is left out",
            size / 1024,
            most / 1024
        );
        if let Some((key, field)) = object(&rule.rule.origin) {
            let note = Note {
                severity: Severity::Error,
                field,
                message,
            };
            found.push((key, note));
        }
    }
    let left_out: BTreeSet<usize> = left_out.into_iter().map(|(at, _)| at).collect();
    let mut places = 0..rules.len();
    rules.retain(|_| places.next().is_none_or(|at| !left_out.contains(&at)));
    found
}

/// The oldest object goes first, and of its rules the first.
fn rank(rule: &RouteRule) -> (&str, u32) {
    let age = match &rule.precedence {
        Precedence::Specific(age) | Precedence::Listed(age) => age,
    };
    (age, rule.rule.origin.rule)
}

/// The object of a rule, and the field of the rule in it.
fn object(of: &RuleOrigin) -> Option<(ObjectKey, String)> {
    let kind = match of.kind {
        Of::HttpRoute => Kind::HttpRoute,
        Of::GrpcRoute => Kind::GrpcRoute,
        Of::VirtualService => Kind::VirtualService,
        _ => return None,
    };
    let field = match kind {
        Kind::VirtualService => format!("spec.http[{}]", of.rule),
        _ => format!("spec.rules[{}]", of.rule),
    };
    let key = ObjectKey::new(kind, &of.namespace, &of.name);
    Some((key, field))
}
