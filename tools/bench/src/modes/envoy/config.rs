//! The configuration of one sidecar: what a proxy of Istio has for such traffic, without the parts
//! that only its own build of Envoy knows.

use serde_json::{Value, json};

use super::{INBOUND, OUTBOUND, Protocol, Secret};

/// A static bootstrap without an admin page.
pub(super) fn bootstrap(protocol: Protocol, name: &str, secret: &Secret) -> Value {
    json!({
        "node": {"id": name, "cluster": "bench"},
        "static_resources": {
            "listeners": [outbound(protocol), inbound(protocol, secret)],
            "clusters": [to_mesh(protocol, secret), to_application()],
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {
            "overload.global_downstream_max_connections": 1_000_000,
        }}]},
    })
}

/// What the application opens: iptables sends it here.
fn outbound(protocol: Protocol) -> Value {
    json!({
        "name": "outbound",
        "address": address("0.0.0.0", OUTBOUND),
        "traffic_direction": "OUTBOUND",
        "listener_filters": [original_destination()],
        "filter_chains": [{"filters": [filter(protocol, "outbound", TO_MESH)]}],
    })
}

/// What other pods open: mTLS only.
fn inbound(protocol: Protocol, secret: &Secret) -> Value {
    json!({
        "name": "inbound",
        "address": address("0.0.0.0", INBOUND),
        "traffic_direction": "INBOUND",
        "listener_filters": [
            original_destination(),
            {"name": "envoy.filters.listener.tls_inspector", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            }},
        ],
        "filter_chains": [{
            "filter_chain_match": {"transport_protocol": "tls"},
            "filters": [filter(protocol, "inbound", TO_APPLICATION)],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": tls(protocol, secret, "spiffe://cluster.local/"),
            }},
        }],
    })
}

fn to_mesh(protocol: Protocol, secret: &Secret) -> Value {
    let mut cluster = original_destination_cluster(TO_MESH);
    merge(
        &mut cluster,
        json!({
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": tls(protocol, secret, "spiffe://cluster.local/ns/bench/sa/server"),
            }},
        }),
    );
    cluster
}

/// Istio binds this, so that the pod's own rules let the connection through.
fn to_application() -> Value {
    let mut cluster = original_destination_cluster(TO_APPLICATION);
    merge(
        &mut cluster,
        json!({
            "upstream_bind_config": {"source_address": {"address": "127.0.0.6", "port_value": 0}},
        }),
    );
    cluster
}

fn original_destination_cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [generous()]},
    })
}

/// No limits.
pub(super) fn generous() -> Value {
    json!({
        "max_connections": u32::MAX, "max_pending_requests": u32::MAX,
        "max_requests": u32::MAX, "max_retries": u32::MAX,
    })
}

fn filter(protocol: Protocol, prefix: &str, cluster: &str) -> Value {
    match protocol {
        Protocol::Tcp => json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": prefix,
            "cluster": cluster,
        }}),
        Protocol::Http => {
            json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": prefix,
                "route_config": {"name": prefix, "validate_clusters": false, "virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
                }]},
                "http_filters": HTTP_FILTERS.map(http_filter),
                "use_remote_address": false,
                "generate_request_id": true,
                "normalize_path": true,
                "stream_idle_timeout": "0s",
            }})
        }
    }
}

fn http_filter((name, message): (&str, &str)) -> Value {
    let mut config =
        json!({"@type": format!("type.googleapis.com/envoy.extensions.filters.http.{message}")});
    if name == "grpc_stats" {
        merge(
            &mut config,
            json!({"emit_filter_state": true, "stats_for_all_methods": false}),
        );
    }
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
}

fn tls(protocol: Protocol, secret: &Secret, peer_prefix: &str) -> Value {
    json!({
        "alpn_protocols": match protocol {
            Protocol::Http => ["http/1.1"],
            Protocol::Tcp => ["istio"],
        },
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"inline_string": secret.chain},
            "private_key": {"inline_string": secret.key},
        }],
        "validation_context": {
            "trusted_ca": {"inline_string": secret.root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": peer_prefix}}],
        },
    })
}

fn original_destination() -> Value {
    json!({"name": "envoy.filters.listener.original_dst", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    }})
}

pub(super) fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

const TO_MESH: &str = "to-mesh";
const TO_APPLICATION: &str = "to-application";
/// Istio's defaults that plain Envoy has.
const HTTP_FILTERS: [(&str, &str); 4] = [
    ("grpc_stats", "grpc_stats.v3.FilterConfig"),
    ("fault", "fault.v3.HTTPFault"),
    ("cors", "cors.v3.Cors"),
    ("router", "router.v3.Router"),
];
