//! Policies with HTTP parts.

use std::sync::Arc;

use l7::Policy;
use l7::policy::{Action, Clause, HeaderMatch, Match, PathMatch, Rule, Scope, Template};

use super::{
    header_name, key, key_out, optional, origin, origin_out, text, text_or_none, text_out,
    texts_out,
};
use crate::convert::security::{match_in as connection_in, match_out as connection_out};
use crate::convert::{ConvertError, Problem, at, each, each_message, value};
use crate::l7 as pb;

pub(super) fn policy(from: pb::Policy) -> Result<Policy, ConvertError> {
    use pb::policy::{Action as Pb, Scope as PbScope};

    let scope = match from.scope.ok_or_else(|| at("scope", Problem::Missing))? {
        PbScope::All(true) => Scope::All,
        PbScope::OfEndpoints(true) => Scope::Endpoints,
        PbScope::OfNamespace(of) => Scope::Namespace(of.namespace.into()),
        PbScope::OfServices(of) => {
            let keys = each_message("scope", of.services, |from| key("key", Some(from)))?;
            Scope::Services(keys)
        }
        PbScope::All(false) | PbScope::OfEndpoints(false) => {
            return Err(at("scope", Problem::Missing));
        }
    };
    let action = match value("action", from.action)? {
        Pb::Allow => Action::Allow,
        Pb::Deny => Action::Deny,
        Pb::Audit => Action::Audit,
        Pb::Unsaid => return Err(at("action", Problem::Missing)),
    };
    Ok(Policy {
        origin: origin(from.origin)?,
        scope,
        action,
        dry_run: from.dry_run,
        rules: each_message("rules", from.rules, |rule| {
            let clauses = each_message("clauses", rule.clauses, |clause| {
                let matches = each_message("matches", clause.matches, match_in)?;
                Ok(Clause { matches })
            })?;
            Ok(Rule { clauses })
        })?,
        unenforceable: optional(from.unenforceable),
    })
}

fn match_in(from: pb::PolicyMatch) -> Result<Match, ConvertError> {
    Ok(Match {
        connection: from
            .connection
            .map(connection_in)
            .transpose()
            .map_err(|e| e.within("connection"))?,
        hosts: each("hosts", from.hosts, text)?,
        not_hosts: each("not_hosts", from.not_hosts, text)?,
        methods: each("methods", from.methods, text)?,
        not_methods: each("not_methods", from.not_methods, text)?,
        paths: each("paths", from.paths, path)?,
        not_paths: each("not_paths", from.not_paths, path)?,
        headers: each_message("headers", from.headers, |header| {
            Ok(HeaderMatch {
                name: header_name(&header.name).map_err(|e| at("name", e))?,
                values: each("values", header.values, text)?,
                not_values: each("not_values", header.not_values, text)?,
            })
        })?,
    })
}

fn path(from: pb::PolicyPath) -> Result<PathMatch, Problem> {
    use pb::policy_path::Condition;

    Ok(match from.condition.ok_or(Problem::Missing)? {
        Condition::Text(from) => PathMatch::Text(text(from)?),
        Condition::Template(template) => {
            PathMatch::Template(Template::new(&template).map_err(|e| Problem::Text(e.to_string()))?)
        }
    })
}

impl From<&Policy> for pb::Policy {
    fn from(from: &Policy) -> Self {
        use pb::policy::{Action as Pb, OfNamespace, OfServices, Scope as PbScope};

        let scope = match &from.scope {
            Scope::All => PbScope::All(true),
            Scope::Endpoints => PbScope::OfEndpoints(true),
            Scope::Namespace(namespace) => PbScope::OfNamespace(OfNamespace {
                namespace: namespace.to_string(),
            }),
            Scope::Services(keys) => PbScope::OfServices(OfServices {
                services: keys.iter().map(key_out).collect(),
            }),
        };
        let clause = |clause: &Clause| pb::PolicyClause {
            matches: clause.matches.iter().map(match_out).collect(),
        };
        Self {
            origin: Some(origin_out(&from.origin)),
            scope: Some(scope),
            action: match from.action {
                Action::Allow => Pb::Allow,
                Action::Deny => Pb::Deny,
                Action::Audit => Pb::Audit,
            }
            .into(),
            dry_run: from.dry_run,
            rules: from
                .rules
                .iter()
                .map(|rule| pb::PolicyRule {
                    clauses: rule.clauses.iter().map(clause).collect(),
                })
                .collect(),
            unenforceable: text_or_none(from.unenforceable.as_ref()),
        }
    }
}

fn match_out(from: &Match) -> pb::PolicyMatch {
    let paths = |paths: &[PathMatch]| paths.iter().map(path_out).collect();
    pb::PolicyMatch {
        connection: from.connection.as_ref().map(connection_out),
        hosts: texts_out(&from.hosts),
        not_hosts: texts_out(&from.not_hosts),
        methods: texts_out(&from.methods),
        not_methods: texts_out(&from.not_methods),
        paths: paths(&from.paths),
        not_paths: paths(&from.not_paths),
        headers: from
            .headers
            .iter()
            .map(|header| pb::PolicyHeader {
                name: header.name.to_string(),
                values: texts_out(&header.values),
                not_values: texts_out(&header.not_values),
            })
            .collect(),
    }
}

fn path_out(from: &PathMatch) -> pb::PolicyPath {
    use pb::policy_path::Condition;

    let condition = match from {
        PathMatch::Text(text) => Condition::Text(text_out(text)),
        PathMatch::Template(template) => Condition::Template(template.as_str().to_owned()),
    };
    pb::PolicyPath {
        condition: Some(condition),
    }
}

/// The resource's name of a policy.
pub fn policy_name(policy: &Policy) -> Arc<str> {
    format!("{}/{}", policy.origin.namespace, policy.origin.name).into()
}
