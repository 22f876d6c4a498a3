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

/// The policies that keep a tunnel of some pair away, by going through all pairs of pods.
fn by_pairs(
    policies: &[NetworkPolicyFacts],
    namespaces: &HashMap<Arc<str>, Labels>,
    pods: &[PodFacts],
) -> BTreeSet<(String, bool)> {
    let network = Network {
        namespaces,
        policies,
    };
    let isolating = |pod: &PodFacts, ingress: bool| {
        let mut all = selecting(policies, pod);
        all.retain(|policy| rules_of(policy, ingress).is_some());
        all
    };
    let allows = |pod: &PodFacts, ingress, peer: &PodFacts, server: &PodFacts, port| {
        let all = isolating(pod, ingress);
        let is_allowed = |policy: &&NetworkPolicyFacts| {
            let mut rules = rules_of(policy, ingress).into_iter().flatten();
            rules.any(|rule| {
                network.is_peer(rule, &policy.key.namespace, peer) && reaches(rule, server, port)
            })
        };
        all.is_empty() || all.iter().any(is_allowed)
    };
    let mut found = BTreeSet::new();
    for server in pods {
        for client in pods.iter().filter(|client| client.node != server.node) {
            let comes_in = |port| allows(server, true, client, server, port);
            let goes_out = |port| allows(client, false, server, server, port);
            let passes = |port| comes_in(port) && goes_out(port);
            // Ports of the rules below, one beside them, and the pods' own.
            let ports = [80, 443, 8000, 8080, 9000];
            if passes(TUNNEL) || !ports.into_iter().any(passes) {
                continue;
            }
            for (pod, ingress, way) in [
                (server, true, comes_in(TUNNEL)),
                (client, false, goes_out(TUNNEL)),
            ] {
                for policy in isolating(pod, ingress).into_iter().filter(|_| !way) {
                    found.insert((format!("shop/{}", policy.key.name), ingress));
                }
            }
        }
    }
    found
}

proptest::proptest! {
    /// Looking at one pod of each class finds what looking at all pairs of pods finds.
    #[test]
    fn classes_of_pods_find_what_pairs_of_pods_find(
        rules in proptest::collection::vec((0..3_usize, 0..2_usize, 0..6_usize, 0..5_usize), 1..6),
        places in proptest::collection::vec((0..3_usize, 0..3_usize), 2..8),
    ) {
        let apps = ["web", "store", "queue"];
        let policies: Vec<_> = rules.iter().enumerate().map(|(at, (app, way, peer, port))| {
            let peers = match peer {
                0 => json!([{"podSelector": {}}]),
                1 => json!([{"ipBlock": {"cidr": "10.244.0.0/31"}}]),
                2 => json!([]),
                other => json!([{"podSelector": {"matchLabels": {"app": apps[other - 3]}}}]),
            };
            let ports = match port {
                0 => json!([]),
                1 => json!([{"port": 8080}]),
                2 => json!([{"port": 8000, "endPort": 9000}]),
                3 => json!([{"port": "web"}]),
                _ => json!([{"port": 15008}]),
            };
            let (way, peers_at) = [("ingress", "from"), ("egress", "to")][*way];
            let types = [["Ingress"], ["Egress"]][usize::from(way == "egress")];
            policy(&format!("p{at}"), json!({
                "podSelector": {"matchLabels": {"app": apps[*app]}}, "policyTypes": types,
                way: [{peers_at: peers, "ports": ports}],
            }))
        }).collect();
        let namespaces = HashMap::from([("shop".into(), Labels::new())]);
        let pods: Vec<_> = places.iter().enumerate().map(|(at, (app, node))| {
            pod(apps[*app], &format!("n{node}"), &format!("10.244.0.{at}"))
        }).collect();
        let found: BTreeSet<_> = blocked(&policies, &namespaces, &pods)
            .into_iter()
            .map(|one| (one.policy, one.ingress))
            .collect();
        proptest::prop_assert_eq!(found, by_pairs(&policies, &namespaces, &pods));
    }
}

/// The work grows with the kinds of pods: replicas, on however many nodes, are looked at once.
#[test]
fn replicas_are_one_class_on_all_nodes() {
    let policies = [policy(
        "allow",
        of_server(json!([{"ports": [{"port": 8080}]}])),
    )];
    let namespaces = HashMap::from([("shop".into(), Labels::new())]);
    let pods: Vec<_> = (0..200)
        .map(|at| {
            let app = if at % 2 == 0 { "client" } else { "server" };
            pod(app, &format!("n{}", at % 7), &format!("10.244.{at}.2"))
        })
        .collect();
    let network = Network {
        namespaces: &namespaces,
        policies: &policies,
    };
    assert_eq!(network.classes(&pods).len(), 2);
    assert_eq!(blocked(&policies, &namespaces, &pods).len(), 1);
}
