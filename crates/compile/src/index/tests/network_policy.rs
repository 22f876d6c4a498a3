//! `NetworkPolicy` decides for captured pods as Kubernetes says it does.

use model::policy::{Connection, Policy, Verdict};
use proto::convert;

use super::*;

/// Pods by label, namespace and address; the port `web` is 8080.
const PODS: [(&str, &str, &str); 5] = [
    ("server", "shop", "10.244.1.10"),
    ("cart", "shop", "10.244.1.11"),
    ("db", "shop", "10.244.2.12"),
    ("batch", "jobs", "10.244.2.13"),
    ("odd", "jobs", "10.244.2.14"),
];

fn mesh(policies: &str) -> Mesh {
    let mut index = Index::new(MeshConfig {
        network_policies: true,
        ..MeshConfig::default()
    });
    for namespace in ["shop", "jobs"] {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {namespace}}}}}\n"
        );
        objects(&text).iter().for_each(|one| index.apply(one));
    }
    for (name, namespace, ip) in PODS {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}, annotations: {{keelson.io/pod-ips: {ip}}}}}\n\
             spec: {{nodeName: n1, containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]}}\n"
        );
        objects(&text).iter().for_each(|one| index.apply(one));
    }
    let mut mesh = Mesh { index };
    mesh.apply(policies);
    mesh
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// The verdict of the policies that are served, as an agent decides by them.
fn verdict(mesh: &Mesh, from: &str, to: &str, port: u16) -> Verdict {
    let address = |name: &str| {
        let pod = PODS.iter().find(|(pod, ..)| *pod == name);
        let text = pod.map_or(name, |(.., ip)| ip);
        text.parse().expect("an address")
    };
    let (_, namespace, _) = PODS.iter().find(|(pod, ..)| *pod == to).expect("a pod");
    let named = mesh
        .workload(&format!("{namespace}/{to}"))
        .authorization_policies;
    let served = &mesh.index.snapshot().authorizations;
    let all: Vec<Policy> = served
        .iter()
        .map(|(name, resource)| {
            (
                name.to_string(),
                convert::authorization(name, resource.body()).expect("a policy"),
            )
        })
        .filter(|(name, policy)| {
            policy.scope == model::policy::Scope::Global || named.contains(name)
        })
        .map(|(_, policy)| policy)
        .collect();
    let connection = Connection {
        source: None,
        source_ip: address(from),
        destination_ip: address(to),
        destination_port: port,
    };
    model::policy::decide(all.iter(), &connection)
}

fn passes(mesh: &Mesh, from: &str, to: &str, port: u16) -> bool {
    matches!(verdict(mesh, from, to, port), Verdict::Allow(_))
}

#[test]
fn without_a_policy_everybody_may_and_with_an_empty_one_nobody() {
    let open = mesh("");
    assert!(passes(&open, "cart", "server", 80));
    assert!(open.index.snapshot().authorizations.is_empty());
    let closed = mesh(&policy("shop", "none", "podSelector: {}"));
    for from in ["cart", "db", "batch", "192.0.2.1"] {
        assert!(!passes(&closed, from, "server", 80), "{from}");
    }
    assert!(
        passes(&closed, "cart", "batch", 80),
        "another namespace is not isolated"
    );
}

#[test]
fn peers_and_ports_hold_together_and_policies_add_up() {
    let carts = policy(
        "shop",
        "carts",
        "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: web}]}]",
    );
    let jobs = policy(
        "shop",
        "jobs",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [server, db]}]}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: jobs}}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [odd]}]}}], ports: [{port: 9000, endPort: 9010}]}]",
    );
    let both = mesh(&format!("{carts}{jobs}"));
    for (from, port, expected) in [
        ("cart", 8080, true),
        ("cart", 9000, false),
        ("batch", 9000, true),
        ("batch", 9010, true),
        ("batch", 9011, false),
        ("batch", 8080, false),
        ("odd", 9000, false),
        ("db", 8080, false),
    ] {
        assert_eq!(
            passes(&both, from, "server", port),
            expected,
            "{from} {port}"
        );
    }
    assert!(passes(&both, "batch", "db", 9005));
    assert!(
        !passes(&both, "cart", "db", 8080),
        "the other policy is not for it"
    );
    assert!(passes(&both, "db", "cart", 1), "not isolated");
}

#[test]
fn a_refusal_names_the_objects() {
    let both = mesh(&format!(
        "{}{}",
        policy("shop", "a", "podSelector: {}"),
        policy("shop", "b", "podSelector: {}")
    ));
    let Verdict::Deny(reason) = verdict(&both, "cart", "server", 80) else {
        panic!("allowed");
    };
    let model::policy::DenyReason::Matched { policy, .. } = reason else {
        panic!("{reason:?}");
    };
    let object = policy.key.object().map(|object| object.to_string());
    assert_eq!(object.as_deref(), Some("NetworkPolicy shop/a+b"));
}

#[test]
fn blocks_leave_out_their_exceptions_and_other_protocols_allow_nothing_of_tcp() {
    let mesh = mesh(&format!(
        "{}{}",
        policy(
            "shop",
            "block",
            "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}]}]",
        ),
        policy(
            "shop",
            "dns",
            "podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 53, protocol: UDP}]}]",
        ),
    ));
    for (from, expected) in [
        ("cart", true),
        ("10.244.3.7", true),
        ("db", false),
        ("10.244.2.255", false),
        ("192.0.2.1", false),
    ] {
        assert_eq!(passes(&mesh, from, "server", 53), expected, "{from}");
    }
}

#[test]
fn who_may_not_connect_out_is_refused_where_it_arrives_and_nobody_else_is() {
    let egress = "podSelector: {matchLabels: {app: cart}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: web}]}]";
    let mesh = mesh(&policy("shop", "out", egress));
    assert!(passes(&mesh, "cart", "db", 8080));
    assert!(!passes(&mesh, "cart", "db", 5432));
    assert!(!passes(&mesh, "cart", "server", 8080));
    assert!(
        !passes(&mesh, "cart", "batch", 8080),
        "of another namespace"
    );
    assert!(passes(&mesh, "server", "db", 5432), "not isolated");
}

#[test]
fn a_pod_that_comes_is_allowed_and_one_that_goes_is_not_any_more() {
    let from_jobs = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: jobs}}}]}]";
    let mut mesh = mesh(&policy("shop", "jobs", from_jobs));
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: jobs, annotations: {keelson.io/pod-ips: 10.244.9.9}}\nspec: {nodeName: n1}\n";
    assert!(!passes(&mesh, "10.244.9.9", "server", 80));
    let name = mesh.workload("shop/server").authorization_policies;
    mesh.apply(text);
    assert!(passes(&mesh, "10.244.9.9", "server", 80));
    assert_eq!(
        mesh.workload("shop/server").authorization_policies,
        name,
        "the policy has its name still, so no workload is told anew"
    );
    mesh.remove(text);
    assert!(!passes(&mesh, "10.244.9.9", "server", 80));
    mesh.remove(&policy("shop", "jobs", from_jobs));
    assert!(mesh.index.snapshot().authorizations.is_empty());
    assert!(
        mesh.workload("shop/server")
            .authorization_policies
            .is_empty()
    );
}

#[test]
fn switched_off_they_mean_nothing() {
    let mesh = Mesh::of(&format!(
        "{}{}",
        pod("a", ""),
        policy("shop", "none", "podSelector: {}")
    ));
    assert!(mesh.index.snapshot().authorizations.is_empty());
}

/// Whom policies isolate, as agents are told it.
fn isolated(mesh: &Mesh, pod: &str) -> (bool, bool) {
    let said = mesh.workload(pod).extensions;
    let has = |name: &str| said.iter().any(|one| one.name == name);
    (
        has("keelson.io/isolated-ingress"),
        has("keelson.io/isolated-egress"),
    )
}

/// A waypoint is reached by its own node at ports that nobody has heard of; only the mesh knows that tunnels lead there too.
#[test]
fn what_the_clusters_network_may_keep_from_a_waypoint_is_said_where_the_mesh_does_not_enforce_it() {
    let mut mesh = mesh("");
    mesh.index.mesh.network_policies = false;
    mesh.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: waypoint, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: waypoint, gateway.networking.k8s.io/gateway-class-name: keelson-waypoint}, annotations: {keelson.io/pod-ips: 10.244.1.15}}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n",
    );
    assert_eq!(isolated(&mesh, "shop/waypoint"), (false, false));
    let all = "podSelector: {}, policyTypes: [Ingress, Egress]";
    for (spec, waypoint, cart) in [
        ("", (true, true), (false, true)),
        (
            ", ingress: [{ports: [{port: 15008}]}], egress: [{}]",
            (true, false),
            (false, false),
        ),
        (
            ", ingress: [{}], egress: [{ports: [{port: 15008}]}]",
            (false, true),
            (false, true),
        ),
        // Only to some.
        (
            ", ingress: [{from: [{podSelector: {}}]}], egress: [{ports: [{port: 1024, endPort: 65535}]}]",
            (true, false),
            (false, false),
        ),
    ] {
        mesh.apply(&policy("shop", "some", &format!("{all}{spec}")));
        assert_eq!(isolated(&mesh, "shop/waypoint"), waypoint, "{spec}");
        assert_eq!(isolated(&mesh, "shop/cart"), cart, "{spec}");
        assert_eq!(isolated(&mesh, "jobs/batch"), (false, false), "{spec}");
    }
    assert!(mesh.index.snapshot().authorizations.is_empty());
    mesh.apply(&policy(
        "shop",
        "open",
        "podSelector: {}, policyTypes: [Ingress], ingress: [{}]",
    ));
    assert_eq!(
        isolated(&mesh, "shop/waypoint"),
        (false, false),
        "they add up"
    );
}
