//! Whether the conditions of a rule hold for a connection. No allocation: this runs for every
//! connection and every policy.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Connection, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::identity::Identity;

pub(super) fn rule_holds(rule: &Rule, connection: &Connection<'_>) -> bool {
    rule.clauses.iter().all(|clause| {
        clause.matches.is_empty() || clause.matches.iter().any(|m| match_holds(m, connection))
    })
}

/// `connection` must be canonical.
pub(super) fn match_holds(m: &Match, connection: &Connection<'_>) -> bool {
    !is_empty(m)
        && field_holds(&m.destination_ports, &m.not_destination_ports, |&port| {
            port == connection.destination_port
        })
        && field_holds(&m.namespaces, &m.not_namespaces, |namespace| {
            connection
                .source
                .is_some_and(|source| namespace.holds_for(&[&source.namespace]))
        })
        && field_holds(&m.service_accounts, &m.not_service_accounts, |account| {
            connection
                .source
                .is_some_and(|source| account.holds_for(source))
        })
        && field_holds(&m.principals, &m.not_principals, |principal| {
            connection
                .source
                .is_some_and(|source| principal.holds_for(&source.principal_parts()))
        })
        && field_holds(&m.source_ips, &m.not_source_ips, |range| {
            contains(range, connection.source_ip)
        })
        && field_holds(&m.destination_ips, &m.not_destination_ips, |range| {
            contains(range, connection.destination_ip)
        })
}

/// `condition` is false for a connection that does not have what it asks about, so a missing
/// identity fails every positive value and passes every negative one.
fn field_holds<T>(positive: &[T], negative: &[T], condition: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&condition)) && !negative.iter().any(&condition)
}

fn is_empty(m: &Match) -> bool {
    // Destructured, so that a new field cannot be forgotten here.
    let Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
    } = m;
    namespaces.is_empty()
        && not_namespaces.is_empty()
        && principals.is_empty()
        && not_principals.is_empty()
        && source_ips.is_empty()
        && not_source_ips.is_empty()
        && destination_ips.is_empty()
        && not_destination_ips.is_empty()
        && destination_ports.is_empty()
        && not_destination_ports.is_empty()
        && service_accounts.is_empty()
        && not_service_accounts.is_empty()
}

fn contains(range: &IpNet, ip: IpAddr) -> bool {
    match (range, ip) {
        // A range of mapped addresses was meant for IPv4 clients of dual-stack sockets.
        (IpNet::V6(range), IpAddr::V4(ip)) if range.prefix_len() >= MAPPED_PREFIX => {
            range.contains(&ip.to_ipv6_mapped())
        }
        _ => range.contains(&ip),
    }
}

/// Length of `::ffff:0:0`, RFC 4291 section 2.5.5.2.
const MAPPED_PREFIX: u8 = 96;

impl StringMatch {
    /// Whether the concatenation of `parts` fulfils the condition.
    fn holds_for(&self, parts: &[&str]) -> bool {
        match self {
            Self::Exact(text) => strip_exactly(text, parts),
            Self::Prefix(text) => starts_with(parts, text),
            Self::Suffix(text) => ends_with(parts, text),
            Self::Presence => parts.iter().any(|part| !part.is_empty()),
        }
    }
}

impl ServiceAccountMatch {
    fn holds_for(&self, source: &Identity) -> bool {
        self.service_account == source.service_account && self.namespace == source.namespace
    }
}

fn strip_exactly(text: &str, parts: &[&str]) -> bool {
    let mut rest = text.as_bytes();
    for part in parts {
        let Some(tail) = rest.strip_prefix(part.as_bytes()) else {
            return false;
        };
        rest = tail;
    }
    rest.is_empty()
}

fn starts_with(parts: &[&str], prefix: &str) -> bool {
    let mut rest = prefix.as_bytes();
    for part in parts.iter().map(|part| part.as_bytes()) {
        if rest.len() <= part.len() {
            return part.starts_with(rest);
        }
        let Some(tail) = rest.strip_prefix(part) else {
            return false;
        };
        rest = tail;
    }
    rest.is_empty()
}

fn ends_with(parts: &[&str], suffix: &str) -> bool {
    let mut rest = suffix.as_bytes();
    for part in parts.iter().rev().map(|part| part.as_bytes()) {
        if rest.len() <= part.len() {
            return part.ends_with(rest);
        }
        let Some(head) = rest.strip_suffix(part) else {
            return false;
        };
        rest = head;
    }
    rest.is_empty()
}
