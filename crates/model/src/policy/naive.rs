//! The semantics of policies a second time, read from the prose of Istio's reference and written
//! without regard for speed, for the property test to compare with.
//!
//! - A connection is denied if any DENY policy matches it. Else it is allowed if there is no ALLOW
//!   policy. Else it is allowed if some ALLOW policy matches it. Else it is denied.
//! - A policy matches if one of its rules does; a rule if all of its clauses do; a clause if it
//!   has no matches or one of them holds.
//! - A match holds if it says anything at all and every field of it holds. A field holds if one of
//!   its values fits, and of its `not` values none.
//! - No value fits what the connection does not have.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Connection, Match, Policy, ServiceAccountMatch, StringMatch};

pub(super) fn allows(policies: &[Policy], connection: &Connection<'_>) -> bool {
    let mut denied = false;
    let mut allow_policies = 0;
    let mut allowed = 0;
    for policy in policies {
        if policy.dry_run {
            continue;
        }
        let matches = policy_matches(policy, connection);
        match policy.action {
            Action::Deny => denied |= matches,
            Action::Allow => {
                allow_policies += 1;
                allowed += usize::from(matches);
            }
        }
    }
    !denied && (allow_policies == 0 || allowed > 0)
}

fn policy_matches(policy: &Policy, connection: &Connection<'_>) -> bool {
    let mut rules_that_match = 0;
    for rule in &policy.rules {
        let mut failing = 0;
        for clause in &rule.clauses {
            let holding = clause.matches.iter().filter(|m| holds(m, connection));
            if !clause.matches.is_empty() && holding.count() == 0 {
                failing += 1;
            }
        }
        if failing == 0 {
            rules_that_match += 1;
        }
    }
    rules_that_match > 0
}

/// What each value of one field says, first the values and then the `not` values.
type Field = (Vec<bool>, Vec<bool>);

fn holds(m: &Match, connection: &Connection<'_>) -> bool {
    let fields: [Field; 6] = [
        (
            texts(&m.namespaces, namespace(connection)),
            texts(&m.not_namespaces, namespace(connection)),
        ),
        (
            texts(&m.principals, principal(connection)),
            texts(&m.not_principals, principal(connection)),
        ),
        (
            ranges(&m.source_ips, connection.source_ip),
            ranges(&m.not_source_ips, connection.source_ip),
        ),
        (
            ranges(&m.destination_ips, connection.destination_ip),
            ranges(&m.not_destination_ips, connection.destination_ip),
        ),
        (
            ports(&m.destination_ports, connection),
            ports(&m.not_destination_ports, connection),
        ),
        (
            accounts(&m.service_accounts, connection),
            accounts(&m.not_service_accounts, connection),
        ),
    ];
    let says_anything = fields.iter().any(|(yes, no)| yes.len() + no.len() > 0);
    let all_hold = fields
        .iter()
        .all(|(yes, no)| (yes.is_empty() || yes.contains(&true)) && !no.contains(&true));
    says_anything && all_hold
}

fn namespace(connection: &Connection<'_>) -> Option<String> {
    connection.source.map(|source| source.namespace.to_string())
}

fn principal(connection: &Connection<'_>) -> Option<String> {
    let id = connection.source?.to_string();
    Some(id.trim_start_matches("spiffe://").to_owned())
}

fn texts(values: &[StringMatch], text: Option<String>) -> Vec<bool> {
    let fits = |value: &StringMatch| match (value, &text) {
        (_, None) => false,
        (StringMatch::Exact(value), Some(text)) => **value == *text,
        (StringMatch::Prefix(value), Some(text)) => text.get(..value.len()) == Some(value),
        (StringMatch::Suffix(value), Some(text)) => {
            value.len() <= text.len() && text.get(text.len() - value.len()..) == Some(value)
        }
        (StringMatch::Presence, Some(text)) => !text.is_empty(),
    };
    values.iter().map(fits).collect()
}

fn ranges(values: &[IpNet], ip: IpAddr) -> Vec<bool> {
    // Everything as IPv6 bits: that is what makes a mapped address equal to the IPv4 one.
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let is_v4 = bits(ip) >> 32 == 0xffff;
    let fits = |range: &IpNet| {
        let length = u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 };
        let differ = bits(range.addr()) ^ bits(ip);
        // A range shorter than the mapped prefix is one of IPv6 addresses.
        !(is_v4 && length < 96) && differ.leading_zeros() >= length
    };
    values.iter().map(fits).collect()
}

fn ports(values: &[u16], connection: &Connection<'_>) -> Vec<bool> {
    values
        .iter()
        .map(|port| connection.destination_port == *port)
        .collect()
}

fn accounts(values: &[ServiceAccountMatch], connection: &Connection<'_>) -> Vec<bool> {
    let name = connection
        .source
        .map(|source| format!("{}/{}", source.namespace, source.service_account));
    values
        .iter()
        .map(|value| Some(format!("{}/{}", value.namespace, value.service_account)) == name)
        .collect()
}
