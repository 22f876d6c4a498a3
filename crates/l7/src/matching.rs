//! Whether the conditions of a match hold, the path apart. Nothing is allocated, but for headers of several lines.

use std::net::IpAddr;

use crate::request::{Client, Request};
use crate::route::{HeaderMatch, Match, PathMatch, QueryMatch};

/// Everything but the path.
pub(crate) fn rest_holds(m: &Match, request: &Request<'_>) -> bool {
    // Destructured, so that a new condition cannot be forgotten here.
    let Match {
        path: _,
        method,
        scheme,
        authority,
        headers,
        query,
        port,
        client_labels,
        client_namespace,
        connection,
    } = m;
    connection.is_none()
        && port.is_none_or(|port| port == request.destination.port())
        && method
            .as_ref()
            .is_none_or(|m| m.holds(request.method.as_str()))
        && scheme.as_ref().is_none_or(|m| m.holds(request.scheme))
        && authority
            .as_ref()
            .is_none_or(|m| m.holds(request.authority))
        && client_namespace
            .as_deref()
            .is_none_or(|namespace| request.client.namespace == Some(namespace))
        && labels_hold(client_labels, request.client)
        && headers.iter().all(|m| header_holds(m, request))
        && query.iter().all(|m| query_holds(m, request))
}

/// Whether a match is for a connection of a client to a port, and its conditions hold; `address` is what was dialled.
pub(crate) fn connection_holds(
    m: &Match,
    client: Client<'_>,
    (address, port): (IpAddr, u16),
    server_name: Option<&str>,
) -> bool {
    let of_connection = m.connection.as_ref();
    of_connection.is_some_and(|one| one.holds(address, server_name))
        && m.port.is_none_or(|wanted| wanted == port)
        && m.client_namespace
            .as_deref()
            .is_none_or(|namespace| client.namespace == Some(namespace))
        && labels_hold(&m.client_labels, client)
}

/// Whether there is nothing but the path.
pub(crate) fn is_path_alone(m: &Match) -> bool {
    Match {
        path: PathMatch::Any,
        ..m.clone()
    } == Match::default()
}

/// A client that is not known has no labels.
fn labels_hold(wanted: &[(std::sync::Arc<str>, std::sync::Arc<str>)], client: Client<'_>) -> bool {
    wanted.is_empty()
        || client.labels.is_some_and(|labels| {
            wanted
                .iter()
                .all(|(name, value)| labels.get(name) == Some(value))
        })
}

fn header_holds(m: &HeaderMatch, request: &Request<'_>) -> bool {
    let holds = request
        .header(&m.name)
        .is_some_and(|value| m.value.holds(&value));
    holds != m.negated
}

fn query_holds(m: &QueryMatch, request: &Request<'_>) -> bool {
    request
        .query_parameter(&m.name)
        .is_some_and(|value| m.value.holds(value))
}

/// Whether what follows the prefix begins a new segment, or is nothing.
pub(crate) fn ends_segment(path: &str, prefix: &str) -> bool {
    path.as_bytes()
        .get(prefix.len())
        .is_none_or(|next| *next == b'/')
}
