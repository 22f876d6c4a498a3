//! Policies with HTTP parts, and the verdict of all that apply on one request.
//!
//! The order is Istio's: a DENY that matches denies; without any ALLOW the request is allowed; otherwise one of them must
//! match. AUDIT only says that it matched. A policy that is named and was not delivered denies.

mod template;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderName;
use model::ServiceKey;
use model::policy::{Connection, Match as ConnectionMatch};

pub use self::template::{Template, TemplateError};
use crate::origin::Origin;
use crate::request::{Protocol, Request};
use crate::text::TextMatch;

/// A compiled policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Where it is written; the rule there is 0.
    pub origin: Origin,
    /// Which requests it is for.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// It never takes part in a verdict.
    pub dry_run: bool,
    /// OR-ed; a policy without rules never matches.
    pub rules: Vec<Rule>,
    /// Why it refuses more than what is written.
    pub unenforceable: Option<Arc<str>>,
}

/// Which requests a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All that this waypoint sees: of the mesh, or because it targets the waypoint.
    All,
    /// Those to endpoints of this namespace.
    Namespace(Arc<str>),
    /// Those that dial one of these services.
    Services(Vec<ServiceKey>),
    /// Those to endpoints that name it.
    Endpoints,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The request is allowed if nothing denies it.
    Allow,
    /// The request is denied.
    Deny,
    /// It is noted.
    Audit,
}

/// Conditions that must all hold; a rule without clauses matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// AND-ed.
    pub clauses: Vec<Clause>,
}

/// Conditions of which one must hold; a clause without matches holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clause {
    /// OR-ed.
    pub matches: Vec<Match>,
}

/// Conditions on a request. Within a field the values are OR-ed, over the fields AND-ed, and a `not_` field holds if none
/// of its values does. A match with no values at all never holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Conditions on who asks, from where, and on the port.
    pub connection: Option<ConnectionMatch>,
    /// Host, whatever the case, with or without the port.
    pub hosts: Vec<TextMatch>,
    /// The same, negated.
    pub not_hosts: Vec<TextMatch>,
    /// Method.
    pub methods: Vec<TextMatch>,
    /// The same, negated.
    pub not_methods: Vec<TextMatch>,
    /// Path in normal form.
    pub paths: Vec<PathMatch>,
    /// The same, negated.
    pub not_paths: Vec<PathMatch>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
}

/// A condition on the path in normal form.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// A condition on its text.
    Text(TextMatch),
    /// Istio's template with `{*}` and `{**}`.
    Template(Template),
}

/// Conditions on a header. Without the header no value holds.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// One of them must hold; none at all is no condition.
    pub values: Vec<TextMatch>,
    /// None of them may hold.
    pub not_values: Vec<TextMatch>,
}

/// Where a request goes, as policies of its endpoint see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's own port.
    pub port: u16,
}

/// The verdict on a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<'c> {
    /// It may pass.
    Allow {
        /// The policy that allows it, and the index of its rule; none if nothing has to.
        by: Option<(&'c Policy, usize)>,
    },
    /// It may not: 403.
    Deny(Denial<'c>),
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denial<'c> {
    /// This rule of a DENY matches.
    Matched {
        /// The policy.
        policy: &'c Policy,
        /// The index of its rule.
        rule: usize,
    },
    /// There are ALLOW policies, and none matches.
    NoAllowMatched {
        /// The first of them.
        policy: &'c Policy,
    },
    /// The endpoint names a policy that was not delivered.
    Undelivered {
        /// The name of its resource.
        name: &'c str,
    },
}

/// The verdict of policies on one request. `by_target` is for the policies of an endpoint, whose ports are the
/// endpoint's own; those of a service or waypoint judge by the port that was dialled.
pub(crate) fn verdict<'c>(
    policies: impl Iterator<Item = &'c Policy> + Clone,
    request: &Request<'_>,
    target: Target,
) -> Verdict<'c> {
    let enforced = policies.filter(|policy| !policy.dry_run);
    let with = |action| {
        enforced
            .clone()
            .filter(move |policy| policy.action == action)
    };
    for policy in with(Action::Deny) {
        if let Some(rule) = policy.matching_rule(request, target) {
            return Verdict::Deny(Denial::Matched { policy, rule });
        }
    }
    let mut allows = with(Action::Allow);
    let Some(first) = allows.next() else {
        return Verdict::Allow { by: None };
    };
    for policy in std::iter::once(first).chain(allows) {
        if let Some(rule) = policy.matching_rule(request, target) {
            return Verdict::Allow {
                by: Some((policy, rule)),
            };
        }
    }
    Verdict::Deny(Denial::NoAllowMatched { policy: first })
}

impl Policy {
    /// Stands for a policy that could not be understood: it denies everything, and says why.
    pub fn unenforceable(origin: Origin, scope: Scope, reason: impl Into<Arc<str>>) -> Self {
        Self {
            origin,
            scope,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule::default()],
            unenforceable: Some(reason.into()),
        }
    }

    /// Index of the first rule that matches. Dry run and action are the caller's business.
    pub fn matching_rule(&self, request: &Request<'_>, target: Target) -> Option<usize> {
        let port = match self.scope {
            Scope::All | Scope::Services(_) => request.destination.port(),
            Scope::Namespace(_) | Scope::Endpoints => target.port,
        };
        let connection = Connection {
            source: request.client.identity,
            source_ip: request.client.address,
            destination_ip: target.address,
            destination_port: port,
        };
        self.rules.iter().position(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty()
                    || clause
                        .matches
                        .iter()
                        .any(|m| m.holds(self.action, request, &connection))
            })
        })
    }
}

impl Match {
    /// What is written of requests cannot be judged for a connection that is none: a DENY holds as if it was not
    /// written, so that no spelling of bytes leads around it, and nothing else holds. Istio decides the same
    /// (Authorization Policy, "HTTP-only fields with TCP").
    fn holds(&self, action: Action, request: &Request<'_>, connection: &Connection<'_>) -> bool {
        // Destructured, so that a new field cannot be forgotten here.
        let Self {
            connection: of_connection,
            hosts,
            not_hosts,
            methods,
            not_methods,
            paths,
            not_paths,
            headers,
        } = self;
        let empty = of_connection.is_none()
            && hosts.is_empty()
            && not_hosts.is_empty()
            && methods.is_empty()
            && not_methods.is_empty()
            && paths.is_empty()
            && not_paths.is_empty()
            && headers.is_empty();
        if empty || !of_connection.as_ref().is_none_or(|m| m.holds(connection)) {
            return false;
        }
        if request.protocol == Protocol::Tcp {
            return action == Action::Deny || !self.is_of_requests();
        }
        let method = request.method.as_str();
        let path = request.path.normal();
        field_holds(methods, not_methods, |m| m.holds(method))
            && field_holds(paths, not_paths, |m| m.holds(path))
            && field_holds(hosts, not_hosts, |m| {
                host_holds(m, request.authority) || host_holds(m, request.host())
            })
            && headers.iter().all(|m| m.holds(request))
    }

    /// Whether it says anything that only a request has.
    fn is_of_requests(&self) -> bool {
        let Self {
            connection: _,
            hosts,
            not_hosts,
            methods,
            not_methods,
            paths,
            not_paths,
            headers,
        } = self;
        let texts = [hosts, not_hosts, methods, not_methods];
        texts.iter().any(|field| !field.is_empty())
            || [paths, not_paths].iter().any(|field| !field.is_empty())
            || !headers.is_empty()
    }
}

impl HeaderMatch {
    fn holds(&self, request: &Request<'_>) -> bool {
        let value = request.header(&self.name);
        field_holds(&self.values, &self.not_values, |m| {
            value.as_ref().is_some_and(|value| m.holds(value))
        })
    }
}

impl PathMatch {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.holds(path),
            Self::Template(template) => template.holds(path),
        }
    }
}

/// Host names have no case.
fn host_holds(m: &TextMatch, host: &str) -> bool {
    match m {
        TextMatch::Exact(exact) => host.eq_ignore_ascii_case(exact),
        TextMatch::Prefix(prefix) => TextMatch::PrefixIgnoringCase(Arc::clone(prefix)).holds(host),
        TextMatch::Suffix(suffix) => host
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| host.as_bytes().get(at..))
            .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes())),
        TextMatch::Present => !host.is_empty(),
        other => other.holds(host),
    }
}

fn field_holds<T>(positive: &[T], negative: &[T], condition: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&condition)) && !negative.iter().any(&condition)
}

#[cfg(test)]
mod tests;
