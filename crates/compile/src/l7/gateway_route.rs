//! `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute`, whose parents are Services and Gateways.

mod filters;
mod matches;

use std::sync::Arc;

use http::StatusCode;
use k8s_api::gateway_route::{BackendRef, HttpRule, ParentRef};
use k8s_api::{ConnectionRoute, GrpcRoute, HttpRoute, ObjectMeta};
use l7::route::{
    Action, Backend, ConnectionMatch, Forward, HeaderOperations, Match, Retries, RetryOn,
    Treatment, WeightedBackend,
};
use l7::{ClusterKey, HostPattern, Kind, Origin, Rule};
use manifest::NamespacedName;
use model::ServiceKey;

use super::Parts;
use super::notes::Notes;
use crate::index::authorization::Note;

/// What a route says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    /// The Services that it is attached to, with the port of each if one is named.
    pub(crate) parents: Vec<(ServiceKey, Option<u16>)>,
    /// The listeners of Gateways that it asks to be attached to.
    pub(crate) gateways: Vec<GatewayParent>,
    /// Which hosts it is for, under a Gateway; none for all.
    pub(crate) hostnames: Vec<HostPattern>,
    /// Its rules, in their order.
    pub(crate) rules: Vec<Parts>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

/// A Gateway that a route asks to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayParent {
    /// The Gateway.
    pub(crate) gateway: NamespacedName,
    /// Only its listener of this name.
    pub(crate) section: Option<String>,
    /// Only its listeners on this port.
    pub(crate) port: Option<u16>,
}

/// How names in an object are to be understood.
#[derive(Clone, Copy)]
struct Names<'n> {
    namespace: &'n str,
    domain: &'n str,
}

/// Compiles one `HTTPRoute` of a cluster with this domain.
pub(crate) fn http(object: &HttpRoute, domain: &str) -> Compiled {
    let spec = &object.spec;
    let mut notes = Notes::default();
    let key = NamespacedName::of(&object.metadata);
    let names = Names {
        namespace: &key.namespace,
        domain,
    };
    let mut rules = Vec::new();
    for (index, rule) in (0_u32..).zip(&spec.rules) {
        let field = format!("spec.rules[{index}]");
        let origin = origin(
            Kind::HttpRoute,
            &object.metadata,
            index,
            rule.name.as_deref(),
        );
        let errors = notes.errors();
        let matches = matches::http(&field, rule, &mut notes);
        if notes.errors() > errors {
            continue;
        }
        let rule = Arc::new(self::rule(&field, rule, origin, names, &mut notes));
        rules.push(Parts {
            matches,
            rule,
            delegate: None,
        });
    }
    let attached = (&*spec.parent_refs, &*spec.hostnames);
    compiled(attached, names, rules, notes)
}

/// Compiles one `GRPCRoute` of a cluster with this domain.
pub(crate) fn grpc(object: &GrpcRoute, domain: &str) -> Compiled {
    let spec = &object.spec;
    let mut notes = Notes::default();
    let key = NamespacedName::of(&object.metadata);
    let names = Names {
        namespace: &key.namespace,
        domain,
    };
    let mut rules = Vec::new();
    for (index, rule) in (0_u32..).zip(&spec.rules) {
        let field = format!("spec.rules[{index}]");
        let origin = origin(
            Kind::GrpcRoute,
            &object.metadata,
            index,
            rule.name.as_deref(),
        );
        let errors = notes.errors();
        let matches = matches::grpc(&field, &rule.matches, &mut notes);
        if notes.errors() > errors {
            continue;
        }
        // What is done with a request is said in the same words.
        let written = HttpRule {
            filters: rule.filters.clone(),
            backend_refs: rule.backend_refs.clone(),
            session_persistence: rule.session_persistence.clone(),
            ..HttpRule::default()
        };
        let rule = Arc::new(self::rule(&field, &written, origin, names, &mut notes));
        rules.push(Parts {
            matches,
            rule,
            delegate: None,
        });
    }
    let attached = (&*spec.parent_refs, &*spec.hostnames);
    compiled(attached, names, rules, notes)
}

/// Compiles one `TLSRoute` or `TCPRoute` of a cluster with this domain.
pub(crate) fn connections(
    kind: manifest::Kind,
    object: &ConnectionRoute,
    domain: &str,
) -> Compiled {
    let spec = &object.spec;
    let mut notes = Notes::default();
    let key = NamespacedName::of(&object.metadata);
    let names = Names {
        namespace: &key.namespace,
        domain,
    };
    let (kind, hostnames) = match kind {
        manifest::Kind::TlsRoute => (Kind::TlsRoute, &*spec.hostnames),
        _ => (Kind::TcpRoute, &[][..]),
    };
    if kind == Kind::TlsRoute && hostnames.is_empty() {
        notes.error("spec.hostnames", "is missing");
    }
    let server_names = hostnames.iter().map(|host| HostPattern::new(host));
    let connection = ConnectionMatch {
        server_names: server_names.collect(),
        subnets: Vec::new(),
    };
    let mut rules = Vec::new();
    for (index, rule) in (0_u32..).zip(&spec.rules) {
        let origin = origin(kind, &object.metadata, index, rule.name.as_deref());
        // What is done with a connection is said in words for requests, of which it has few.
        let written = HttpRule {
            backend_refs: rule.backend_refs.clone(),
            ..HttpRule::default()
        };
        let field = format!("spec.rules[{index}]");
        let rule = self::rule(&field, &written, origin, names, &mut notes);
        rules.push(Parts {
            matches: vec![Match {
                connection: Some(Box::new(connection.clone())),
                ..Match::default()
            }],
            rule: Arc::new(rule),
            delegate: None,
        });
    }
    compiled((&spec.parent_refs, hostnames), names, rules, notes)
}

/// A route with these rules, attached to these parents under these hosts.
fn compiled(
    (parent_refs, hostnames): (&[ParentRef], &[String]),
    names: Names<'_>,
    rules: Vec<Parts>,
    mut notes: Notes,
) -> Compiled {
    Compiled {
        parents: parents(parent_refs, names, &mut notes),
        gateways: gateways(parent_refs, names),
        hostnames: hostnames
            .iter()
            .map(|host| HostPattern::new(host))
            .collect(),
        rules,
        notes: notes.0,
    }
}

fn origin(kind: Kind, metadata: &ObjectMeta, rule: u32, rule_name: Option<&str>) -> Origin {
    let key = NamespacedName::of(metadata);
    Origin {
        kind,
        namespace: key.namespace,
        name: key.name,
        rule,
        rule_name: rule_name.filter(|name| !name.is_empty()).map(Arc::from),
    }
}

fn parents(
    written: &[ParentRef],
    names: Names<'_>,
    notes: &mut Notes,
) -> Vec<(ServiceKey, Option<u16>)> {
    let mut parents = Vec::new();
    for (index, parent) in written.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        if (group, kind) == (GATEWAY_GROUP, "Gateway") {
            continue;
        }
        if (group, kind) != ("", "Service") {
            let message = format!(
                "a parent of kind {kind} is not supported yet: the route has no effect there"
            );
            notes.warning(field, message);
            continue;
        }
        if parent
            .section_name
            .as_deref()
            .is_some_and(|name| !name.is_empty())
        {
            let message = "is not supported for a Service; name the port";
            notes.error(format!("{field}.sectionName"), message);
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(names.namespace);
        parents.push((service(&parent.name, namespace, names.domain), parent.port));
    }
    parents
}

fn gateways(written: &[ParentRef], names: Names<'_>) -> Vec<GatewayParent> {
    let of_gateway = written.iter().filter(|parent| {
        parent.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
            && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway"
    });
    let parents = of_gateway.map(|parent| GatewayParent {
        gateway: NamespacedName::new(
            parent.namespace.as_deref().unwrap_or(names.namespace),
            &parent.name,
        ),
        section: parent.section_name.clone().filter(|name| !name.is_empty()),
        port: parent.port,
    });
    parents.collect()
}

fn service(name: &str, namespace: &str, domain: &str) -> ServiceKey {
    ServiceKey::new(namespace, format!("{name}.{namespace}.svc.{domain}"))
}

fn rule(
    field: &str,
    written: &HttpRule,
    origin: Origin,
    names: Names<'_>,
    notes: &mut Notes,
) -> Rule {
    let errors = notes.errors();
    let filters = filters::read(&format!("{field}.filters"), &written.filters, names, notes);
    if written.session_persistence.is_some() {
        notes.error(format!("{field}.sessionPersistence"), "is not supported");
    }
    let timeouts = written.timeouts.as_ref();
    let mut timeout = |name: &str, text: Option<&str>| {
        let read = notes.optional_duration(&format!("{field}.timeouts.{name}"), text);
        read.filter(|timeout| !timeout.is_zero())
    };
    let request_timeout = timeout("request", timeouts.and_then(|t| t.request.as_deref()));
    let attempt_timeout = timeout(
        "backendRequest",
        timeouts.and_then(|t| t.backend_request.as_deref()),
    );
    let retries = retries(field, written, attempt_timeout.is_some(), notes);
    let backends = backends(
        &format!("{field}.backendRefs"),
        &written.backend_refs,
        names,
        notes,
    );
    let mut first = notes
        .0
        .iter()
        .filter(|n| n.severity == manifest::Severity::Error);
    let action = match (first.nth(errors), filters.redirect) {
        // A filter that cannot be carried out fails the request (`HTTPRouteRule.filters`).
        (Some(first), _) => Action::Fail(format!("{}: {}", first.field, first.message).into()),
        (None, Some(redirect)) => Action::Redirect(redirect),
        (None, None) => Action::Forward(Forward {
            backends,
            rewrite: filters.rewrite,
            retries: retries.into(),
            attempt_timeout,
            mirrors: filters.mirrors,
        }),
    };
    Rule::new(
        origin,
        Treatment {
            action,
            timeout: request_timeout,
            fault: None,
            cors: filters.cors.map(Box::new),
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
        },
    )
}

fn retries(field: &str, written: &HttpRule, attempt_ends: bool, notes: &mut Notes) -> Retries {
    let Some(retry) = &written.retry else {
        return Retries::standard();
    };
    let field = format!("{field}.retry");
    let statuses = retry.codes.iter().filter_map(|code| {
        let status = StatusCode::from_u16(*code).ok();
        if status.is_none() {
            notes.error(
                format!("{field}.codes"),
                format!("{code} is no HTTP status"),
            );
        }
        status
    });
    let statuses: Vec<StatusCode> = statuses.collect();
    Retries {
        attempts: retry.attempts.unwrap_or(1),
        // "Connection errors" and timeouts of an attempt are tried again too (`HTTPRouteRetry`).
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset: true,
            reset_before_request: true,
            statuses: true,
            attempt_timeout: attempt_ends,
            ..RetryOn::default()
        },
        statuses,
        backoff: notes.optional_duration(&format!("{field}.backoff"), retry.backoff.as_deref()),
        other_localities: false,
    }
}

fn backends(
    field: &str,
    written: &[BackendRef],
    names: Names<'_>,
    notes: &mut Notes,
) -> Vec<WeightedBackend> {
    let mut backends = Vec::new();
    for (index, backend) in written.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let of_backend = filters::read(&format!("{field}.filters"), &backend.filters, names, notes);
        if of_backend.redirect.is_some()
            || !of_backend.mirrors.is_empty()
            || of_backend.cors.is_some()
        {
            let message =
                "only modifiers of headers and a rewrite of the host are supported for one backend";
            notes.error(format!("{field}.filters"), message);
        }
        if of_backend.rewrite.path.is_some() {
            let message = "a rewrite of the path is not supported for one backend";
            notes.error(format!("{field}.filters"), message);
        }
        backends.push(WeightedBackend {
            backend: self::backend(&field, backend, names, notes),
            weight: backend.weight.unwrap_or(1),
            request_headers: of_backend.request_headers,
            response_headers: of_backend.response_headers,
            authority: of_backend.rewrite.authority,
        });
    }
    backends
}

/// A reference that leads nowhere fails its share of the requests with 500 (`HTTPBackendRef`).
fn backend(field: &str, written: &BackendRef, names: Names<'_>, notes: &mut Notes) -> Backend {
    let mut invalid = |field: String, reason: String| {
        notes.warning(
            field,
            format!("{reason}: its share of the requests gets 500"),
        );
        Backend::Invalid {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: reason.into(),
        }
    };
    let group = written.group.as_deref().unwrap_or_default();
    let kind = written.kind.as_deref().unwrap_or("Service");
    if (group, kind) != ("", "Service") {
        return invalid(
            format!("{field}.kind"),
            format!("a backend of kind {kind} is not supported"),
        );
    }
    let Some(port) = written.port else {
        return invalid(format!("{field}.port"), "a Service needs a port".to_owned());
    };
    let namespace = written.namespace.as_deref().unwrap_or(names.namespace);
    Backend::Cluster(ClusterKey {
        service: service(&written.name, namespace, names.domain),
        port,
        subset: None,
    })
}

/// Header operations of a rule or a backend.
type Operations = HeaderOperations;

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

#[cfg(test)]
mod tests;
