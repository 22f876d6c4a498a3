//! What a waypoint routes by, as `keelson proxy-config` shows it.

use std::collections::HashMap;
use std::net::SocketAddr;

use admin_api::{ProxyCluster, ProxyConfig, ProxyEndpoint, ProxyListener, ProxyRoute};
use l7::ClusterKey;
use l7::backend::{Cluster, TlsMode};
use l7::listener::Reads;
use l7::route::{Action, Attachment, Backend, Match, PathMatch, RouteRule};
use l7::text::TextMatch;

use crate::active::Active;
use crate::balance::state::{self, Registry};

/// All of it, of the newest configuration and what is known of endpoints.
pub(crate) fn all(
    active: &Active,
    rules: impl Iterator<Item = RouteRule>,
    registry: &Registry,
) -> ProxyConfig {
    let listeners = active.l7.listeners().values().flatten();
    let listeners = listeners.map(|one| ProxyListener {
        name: one.name.to_string(),
        port: one.port,
        host: one.host.to_string(),
        tls: one.tls.is_some(),
        mutual: one.client_roots.is_some(),
        reads: match one.reads {
            Reads::Requests => "requests",
            Reads::Names => "names",
            Reads::Nothing => "nothing",
        }
        .to_owned(),
        hosts: one.hosts.iter().map(|host| host.host.to_string()).collect(),
    });
    let rules: Vec<RouteRule> = rules.collect();
    let mut rules: Vec<(&Attachment, &RouteRule)> = rules
        .iter()
        .flat_map(|rule| rule.attachments.iter().map(move |at| (at, rule)))
        .collect();
    rules.sort_by_key(|(at, rule)| (*at, &rule.precedence, rule.rule.origin.rule));
    let routes = rules.into_iter().map(|(at, rule)| route(at, rule));
    let alone = registry.left_alone();
    let mut clusters: Vec<ProxyCluster> = active
        .l7
        .clusters()
        .map(|one| cluster(one, &alone))
        .collect();
    clusters.sort_by(|a, b| (&a.service, a.port, &a.subset).cmp(&(&b.service, b.port, &b.subset)));
    ProxyConfig {
        generation: active.generation,
        listeners: listeners.collect(),
        routes: routes.collect(),
        clusters,
    }
}

type Alone = HashMap<(String, SocketAddr), (&'static str, u64)>;

fn cluster(one: &Cluster, alone: &Alone) -> ProxyCluster {
    let name = state::name(&one.key);
    let endpoints = one.members.iter().map(|member| ProxyEndpoint {
        workload: member.endpoint.uid.to_string(),
        address: member.address,
        ready: member.ready,
        weight: member.endpoint.weight,
        left_alone: alone
            .get(&(name.clone(), member.address))
            .map(|(cause, left)| ((*cause).to_owned(), *left)),
    });
    ProxyCluster {
        service: one.key.service.to_string(),
        port: one.key.port,
        subset: one.key.subset.as_ref().map(ToString::to_string),
        object: one.origin.as_ref().map(ToString::to_string),
        tls: match &one.policy.tls {
            Some(TlsMode::Simple { sni, .. }) => {
                let name = sni.as_ref().unwrap_or(&one.key.service.hostname);
                Some(name.to_string())
            }
            _ => None,
        },
        endpoints: endpoints.collect(),
        name,
    }
}

fn route(at: &Attachment, rule: &RouteRule) -> ProxyRoute {
    ProxyRoute {
        on: at.service.to_string(),
        port: at.port,
        clients: at.client_namespace.as_ref().map(ToString::to_string),
        when: rule.matches.iter().map(condition).collect(),
        to: action(&rule.rule.action),
        object: rule.rule.origin.to_string(),
    }
}

/// The conditions of a match in words.
fn condition(m: &Match) -> String {
    let mut all = Vec::new();
    match &m.path {
        PathMatch::Any => {}
        PathMatch::Exact(path) => all.push(format!("path = {path}")),
        PathMatch::Prefix(path) => all.push(format!("path {path}*")),
        PathMatch::Segments(path) if path.is_empty() => {}
        PathMatch::Segments(path) => all.push(format!("path {path} and below")),
        PathMatch::Text(of) => all.push(format!("path {}", text(of))),
    }
    for (what, of) in [
        ("method", &m.method),
        ("scheme", &m.scheme),
        ("authority", &m.authority),
    ] {
        all.extend(of.iter().map(|of| format!("{what} {}", text(of))));
    }
    for header in &m.headers {
        let not = if header.negated { "not " } else { "" };
        all.push(format!(
            "{not}header {} {}",
            header.name,
            text(&header.value)
        ));
    }
    for query in &m.query {
        all.push(format!("query {} {}", query.name, text(&query.value)));
    }
    all.extend(m.port.map(|port| format!("port {port}")));
    for (name, value) in &m.client_labels {
        all.push(format!("client label {name}={value}"));
    }
    all.extend(
        m.client_namespace
            .iter()
            .map(|of| format!("client namespace {of}")),
    );
    if let Some(connection) = &m.connection {
        let names = connection
            .server_names
            .iter()
            .map(|name| format!("SNI {name}"));
        let subnets = connection
            .subnets
            .iter()
            .map(|subnet| format!("to {subnet}"));
        all.extend(names.chain(subnets));
    }
    match all.is_empty() {
        true => "always".to_owned(),
        false => all.join(", "),
    }
}

fn text(of: &TextMatch) -> String {
    match of {
        TextMatch::Exact(text) => format!("= {text}"),
        TextMatch::ExactIgnoringCase(text) => format!("= {text} (any case)"),
        TextMatch::Prefix(text) => format!("{text}*"),
        TextMatch::PrefixIgnoringCase(text) => format!("{text}* (any case)"),
        TextMatch::Suffix(text) => format!("*{text}"),
        TextMatch::Regex(pattern) => format!("~ {}", pattern.pattern()),
        TextMatch::Present => "is there".to_owned(),
    }
}

/// What happens, in words; a text a backend.
pub(crate) fn action(action: &Action) -> Vec<String> {
    match action {
        Action::Forward(to) => {
            let total: u64 = to.backends.iter().map(|one| u64::from(one.weight)).sum();
            if total == 0 {
                return vec!["500: no backend has a share".to_owned()];
            }
            let backends = to.backends.iter().map(|one| {
                let name = match &one.backend {
                    Backend::Cluster(key) => aimed(key),
                    Backend::Invalid { status, reason } => format!("{}: {reason}", status.as_u16()),
                };
                match to.backends.len() {
                    1 => name,
                    _ => format!("{name} ({} of {total})", one.weight),
                }
            });
            let mirrors = to.mirrors.iter();
            let mirrors = mirrors.map(|one| format!("copy to {}", aimed(&one.backend)));
            backends.chain(mirrors).collect()
        }
        Action::Redirect(to) => vec![format!("redirect, {}", to.status.as_u16())],
        Action::Respond(to) => vec![format!("answer, {}", to.status.as_u16())],
        Action::Fail(reason) => vec![format!("500: {reason}")],
    }
}

/// The name of a cluster as a rule says it: without a port it is that of the port that was dialled.
fn aimed(key: &ClusterKey) -> String {
    match key.port {
        0 => state::name(key).replacen("|0|", "|*|", 1),
        _ => state::name(key),
    }
}

#[cfg(test)]
mod tests;
