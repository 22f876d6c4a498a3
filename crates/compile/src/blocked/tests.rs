use manifest::Authorship;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, node: &str, ip: &str) -> PodFacts {
    let pod = json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": ip, "podIPs": [{"ip": ip}]},
    });
    let pod = serde_json::from_value(pod).expect("a pod");
    PodFacts::read(&pod, Authorship::Tenant)
}

fn policy(name: &str, spec: Value) -> NetworkPolicyFacts {
    let policy = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    NetworkPolicyFacts::read(&serde_json::from_value(policy).expect("a policy"))
}

/// The policies that are named, with the port that is lost, of a client and a server on two nodes.
fn said(specs: &[(&str, Value)]) -> Vec<(String, bool, u16)> {
    let policies: Vec<_> = specs
        .iter()
        .map(|(name, spec)| policy(name, spec.clone()))
        .collect();
    let namespaces = HashMap::from([("shop".into(), Labels::new())]);
    let pods = [
        pod("client", "n1", "10.244.1.2"),
        pod("server", "n2", "10.244.2.2"),
    ];
    let found = blocked(&policies, &namespaces, &pods);
    found
        .into_iter()
        .map(|one| (one.policy, one.ingress, one.port))
        .collect()
}

fn of_server(ingress: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": ingress})
}

/// Issue 11, B12.
#[test]
fn a_policy_that_allows_a_port_and_not_that_of_tunnels_is_named_with_a_connection() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    let allow = of_server(json!([{"from": from, "ports": [{"port": 8080}]}]));
    let named = of_server(json!([{"from": from, "ports": [{"port": "web"}]}]));
    let one = |port| vec![("shop/allow".to_owned(), true, port)];
    assert_eq!(said(&[("allow", allow.clone())]), one(8080));
    assert_eq!(said(&[("allow", named)]), one(8080));
    let beside = of_server(json!([{"from": from, "ports": [{"port": 15008}]}]));
    assert_eq!(said(&[("allow", allow), ("tunnels", beside)]), []);
}

#[test]
fn what_is_refused_without_the_mesh_too_and_what_lets_tunnels_pass_is_not_named() {
    for ingress in [
        json!([]),
        json!([{}]),
        json!([{"from": [{"podSelector": {"matchLabels": {"app": "other"}}}], "ports": [{"port": 8080}]}]),
        json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"]}}], "ports": [{"port": 8080}]}]),
        json!([{"ports": [{"port": 8000, "endPort": 16000}]}]),
        json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]),
    ] {
        assert_eq!(said(&[("a", of_server(ingress.clone()))]), [], "{ingress}");
    }
}

#[test]
fn egress_is_looked_at_where_the_connection_comes_from() {
    let out = json!({
        "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.244.0.0/16"}}], "ports": [{"port": 8080}]}],
    });
    let named = [("shop/out".to_owned(), false, 8080)];
    assert_eq!(said(&[("out", out.clone())]), named);
    // Both ends have to allow it.
    assert_eq!(said(&[("out", out), ("in", of_server(json!([])))]), []);
}
