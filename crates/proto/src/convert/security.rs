//! Authorizations. What cannot be converted still has to refuse, so the error holds a policy that
//! does.

use std::net::IpAddr;

use ipnet::IpNet;
use model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use prost::Message;

use super::{
    ConvertError, Problem, RejectedPolicy, at, each, each_message, ip, ip_bytes, pack, port,
    prefix, required, value,
};
use crate::istio::{security as pb, workload as pb_workload};
use crate::type_url;

/// Name of the extension that says why an authorization allows less than its object does. Its
/// content is a `google.protobuf.StringValue`.
pub const UNENFORCEABLE: &str = "keelson.io/unenforceable";

impl TryFrom<pb::Authorization> for Policy {
    type Error = RejectedPolicy;

    fn try_from(from: pb::Authorization) -> Result<Self, RejectedPolicy> {
        let dry_run = from.dry_run;
        let scope = scope(from.scope);
        let key = key(&from.namespace, &from.name).map_err(|error| RejectedPolicy {
            error,
            substitute: None,
        })?;
        policy(key.clone(), from).map_err(|error| {
            // Of an unknown scope this much is certain: who names it and who lives with it.
            let scope = scope.unwrap_or(Scope::Namespace);
            let denies = Self::unenforceable(key, scope, error.to_string());
            RejectedPolicy {
                error,
                substitute: Some(Box::new(Self { dry_run, ..denies })),
            }
        })
    }
}

impl From<&Policy> for pb::Authorization {
    fn from(from: &Policy) -> Self {
        Self {
            name: from.key.resource().into_owned(),
            namespace: from.key.namespace.to_string(),
            scope: match from.scope {
                Scope::Global => pb::Scope::Global,
                Scope::Namespace => pb::Scope::Namespace,
                Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
            }
            .into(),
            action: match from.action {
                Action::Allow => pb::Action::Allow,
                Action::Deny => pb::Action::Deny,
            }
            .into(),
            rules: from.rules.iter().map(rule_out).collect(),
            dry_run: from.dry_run,
            extensions: from
                .unenforceable
                .iter()
                .map(|reason| pb_workload::Extension {
                    name: UNENFORCEABLE.to_owned(),
                    config: Some(pack(type_url::STRING_VALUE, &reason.to_string())),
                })
                .collect(),
        }
    }
}

fn key(namespace: &str, name: &str) -> Result<PolicyKey, ConvertError> {
    let namespace = required("namespace", namespace.to_owned())?;
    let name = required("name", name.to_owned())?;
    Ok(PolicyKey::new(namespace, name))
}

fn policy(key: PolicyKey, from: pb::Authorization) -> Result<Policy, ConvertError> {
    let action = match value("action", from.action)? {
        pb::Action::Allow => Action::Allow,
        pb::Action::Deny => Action::Deny,
    };
    Ok(Policy {
        key,
        scope: scope(from.scope)?,
        action,
        rules: each_message("rules", from.rules, |rule| {
            let clauses = each_message("clauses", rule.clauses, |clause| {
                let matches = each_message("matches", clause.matches, match_in)?;
                Ok(Clause { matches })
            })?;
            Ok(Rule { clauses })
        })?,
        dry_run: from.dry_run,
        unenforceable: from
            .extensions
            .iter()
            .find(|extension| extension.name == UNENFORCEABLE)
            .map(|extension| reason(extension).into()),
    })
}

fn scope(number: i32) -> Result<Scope, ConvertError> {
    value("scope", number).map(|scope| match scope {
        pb::Scope::Global => Scope::Global,
        pb::Scope::Namespace => Scope::Namespace,
        pb::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

/// That there is a reason counts more than that it can be read.
fn reason(extension: &pb_workload::Extension) -> String {
    extension
        .config
        .as_ref()
        .and_then(|any| String::decode(&*any.value).ok())
        .filter(|reason| !reason.is_empty())
        .unwrap_or_else(|| "no readable reason was given".to_owned())
}

pub(super) fn match_in(from: pb::Match) -> Result<Match, ConvertError> {
    if let Some(extension) = from.extensions.into_iter().next() {
        return Err(at("extensions[0]", Problem::Extension(extension.name)));
    }
    Ok(Match {
        namespaces: each("namespaces", from.namespaces, string_in)?,
        not_namespaces: each("not_namespaces", from.not_namespaces, string_in)?,
        principals: each("principals", from.principals, string_in)?,
        not_principals: each("not_principals", from.not_principals, string_in)?,
        source_ips: each_message("source_ips", from.source_ips, range_in)?,
        not_source_ips: each_message("not_source_ips", from.not_source_ips, range_in)?,
        destination_ips: each_message("destination_ips", from.destination_ips, range_in)?,
        not_destination_ips: each_message(
            "not_destination_ips",
            from.not_destination_ips,
            range_in,
        )?,
        destination_ports: each("destination_ports", from.destination_ports, port)?,
        not_destination_ports: each("not_destination_ports", from.not_destination_ports, port)?,
        service_accounts: each_message("service_accounts", from.service_accounts, account_in)?,
        not_service_accounts: each_message(
            "not_service_accounts",
            from.not_service_accounts,
            account_in,
        )?,
    })
}

fn string_in(from: pb::StringMatch) -> Result<StringMatch, Problem> {
    use pb::string_match::MatchType;

    match from.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        // Dropping it would widen the match: an empty field holds.
        None => Err(Problem::NoCondition),
    }
}

fn range_in(from: pb::Address) -> Result<IpNet, ConvertError> {
    let ip = ip(&from.address).map_err(|e| at("address", e))?;
    let too_long = || Problem::PrefixLength {
        ip,
        length: from.length,
    };
    prefix(ip, from.length)
        .and_then(|length| IpNet::new(ip, length).ok().ok_or_else(too_long))
        .map_err(|e| at("length", e))
}

fn account_in(from: pb::ServiceAccountMatch) -> Result<ServiceAccountMatch, ConvertError> {
    Ok(ServiceAccountMatch {
        namespace: required("namespace", from.namespace)?.into(),
        service_account: required("serviceAccount", from.service_account)?.into(),
    })
}

fn rule_out(rule: &Rule) -> pb::Rule {
    let clause = |clause: &Clause| pb::Clause {
        matches: clause.matches.iter().map(match_out).collect(),
    };
    pb::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

pub(super) fn match_out(from: &Match) -> pb::Match {
    let strings = |from: &[StringMatch]| from.iter().map(string_out).collect();
    let ranges = |from: &[IpNet]| from.iter().map(range_out).collect();
    let ports = |from: &[u16]| from.iter().copied().map(Into::into).collect();
    let accounts = |from: &[ServiceAccountMatch]| from.iter().map(account_out).collect();
    pb::Match {
        namespaces: strings(&from.namespaces),
        not_namespaces: strings(&from.not_namespaces),
        principals: strings(&from.principals),
        not_principals: strings(&from.not_principals),
        source_ips: ranges(&from.source_ips),
        not_source_ips: ranges(&from.not_source_ips),
        destination_ips: ranges(&from.destination_ips),
        not_destination_ips: ranges(&from.not_destination_ips),
        destination_ports: ports(&from.destination_ports),
        not_destination_ports: ports(&from.not_destination_ports),
        service_accounts: accounts(&from.service_accounts),
        not_service_accounts: accounts(&from.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn string_out(from: &StringMatch) -> pb::StringMatch {
    use pb::string_match::MatchType;

    let match_type = match from {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    pb::StringMatch {
        match_type: Some(match_type),
    }
}

fn range_out(from: &IpNet) -> pb::Address {
    let ip: IpAddr = from.addr();
    pb::Address {
        address: ip_bytes(ip),
        length: from.prefix_len().into(),
    }
}

fn account_out(from: &ServiceAccountMatch) -> pb::ServiceAccountMatch {
    pb::ServiceAccountMatch {
        namespace: from.namespace.to_string(),
        service_account: from.service_account.to_string(),
    }
}
