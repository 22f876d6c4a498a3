//! Envoy as one hop for requests: by itself, and in the place of a waypoint.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::config::{address, generous};
use crate::budget::FEW_ROUTES;
use crate::modes::l7;

/// A listener's part for one service.
#[derive(Debug, Clone, Copy)]
pub(in crate::modes) struct Matched {
    pub(in crate::modes) name: &'static str,
    /// What the client dialled; everything if `None`.
    pub(in crate::modes) dialled: Option<Ipv4Addr>,
}

/// How it is started: two threads, as the sidecars have.
pub(in crate::modes) fn command(program: &Path, file: &Path) -> Result<Vec<String>> {
    let words = [
        l7::text(program)?,
        "-c",
        l7::text(file)?,
        "--concurrency",
        "2",
        "--log-level",
        "warning",
        "--disable-hot-restart",
    ];
    Ok(words.map(str::to_owned).to_vec())
}

/// A listener for each port, and behind each one server.
pub(in crate::modes) fn plain(
    ports: &[(&'static str, u16)],
    servers: &[SocketAddr],
    routes: usize,
) -> Value {
    let listener = |(name, port): &(&'static str, u16)| {
        let matched = Matched {
            name,
            dialled: None,
        };
        json!({
            "name": name,
            "address": address("0.0.0.0", *port),
            "filter_chains": [chain(matched, routes)],
        })
    };
    let names = ports.iter().map(|(name, _)| *name);
    bootstrap(ports.iter().map(listener).collect(), names, servers)
}

/// Where agents hand connections over, behind a PROXY header that says what was dialled.
pub(in crate::modes) fn waypoint(matched: &[Matched], servers: &[SocketAddr]) -> Value {
    let chains: Vec<Value> = matched.iter().map(|one| chain(*one, FEW_ROUTES)).collect();
    let listener = json!({
        "name": "handed-over",
        "address": address("127.0.0.1", 15088),
        "listener_filters": [{"name": "envoy.filters.listener.proxy_protocol", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        }}],
        "filter_chains": chains,
    });
    let names = matched.iter().map(|one| one.name);
    bootstrap(vec![listener], names, servers)
}

fn bootstrap(
    listeners: Vec<Value>,
    names: impl Iterator<Item = &'static str>,
    servers: &[SocketAddr],
) -> Value {
    let clusters: Vec<Value> = names.zip(servers).map(cluster).collect();
    json!({
        "node": {"id": "hop", "cluster": "bench"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {
            "overload.global_downstream_max_connections": 1_000_000,
        }}]},
    })
}

fn cluster((name, server): (&'static str, &SocketAddr)) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [generous()]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": address(&server.ip().to_string(), server.port())},
        }]}]},
    })
}

fn chain(matched: Matched, count: usize) -> Value {
    let name = matched.name;
    let to = |prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": name, "timeout": "0s"}});
    let mut routes: Vec<Value> = (1..count)
        .map(|index| to(&l7::other_prefix(index)))
        .collect();
    routes.push(to("/"));
    let mut chain = json!({
        "name": name,
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"name": name, "validate_clusters": false, "virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": routes,
            }]},
            "http_filters": [policy(), {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            }}],
            "use_remote_address": false,
            "generate_request_id": true,
            "normalize_path": true,
            "stream_idle_timeout": "0s",
        }}],
    });
    if let (Some(dialled), Some(chain)) = (matched.dialled, chain.as_object_mut()) {
        let range = json!({"address_prefix": dialled.to_string(), "prefix_len": 32});
        let only = json!({"prefix_ranges": [range]});
        chain.insert("filter_chain_match".to_owned(), only);
    }
    chain
}

/// What Istio makes of a policy that allows two methods on two paths.
fn policy() -> Value {
    let method =
        |name: &str| json!({"header": {"name": ":method", "string_match": {"exact": name}}});
    let path = |path: &str| json!({"url_path": {"path": {"exact": path}}});
    json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "ALLOW", "policies": {"load": {
            "permissions": [{"and_rules": {"rules": [
                {"or_rules": {"rules": [method("POST"), method("GET")]}},
                {"or_rules": {"rules": [path("/load"), path("/bulk")]}},
            ]}}],
            "principals": [{"any": true}],
        }}},
    }})
}
