//! What a `VirtualService` says of connections that are not read as HTTP: `tcp`, and `tls` by the name that is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_api::virtual_service::{HttpDestination, RouteDestination, VirtualServiceSpec};
use l7::route::{
    Action, ConnectionMatch, Forward, HeaderOperations, Match, Retries, Rewrite, Rule, Treatment,
};
use l7::{HostPattern, Kind, Origin};
use manifest::NamespacedName;

use super::action::{self, Names};
use crate::l7::Parts;
use crate::l7::notes::Notes;

/// The rules as they are at a gateway, by the name that the object gives it, or in the mesh: those of `tls`, then those of
/// `tcp`.
pub(super) fn rules(
    spec: &VirtualServiceSpec,
    key: &NamespacedName,
    (place, names): (&str, Names<'_>),
    notes: &mut Notes,
) -> Vec<Parts> {
    let mut rules = Vec::new();
    for (index, tls) in (0_u32..).zip(&spec.tls) {
        let section = format!("tls[{index}]");
        let field = format!("spec.{section}");
        if tls.r#match.is_empty() {
            notes.error(format!("{field}.match"), "is missing");
            continue;
        }
        let errors = notes.errors();
        let mut matches = Vec::new();
        for (index, written) in tls.r#match.iter().enumerate() {
            if !is_here(&written.gateways, place) {
                continue;
            }
            let field = format!("{field}.match[{index}]");
            if written.sni_hosts.is_empty() {
                notes.error(format!("{field}.sniHosts"), "is missing");
            }
            let server_names = written.sni_hosts.iter();
            let connection = ConnectionMatch {
                server_names: server_names.map(|name| HostPattern::new(name)).collect(),
                subnets: subnets(&field, &written.destination_subnets, notes),
            };
            let client = (&written.source_labels, written.source_namespace.as_str());
            matches.push(one(connection, written.port, client));
        }
        if notes.errors() == errors && !matches.is_empty() {
            let at = (&*section, index);
            rules.push(parts(at, key, matches, &tls.route, names, notes));
        }
    }
    for (index, tcp) in (0_u32..).zip(&spec.tcp) {
        let section = format!("tcp[{index}]");
        let field = format!("spec.{section}");
        let errors = notes.errors();
        let mut matches = Vec::new();
        for (index, written) in tcp.r#match.iter().enumerate() {
            if !is_here(&written.gateways, place) {
                continue;
            }
            let field = format!("{field}.match[{index}]");
            if !written.source_subnet.is_empty() {
                notes.error(format!("{field}.sourceSubnet"), "is not supported");
            }
            let connection = ConnectionMatch {
                server_names: Vec::new(),
                subnets: subnets(&field, &written.destination_subnets, notes),
            };
            let client = (&written.source_labels, written.source_namespace.as_str());
            matches.push(one(connection, written.port, client));
        }
        if tcp.r#match.is_empty() {
            let always = ConnectionMatch::default();
            matches.push(one(always, None, (&BTreeMap::new(), "")));
        }
        if notes.errors() == errors && !matches.is_empty() {
            let at = (&*section, index);
            rules.push(parts(at, key, matches, &tcp.route, names, notes));
        }
    }
    rules
}

/// Whether a condition counts at a place. Whether the object does is not asked here.
fn is_here(gateways: &[String], place: &str) -> bool {
    gateways.is_empty() || gateways.iter().any(|name| name == place)
}

fn one(
    connection: ConnectionMatch,
    port: Option<u16>,
    (labels, namespace): (&BTreeMap<String, String>, &str),
) -> Match {
    let labels = labels.iter();
    Match {
        port,
        client_labels: labels
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
        client_namespace: (!namespace.is_empty()).then(|| namespace.into()),
        connection: Some(Box::new(connection)),
        ..Match::default()
    }
}

/// Ranges of addresses; an address alone is a range of one.
fn subnets(field: &str, written: &[String], notes: &mut Notes) -> Vec<IpNet> {
    let mut read = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let range = text.parse().ok();
        match range.or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| ip.into())) {
            Some(range) => read.push(range),
            None => notes.error(
                format!("{field}.destinationSubnets[{index}]"),
                format!("{text} is no range of addresses"),
            ),
        }
    }
    read
}

fn parts(
    (section, index): (&str, u32),
    key: &NamespacedName,
    matches: Vec<Match>,
    route: &[RouteDestination],
    names: Names<'_>,
    notes: &mut Notes,
) -> Parts {
    let field = format!("spec.{section}.route");
    if route.is_empty() {
        notes.error(&field, "is missing");
    }
    let route: Vec<HttpDestination> = route
        .iter()
        .map(|one| HttpDestination {
            destination: one.destination.clone(),
            weight: one.weight,
            headers: None,
        })
        .collect();
    let rule = Rule::new(
        Origin {
            kind: Kind::VirtualService,
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
            rule: index,
            rule_name: Some(section.into()),
        },
        Treatment {
            action: Action::Forward(Forward {
                backends: action::backends(&field, &route, names, notes),
                rewrite: Rewrite::default(),
                retries: Retries::standard().into(),
                attempt_timeout: None,
                mirrors: Vec::new(),
            }),
            timeout: None,
            fault: None,
            cors: None,
            request_headers: HeaderOperations::default(),
            response_headers: HeaderOperations::default(),
        },
    );
    Parts {
        matches,
        rule: Arc::new(rule),
        delegate: None,
    }
}
