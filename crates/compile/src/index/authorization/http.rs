//! `AuthorizationPolicy` compiled for waypoints, which see requests.
//!
//! What a waypoint cannot check refuses, as with agents: an ALLOW rule with such a part never matches, a DENY rule loses
//! the part and so denies more, CUSTOM denies what it selects.

use http::HeaderName;
use k8s_api::authorization_policy::{Action, AuthorizationPolicySpec, Operation, Rule};
use l7::policy::Template;
use manifest::NamespacedName;
use proto::istio::security as connection;
use proto::l7::policy::{OfNamespace, OfServices, Scope};
use proto::l7::{self as pb, policy_path, text::Condition as TextCondition};

use super::{Parts, empty};
use crate::index::trust_domains::TrustDomains;
use crate::index::{MeshConfig, service};
use crate::store::{PolicyFacts, PolicyWish};

/// A policy as waypoints get it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HttpPolicy {
    /// The resource.
    pub(crate) policy: pb::Policy,
    /// Which waypoints it is for.
    pub(crate) at: At,
}

/// Which waypoints a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// All whose endpoints or services it is for.
    Any,
    /// Those of its namespace with these names.
    Named(Vec<String>),
}

/// Compiles one policy; `None` if it is for nothing that a waypoint sees.
pub(crate) fn compile(
    facts: &PolicyFacts,
    mesh: &MeshConfig,
    domains: &TrustDomains,
) -> Option<HttpPolicy> {
    let key = &facts.key;
    let origin = pb::Origin {
        kind: l7::Kind::AuthorizationPolicy.as_str().to_owned(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ..pb::Origin::default()
    };
    let base = pb::Policy {
        origin: Some(origin),
        scope: Some(scope(facts, &mesh.root_namespace)),
        ..pb::Policy::default()
    };
    match &facts.wish {
        PolicyWish::Broken { reason, .. } => Some(HttpPolicy {
            policy: pb::Policy {
                action: pb::policy::Action::Deny.into(),
                rules: vec![pb::PolicyRule::default()],
                unenforceable: format!("the policy cannot be read: {reason}"),
                ..base
            },
            at: At::Any,
        }),
        PolicyWish::Readable { spec, dry_run } => {
            let (target, at) = targets(spec, &key.namespace, mesh)?;
            let base = pb::Policy {
                dry_run: *dry_run,
                scope: target.or(base.scope.clone()),
                ..base
            };
            let policy = readable(base, spec, &key.namespace, domains);
            Some(HttpPolicy { policy, at })
        }
    }
}

fn scope(facts: &PolicyFacts, root_namespace: &str) -> Scope {
    match empty(facts, root_namespace).scope() {
        connection::Scope::Global => Scope::All(true),
        connection::Scope::Namespace => Scope::OfNamespace(OfNamespace {
            namespace: facts.key.namespace.to_string(),
        }),
        connection::Scope::WorkloadSelector => Scope::OfEndpoints(true),
    }
}

/// What a policy with `targetRefs` is for. `None` if that is nothing.
fn targets(
    spec: &AuthorizationPolicySpec,
    namespace: &str,
    mesh: &MeshConfig,
) -> Option<(Option<Scope>, At)> {
    let targets = spec.target_ref.iter().chain(&spec.target_refs);
    let targets: Vec<_> = targets.collect();
    if targets.is_empty() {
        return Some((None, At::Any));
    }
    let of = |kind: &'static str| targets.iter().filter(move |target| target.kind == kind);
    if of("GatewayClass").next().is_some() && namespace == mesh.root_namespace {
        return Some((Some(Scope::All(true)), At::Any));
    }
    let gateways: Vec<String> = of("Gateway").map(|target| target.name.clone()).collect();
    if !gateways.is_empty() {
        return Some((Some(Scope::All(true)), At::Named(gateways)));
    }
    let services = of("Service").map(|target| {
        let key = NamespacedName::new(namespace, &target.name);
        pb::ServiceKey {
            namespace: namespace.to_owned(),
            hostname: service::hostname(&key, mesh),
        }
    });
    let services: Vec<pb::ServiceKey> = services.collect();
    (!services.is_empty()).then(|| {
        let scope = Scope::OfServices(OfServices { services });
        (Some(scope), At::Any)
    })
}

fn readable(
    base: pb::Policy,
    spec: &AuthorizationPolicySpec,
    namespace: &str,
    domains: &TrustDomains,
) -> pb::Policy {
    let mut reasons = Vec::new();
    let action = match spec.action {
        Action::Allow => pb::policy::Action::Allow,
        Action::Deny => pb::policy::Action::Deny,
        Action::Audit => pb::policy::Action::Audit,
        Action::Custom => {
            reasons.push("spec.action CUSTOM is not supported".to_owned());
            pb::policy::Action::Deny
        }
    };
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let compiled = of_rule(&at, rule, namespace, domains);
        let lost = !compiled.beyond.is_empty() || compiled.open;
        let beyond = compiled.beyond.iter();
        reasons.extend(beyond.map(|field| format!("{field} is not supported")));
        if action == pb::policy::Action::Deny || !lost {
            rules.push(pb::PolicyRule {
                clauses: compiled.clauses,
            });
        }
    }
    pb::Policy {
        action: action.into(),
        rules,
        unenforceable: reasons.join("; "),
        ..base
    }
}

/// A rule, as far as a waypoint can check it.
struct Compiled {
    clauses: Vec<pb::PolicyClause>,
    /// Fields that it cannot check.
    beyond: Vec<String>,
    /// What is left of an alternative matches everything.
    open: bool,
}

impl Compiled {
    fn push(&mut self, matches: Vec<pb::PolicyMatch>) {
        if matches.iter().any(|m| *m == pb::PolicyMatch::default()) {
            self.open = true;
        } else if !matches.is_empty() {
            self.clauses.push(pb::PolicyClause { matches });
        }
    }
}

fn of_rule(at: &str, rule: &Rule, namespace: &str, domains: &TrustDomains) -> Compiled {
    let mut parts = Parts {
        domains,
        clauses: Vec::new(),
        beyond: Vec::new(),
        open: false,
    };
    let mut compiled = Compiled {
        clauses: Vec::new(),
        beyond: Vec::new(),
        open: false,
    };
    let mut alternatives = Vec::new();
    for (index, to) in rule.to.iter().enumerate() {
        let field = format!("{at}.to[{index}].operation");
        let operation = to.operation.clone().unwrap_or_default();
        let of_connection = parts.operation(&field, &operation);
        parts.beyond.retain(|beyond| !is_http(&field, beyond));
        alternatives.push(self::operation(
            &field,
            &operation,
            of_connection,
            &mut compiled.beyond,
        ));
    }
    compiled.push(alternatives);
    let mut alternatives = Vec::new();
    for (index, from) in rule.from.iter().enumerate() {
        let field = format!("{at}.from[{index}].source");
        let source = from.source.clone().unwrap_or_default();
        let mut of_connection = parts.source(&field, &source, namespace);
        // No proxy stands before a waypoint: the client's address is the connection's.
        let remote = parts.addresses(&field, "remoteIpBlocks", &source.remote_ip_blocks);
        let not_remote = parts.addresses(&field, "notRemoteIpBlocks", &source.not_remote_ip_blocks);
        parts.beyond.retain(|beyond| !is_remote(&field, beyond));
        if of_connection.source_ips.is_empty() {
            of_connection.source_ips = remote;
        } else if !remote.is_empty() {
            compiled
                .beyond
                .push(format!("{field}.remoteIpBlocks beside ipBlocks"));
        }
        of_connection.not_source_ips.extend(not_remote);
        alternatives.push(with(of_connection));
    }
    compiled.push(alternatives);
    for (index, when) in rule.when.iter().enumerate() {
        let field = format!("{at}.when[{index}]");
        let header = when
            .key
            .strip_prefix("request.headers[")
            .and_then(|rest| rest.strip_suffix(']'));
        let condition = match (header, when.key.as_str()) {
            (Some(name), _) => header_condition(name, &when.values, &when.not_values),
            (None, "remote.ip") => {
                let mut as_source = when.clone();
                "source.ip".clone_into(&mut as_source.key);
                Some(with(parts.condition(&field, &as_source, namespace)))
            }
            (None, _) => Some(with(parts.condition(&field, when, namespace))),
        };
        match condition {
            Some(condition) => compiled.push(vec![condition]),
            None => compiled.beyond.push(format!("{field}.key {}", when.key)),
        }
    }
    compiled.beyond.append(&mut parts.beyond);
    compiled
}

fn is_http(field: &str, beyond: &str) -> bool {
    const NAMES: [&str; 6] = [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ];
    let name = beyond
        .strip_prefix(field)
        .and_then(|rest| rest.strip_prefix('.'));
    name.is_some_and(|name| NAMES.contains(&name))
}

fn is_remote(field: &str, beyond: &str) -> bool {
    let name = beyond
        .strip_prefix(field)
        .and_then(|rest| rest.strip_prefix('.'));
    name.is_some_and(|name| ["remoteIpBlocks", "notRemoteIpBlocks"].contains(&name))
}

fn with(of_connection: connection::Match) -> pb::PolicyMatch {
    let says_something = of_connection != connection::Match::default();
    pb::PolicyMatch {
        connection: says_something.then_some(of_connection),
        ..pb::PolicyMatch::default()
    }
}

fn operation(
    field: &str,
    operation: &Operation,
    of_connection: connection::Match,
    beyond: &mut Vec<String>,
) -> pb::PolicyMatch {
    let texts = |values: &[String]| values.iter().map(|value| text(value)).collect();
    let mut paths = |name: &str, values: &[String]| {
        let read = |value: &String| {
            let condition = path(value);
            if condition.is_none() {
                beyond.push(format!("{field}.{name} {value}"));
            }
            condition
        };
        values.iter().filter_map(read).collect()
    };
    pb::PolicyMatch {
        hosts: texts(&operation.hosts),
        not_hosts: texts(&operation.not_hosts),
        methods: texts(&operation.methods),
        not_methods: texts(&operation.not_methods),
        paths: paths("paths", &operation.paths),
        not_paths: paths("notPaths", &operation.not_paths),
        ..with(of_connection)
    }
}

fn header_condition(
    name: &str,
    values: &[String],
    not_values: &[String],
) -> Option<pb::PolicyMatch> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let header = pb::PolicyHeader {
        name: name.to_string(),
        values: values.iter().map(|value| text(value)).collect(),
        not_values: not_values.iter().map(|value| text(value)).collect(),
    };
    Some(pb::PolicyMatch {
        headers: vec![header],
        ..pb::PolicyMatch::default()
    })
}

/// `*`, `prefix*`, `*suffix`, or the text itself.
fn text(value: &str) -> pb::Text {
    let condition = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => TextCondition::Present(true),
        (Some(suffix), _) => TextCondition::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => TextCondition::Prefix(prefix.to_owned()),
        (None, None) => TextCondition::Exact(value.to_owned()),
    };
    pb::Text {
        condition: Some(condition),
    }
}

fn path(value: &str) -> Option<pb::PolicyPath> {
    let condition = if Template::is_one(value) {
        Template::new(value).ok()?;
        policy_path::Condition::Template(value.to_owned())
    } else {
        policy_path::Condition::Text(text(value))
    };
    Some(pb::PolicyPath {
        condition: Some(condition),
    })
}
