//! `AuthorizationPolicy` compiled for the node agents, which see connections and no requests.
//!
//! What an agent cannot check refuses: an ALLOW rule with such a part never matches, a DENY rule loses the part and so
//! denies more, CUSTOM denies what it selects. Each of these is noted on the object and in the resource itself
//! (extension [`UNENFORCEABLE`]). AUDIT never changes a verdict and is left out.

pub(crate) mod http;

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_api::authorization_policy::{
    Action, AuthorizationPolicySpec, Condition, Operation, Rule, Source,
};
use manifest::{Diagnostic, Severity};
use prost::Message;
use proto::istio::{security as pb, workload::Extension};

use super::trust_domains::{TrustDomains, strings};
use crate::store::{PolicyFacts, PolicyWish};

/// Whether a finding about a policy is one that a waypoint would answer. Who sees the policy alone cannot know whether there is
/// one.
#[must_use]
pub fn is_for_want_of_a_waypoint(finding: &Diagnostic) -> bool {
    finding.message.starts_with(ONLY_A_WAYPOINT)
}

/// A policy as the agents get it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// The resource; `None` when the policy has no effect on connections.
    pub authorization: Option<pb::Authorization>,
    /// Services of the policy's namespace whose pods it is attached to, besides those its selector names.
    pub services: Vec<String>,
    /// What its author should know.
    pub notes: Vec<Note>,
}

/// Something to say about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// Path of the field.
    pub field: String,
    /// What its author should know.
    pub message: String,
}

/// Compiles one policy of a mesh with this root namespace and these trust domains.
pub fn compile(policy: &PolicyFacts, root_namespace: &str, domains: &TrustDomains) -> Compiled {
    match &policy.wish {
        PolicyWish::Broken { reason, .. } => broken(policy, reason, root_namespace),
        PolicyWish::Readable { spec, dry_run } => {
            readable(policy, spec, *dry_run, root_namespace, domains)
        }
    }
}

/// A DENY that matches everything, for a policy that nobody can read.
fn broken(policy: &PolicyFacts, reason: &str, root_namespace: &str) -> Compiled {
    let authorization = pb::Authorization {
        action: pb::Action::Deny.into(),
        rules: vec![pb::Rule::default()],
        extensions: vec![unenforceable(&format!(
            "the policy cannot be read: {reason}"
        ))],
        ..empty(policy, root_namespace)
    };
    Compiled {
        authorization: Some(authorization),
        ..Compiled::default()
    }
}

fn readable(
    policy: &PolicyFacts,
    spec: &AuthorizationPolicySpec,
    dry_run: bool,
    root_namespace: &str,
    domains: &TrustDomains,
) -> Compiled {
    let mut compiled = Compiled::default();
    if spec.action == Action::Audit {
        compiled.note(
            Severity::Warning,
            "spec.action",
            "AUDIT is not supported: nothing is reported, and no connection is affected",
        );
        return compiled;
    }
    let mut base = empty(policy, root_namespace);
    if !attach(spec, &mut base, &mut compiled) {
        return compiled;
    }
    let deny = spec.action != Action::Allow;
    let mut reasons: Vec<String> = Vec::new();
    if spec.action == Action::Custom {
        reasons.push("spec.action CUSTOM needs a waypoint".to_owned());
        let message = "CUSTOM needs a waypoint that asks the provider; until there is one, what the rules select is denied";
        compiled.note(Severity::Error, "spec.action", message);
    }
    for service in &compiled.services {
        reasons.push(format!(
            "targetRefs Service {service} needs a waypoint; applied to the workloads behind it"
        ));
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let mut parts = Parts::of(&at, rule, &policy.key.namespace, domains);
        if !compiled.services.is_empty() {
            parts.without_ports(&at, rule);
        }
        for field in &parts.beyond {
            reasons.push(format!("{field} needs a waypoint"));
            let effect = if deny {
                "the rule denies more than it says"
            } else {
                "the rule allows nothing"
            };
            let message = format!(
                "{ONLY_A_WAYPOINT}; for connections that do not come through one, {effect}"
            );
            compiled.note(Severity::Error, field, message);
        }
        if deny || (parts.beyond.is_empty() && !parts.open) {
            base.rules.push(pb::Rule {
                clauses: parts.clauses,
            });
        }
    }
    if !reasons.is_empty() {
        base.extensions.push(unenforceable(&reasons.join("; ")));
    }
    base.action = if deny {
        pb::Action::Deny
    } else {
        pb::Action::Allow
    }
    .into();
    base.dry_run = dry_run;
    compiled.authorization = Some(base);
    compiled
}

/// Reads `targetRefs`. Returns false when none of the targets exists on connections.
fn attach(
    spec: &AuthorizationPolicySpec,
    base: &mut pb::Authorization,
    compiled: &mut Compiled,
) -> bool {
    let single = spec
        .target_ref
        .iter()
        .map(|target| ("spec.targetRef".to_owned(), target));
    let many = spec
        .target_refs
        .iter()
        .enumerate()
        .map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    let targets: Vec<_> = single.chain(many).collect();
    if targets.is_empty() {
        return true;
    }
    base.scope = pb::Scope::WorkloadSelector.into();
    for (field, target) in targets {
        if target.kind == "Service" && target.group.is_empty() {
            let message = "whole at the Service's waypoint; connections that do not come through one are judged at the workloads behind the Service, where what needs a waypoint refuses";
            compiled.note(Severity::Warning, &field, message);
            compiled.services.push(target.name.clone());
        } else if ["Gateway", "GatewayClass"].contains(&target.kind.as_str()) {
            let message = format!(
                "counts for what comes through {} {}; a connection to a pod's own address does so only if the waypoint is for workloads too (label istio.io/waypoint-for: all)",
                target.kind, target.name
            );
            compiled.note(Severity::Warning, &field, message);
        } else {
            let message = format!(
                "{} {} is not supported yet; the policy has no effect on it",
                target.kind, target.name
            );
            compiled.note(Severity::Error, &field, message);
        }
    }
    !compiled.services.is_empty()
}

fn empty(policy: &PolicyFacts, root_namespace: &str) -> pb::Authorization {
    let scope = match policy.selector() {
        Some(labels) if !labels.is_empty() => pb::Scope::WorkloadSelector,
        _ if &*policy.key.namespace == root_namespace => pb::Scope::Global,
        _ => pb::Scope::Namespace,
    };
    pb::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: scope.into(),
        ..pb::Authorization::default()
    }
}

impl Compiled {
    fn note(&mut self, severity: Severity, field: &str, message: impl Into<String>) {
        self.notes.push(Note {
            severity,
            field: field.to_owned(),
            message: message.into(),
        });
    }
}

/// One rule, taken apart into what a connection shows and what it does not.
struct Parts<'d> {
    domains: &'d TrustDomains,
    clauses: Vec<pb::Clause>,
    /// Fields that only a waypoint can check.
    beyond: Vec<String>,
    /// A source or operation without any part that a connection shows; as an alternative it matches everything.
    open: bool,
}

impl<'d> Parts<'d> {
    fn of(at: &str, rule: &Rule, namespace: &str, domains: &'d TrustDomains) -> Self {
        let mut parts = Self {
            domains,
            clauses: Vec::new(),
            beyond: Vec::new(),
            open: false,
        };
        let mut alternatives = Vec::new();
        for (index, to) in rule.to.iter().enumerate() {
            let field = format!("{at}.to[{index}].operation");
            alternatives.push(parts.operation(&field, &to.operation.clone().unwrap_or_default()));
        }
        parts.push(alternatives);
        let mut alternatives = Vec::new();
        for (index, from) in rule.from.iter().enumerate() {
            let field = format!("{at}.from[{index}].source");
            alternatives.push(parts.source(
                &field,
                &from.source.clone().unwrap_or_default(),
                namespace,
            ));
        }
        parts.push(alternatives);
        for (index, when) in rule.when.iter().enumerate() {
            let condition = parts.condition(&format!("{at}.when[{index}]"), when, namespace);
            parts.push(vec![condition]);
        }
        parts
    }

    /// Takes out what is said of ports. Where a policy targets a Service they are the Service's, and a connection to a pod
    /// shows the pod's own.
    fn without_ports(&mut self, at: &str, rule: &Rule) {
        for (index, to) in rule.to.iter().enumerate() {
            let operation = to.operation.clone().unwrap_or_default();
            let ports = [
                ("ports", &operation.ports),
                ("notPorts", &operation.not_ports),
            ];
            for (name, _) in ports.into_iter().filter(|(_, values)| !values.is_empty()) {
                self.beyond
                    .push(format!("{at}.to[{index}].operation.{name}"));
            }
        }
        for (index, when) in rule.when.iter().enumerate() {
            if when.key == "destination.port" {
                self.beyond
                    .push(format!("{at}.when[{index}].key {}", when.key));
            }
        }
        for clause in &mut self.clauses {
            for one in &mut clause.matches {
                one.destination_ports.clear();
                one.not_destination_ports.clear();
            }
        }
        // What is left of it matches everything.
        let is_open =
            |clause: &pb::Clause| clause.matches.iter().any(|m| *m == pb::Match::default());
        self.open |= self.clauses.iter().any(is_open);
        self.clauses.retain(|clause| !is_open(clause));
    }

    /// Adds a clause: one of the alternatives must match. One that matches everything makes the clause void.
    fn push(&mut self, matches: Vec<pb::Match>) {
        if matches.iter().any(|m| *m == pb::Match::default()) {
            self.open = true;
        } else if !matches.is_empty() {
            self.clauses.push(pb::Clause { matches });
        }
    }

    fn operation(&mut self, at: &str, operation: &Operation) -> pb::Match {
        self.without_waypoint(at, operation.fields(), &["ports", "notPorts"]);
        pb::Match {
            destination_ports: self.ports(at, "ports", &operation.ports),
            not_destination_ports: self.ports(at, "notPorts", &operation.not_ports),
            ..pb::Match::default()
        }
    }

    fn source(&mut self, at: &str, source: &Source, namespace: &str) -> pb::Match {
        self.without_waypoint(at, source.fields(), CONNECTION_SOURCE);
        pb::Match {
            principals: self.domains.principals(&source.principals),
            not_principals: self.domains.principals(&source.not_principals),
            namespaces: strings(&source.namespaces),
            not_namespaces: strings(&source.not_namespaces),
            service_accounts: accounts(&source.service_accounts, namespace),
            not_service_accounts: accounts(&source.not_service_accounts, namespace),
            source_ips: self.addresses(at, "ipBlocks", &source.ip_blocks),
            not_source_ips: self.addresses(at, "notIpBlocks", &source.not_ip_blocks),
            ..pb::Match::default()
        }
    }

    fn condition(&mut self, at: &str, condition: &Condition, namespace: &str) -> pb::Match {
        let Condition {
            key,
            values,
            not_values,
        } = condition;
        let mut found = pb::Match::default();
        match key.as_str() {
            "source.namespace" => {
                (found.namespaces, found.not_namespaces) = (strings(values), strings(not_values));
            }
            "source.principal" => {
                found.principals = self.domains.principals(values);
                found.not_principals = self.domains.principals(not_values);
            }
            "source.serviceAccount" => {
                found.service_accounts = accounts(values, namespace);
                found.not_service_accounts = accounts(not_values, namespace);
            }
            "source.ip" => {
                found.source_ips = self.addresses(at, "values", values);
                found.not_source_ips = self.addresses(at, "notValues", not_values);
            }
            "destination.ip" => {
                found.destination_ips = self.addresses(at, "values", values);
                found.not_destination_ips = self.addresses(at, "notValues", not_values);
            }
            "destination.port" => {
                found.destination_ports = self.ports(at, "values", values);
                found.not_destination_ports = self.ports(at, "notValues", not_values);
            }
            other => self.beyond.push(format!("{at}.key {other}")),
        }
        found
    }

    fn without_waypoint<'v>(
        &mut self,
        at: &str,
        fields: impl Iterator<Item = (&'static str, &'v [String])>,
        checkable: &[&str],
    ) {
        for (name, _) in
            fields.filter(|(name, values)| !values.is_empty() && !checkable.contains(name))
        {
            self.beyond.push(format!("{at}.{name}"));
        }
    }

    /// The values that are ports. One that is not makes the field uncheckable, so that it cannot widen an ALLOW.
    fn ports(&mut self, at: &str, name: &str, values: &[String]) -> Vec<u32> {
        let ports: Option<Vec<u32>> = values
            .iter()
            .map(|value| value.parse::<u16>().ok().map(u32::from))
            .collect();
        self.or_beyond(at, name, ports)
    }

    fn addresses(&mut self, at: &str, name: &str, values: &[String]) -> Vec<pb::Address> {
        let blocks = values.iter().map(|value| {
            let block = value
                .parse::<IpNet>()
                .ok()
                .or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
            Some(pb::Address {
                address: octets(block.addr()),
                length: block.prefix_len().into(),
            })
        });
        let blocks: Option<Vec<_>> = blocks.collect();
        self.or_beyond(at, name, blocks)
    }

    fn or_beyond<T>(&mut self, at: &str, name: &str, values: Option<Vec<T>>) -> Vec<T> {
        values.unwrap_or_else(|| {
            self.beyond.push(format!("{at}.{name}"));
            Vec::new()
        })
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn accounts(values: &[String], namespace: &str) -> Vec<pb::ServiceAccountMatch> {
    let account = |value: &String| {
        let (namespace, name) = value.split_once('/').unwrap_or((namespace, value));
        pb::ServiceAccountMatch {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
        }
    };
    values.iter().map(account).collect()
}

fn unenforceable(reason: &str) -> Extension {
    let config = prost_types::Any {
        type_url: proto::type_url::STRING_VALUE.to_owned(),
        value: reason.to_owned().encode_to_vec(),
    };
    Extension {
        name: UNENFORCEABLE.to_owned(),
        config: Some(config),
    }
}

/// Name of the extension whose `google.protobuf.StringValue` says which parts of a policy no agent can check.
pub const UNENFORCEABLE: &str = "keelson.io/unenforceable";
/// How a finding begins about a part that connections do not show.
const ONLY_A_WAYPOINT: &str = "only a waypoint checks it";
/// The fields of a source that a connection shows.
const CONNECTION_SOURCE: &[&str] = &[
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
];
