//! What a waypoint is told, and what it then decides.

use http::{HeaderMap, Method};
use l7::request::{Client, Destination, Request};
use l7::route::{Action, Backend};
use l7::{Config, Decision, Resource, Store};
use model::ServiceKey;
use proto::convert::l7::{TYPES, resource};
use proto::type_url;

use super::*;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart, version: v1}, annotations: {keelson.io/pod-ips: 10.244.1.1}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-2, namespace: shop, labels: {app: cart, version: v2}, annotations: {keelson.io/pod-ips: 10.244.1.2}}
spec: {nodeName: n2}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {keelson.io/pod-ips: 10.244.1.3}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}, annotations: {keelson.io/pod-ips: 10.244.1.9}}
spec: {nodeName: n1, serviceAccountName: wp}
";

fn virtual_service(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn route(kind: &str, namespace: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}], rules: {rules}}}\n"
    )
}

/// What the waypoint `shop/wp` makes of what it is told.
fn config(mesh: &Mesh) -> Arc<Config> {
    config_of(mesh, "shop/wp")
}

/// What a waypoint or gateway makes of what it is told.
pub(super) fn config_of(mesh: &Mesh, waypoint: &str) -> Arc<Config> {
    let entry = &mesh.index.snapshot().waypoints[waypoint];
    let mut store = Store::default();
    for kind in TYPES {
        let resources = match kind {
            type_url::L7_SERVICE => &entry.services,
            type_url::L7_ENDPOINT => &entry.endpoints,
            type_url::L7_BACKEND => &entry.backends,
            type_url::L7_POLICY => &entry.policies,
            type_url::L7_ROUTE => &entry.routes,
            type_url::L7_LISTENER => &entry.listeners,
            other => panic!("{other}"),
        };
        for (name, one) in resources {
            let read = resource(kind, name, one.body()).expect("a type of waypoints");
            store.apply(read.unwrap_or_else(|error| panic!("{kind} {name}: {error}")));
        }
    }
    store.config()
}

fn cart() -> ServiceKey {
    ServiceKey::new("shop", "cart.shop.svc.cluster.local")
}

fn request<T>(
    client: &str,
    method: &Method,
    target: &str,
    then: impl FnOnce(&Request<'_>) -> T,
) -> T {
    let (path, key, headers) = (l7::Path::new(target).unwrap(), cart(), HeaderMap::new());
    then(&Request {
        client: Client {
            address: [10, 244, 9, 9].into(),
            identity: None,
            namespace: Some(client),
            labels: None,
        },
        destination: Destination::Service {
            key: &key,
            port: 80,
        },
        protocol: l7::Protocol::Http,
        scheme: "http",
        method,
        authority: "cart",
        path: &path,
        headers: &headers,
    })
}

/// The rule that a GET meets, and the addresses that it leads to.
fn decided(mesh: &Mesh, client: &str, target: &str) -> String {
    let config = config(mesh);
    request(client, &Method::GET, target, |request| {
        let addresses = |cluster: &l7::Cluster| {
            let ready = cluster.ready().map(|member| member.address.to_string());
            ready.collect::<Vec<_>>().join(" ")
        };
        match config.decide(request) {
            Decision::Rule { rule, .. } => match &rule.action {
                Action::Forward(forward) => {
                    let Some(Backend::Cluster(key)) = forward.backends.first().map(|b| &b.backend)
                    else {
                        return format!("{}: nowhere", rule.origin);
                    };
                    match config.cluster(key, 80) {
                        Some(cluster) => format!("{}: {}", rule.origin, addresses(cluster)),
                        None => format!("{}: no cluster", rule.origin),
                    }
                }
                other => format!("{}: {other:?}", rule.origin),
            },
            Decision::Service(cluster) => addresses(cluster),
            other => format!("{other:?}"),
        }
    })
}

#[test]
fn a_waypoint_knows_its_services_and_what_these_lead_to_and_nothing_else() {
    let mut mesh = Mesh::of(SHOP);
    let names = |mesh: &Mesh| {
        let entry = &mesh.index.snapshot().waypoints["shop/wp"];
        let names = entry.services.keys().chain(entry.endpoints.keys());
        names.map(ToString::to_string).collect::<Vec<_>>()
    };
    let before = [
        "shop/cart.shop.svc.cluster.local",
        "Kubernetes//Pod/shop/cart-1",
        "Kubernetes//Pod/shop/cart-2",
        // Its own pod, by which it knows where it is.
        "Kubernetes//Pod/shop/wp-1",
    ];
    assert_eq!(names(&mesh), before);
    assert_eq!(decided(&mesh, "x", "/"), "10.244.1.1:8080 10.244.1.2:8080");
    let leads_to_web = virtual_service(
        "shop",
        "{hosts: [cart], http: [{match: [{uri: {prefix: /web}}], route: [{destination: {host: web}}]}]}",
    );
    mesh.apply(&leads_to_web);
    assert_eq!(names(&mesh).len(), 6);
    assert_eq!(
        decided(&mesh, "x", "/web"),
        "VirtualService shop/cart rule 0: 10.244.1.3:80"
    );
    // F24
    assert_eq!(decided(&mesh, "x", "/"), "None(NoMatch)");
    mesh.remove(&leads_to_web);
    assert_eq!(names(&mesh), before);
    let snapshot = mesh.index.snapshot();
    assert_eq!(
        snapshot.waypoint_of("shop", "wp").map(|name| &**name),
        Some("shop/wp")
    );
    assert_eq!(snapshot.waypoint_of("shop", "default"), None);
}

#[test]
fn f26_f27_subsets_by_destination_rule_of_waypoint_service_or_root_namespace() {
    let rule = |namespace: &str, label: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: cart, namespace: {namespace}}}\n\
             spec: {{host: cart.shop.svc.cluster.local, subsets: [{{name: one, labels: {{version: {label}}}}}]}}\n"
        )
    };
    let to_subset = virtual_service(
        "shop",
        "{hosts: [cart], http: [{route: [{destination: {host: cart, subset: one}}]}]}",
    );
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&to_subset);
    let to = |mesh: &Mesh| {
        let decided = decided(mesh, "x", "/");
        decided
            .trim_start_matches("VirtualService shop/cart rule 0: ")
            .to_owned()
    };
    assert_eq!(to(&mesh), "no cluster");
    mesh.apply(&rule("istio-system", "v2"));
    assert_eq!(to(&mesh), "10.244.1.2:8080");
    mesh.apply(&rule("shop", "v1"));
    assert_eq!(to(&mesh), "10.244.1.1:8080");
    // F27: a subset without endpoints is no reason to go elsewhere.
    mesh.apply(&rule("shop", "v9"));
    assert_eq!(to(&mesh), "");
}

#[test]
fn f34_the_most_specific_host_wins() {
    let mut mesh = Mesh::of(SHOP);
    let wide = virtual_service(
        "istio-system",
        "{hosts: ['*.shop.svc.cluster.local'], http: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}]}",
    );
    mesh.apply(&wide);
    assert_eq!(
        decided(&mesh, "x", "/"),
        "VirtualService istio-system/cart rule 0: 10.244.1.3:80"
    );
    mesh.apply(&virtual_service(
        "shop",
        "{hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}",
    ));
    assert!(decided(&mesh, "x", "/").starts_with("VirtualService shop/cart rule 0"));
}

#[test]
fn a_route_of_another_namespace_is_for_the_clients_of_that_namespace() {
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&route(
        "HTTPRoute",
        "shop",
        "[{backendRefs: [{name: cart, port: 80}]}]",
    ));
    mesh.apply(&route(
        "HTTPRoute",
        "edge",
        "[{backendRefs: [{name: web, namespace: shop, port: 80}]}]",
    ));
    assert_eq!(
        decided(&mesh, "edge", "/"),
        "HTTPRoute edge/r rule 0: 10.244.1.3:80"
    );
    assert!(decided(&mesh, "shop", "/").starts_with("HTTPRoute shop/r rule 0"));
    mesh.apply(&virtual_service("bank", "{hosts: [cart.shop.svc.cluster.local], http: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}]}"));
    assert!(decided(&mesh, "bank", "/").starts_with("VirtualService bank/cart"));
    assert!(decided(&mesh, "shop", "/").starts_with("HTTPRoute shop/r"));
}

#[test]
fn grpc_routes_go_before_http_routes_and_these_before_virtual_services() {
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&virtual_service(
        "shop",
        "{hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}",
    ));
    assert!(decided(&mesh, "x", "/").starts_with("VirtualService"));
    mesh.apply(&route(
        "HTTPRoute",
        "shop",
        "[{backendRefs: [{name: cart, port: 80}]}]",
    ));
    assert!(decided(&mesh, "x", "/").starts_with("HTTPRoute"));
    mesh.apply(&route(
        "GRPCRoute",
        "shop",
        "[{backendRefs: [{name: cart, port: 80}]}]",
    ));
    assert!(decided(&mesh, "x", "/").starts_with("GRPCRoute"));
}

#[test]
fn a_waypoint_for_workloads_alone_knows_the_pods_behind_it() {
    let mut mesh = Mesh::of(SHOP);
    let gateway = |is_for: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: shop, labels: {{istio.io/waypoint-for: {is_for}}}}}\nspec: {{gatewayClassName: keelson-waypoint}}\n"
        )
    };
    mesh.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {keelson.io/mesh: enabled, istio.io/use-waypoint: wp}}\n");
    let knows = |mesh: &Mesh, address: [u8; 4]| config(mesh).endpoint_at(address.into()).is_some();
    for (is_for, expected) in [("workload", true), ("none", false), ("all", true)] {
        mesh.apply(&gateway(is_for));
        for address in [[10, 244, 1, 1], [10, 244, 1, 3]] {
            assert_eq!(knows(&mesh, address), expected, "{is_for} {address:?}");
        }
    }
    // One that opts out is known for its service, and no more for itself.
    mesh.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: extra, namespace: shop, annotations: {keelson.io/pod-ips: 10.244.1.4}}\nspec: {nodeName: n1}\n");
    assert!(knows(&mesh, [10, 244, 1, 4]));
    mesh.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: extra, namespace: shop, labels: {istio.io/use-waypoint: none}, annotations: {keelson.io/pod-ips: 10.244.1.4}}\nspec: {nodeName: n1}\n");
    assert!(!knows(&mesh, [10, 244, 1, 4]));
}

#[test]
fn policies_with_http_parts_are_whole_at_the_waypoint() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let mut mesh = Mesh::of(SHOP);
    let allows = |mesh: &Mesh, method: Method, target: &str| {
        let config = config(mesh);
        let endpoint = config.endpoint_at([10, 244, 1, 1].into()).unwrap();
        let to = l7::policy::Target {
            address: [10, 244, 1, 1].into(),
            port: 8080,
        };
        request("x", &method, target, |request| {
            let verdict = config.authorize(request, endpoint, to);
            matches!(verdict, l7::Verdict::Allow { .. })
        })
    };
    for (spec, get_a, post_a, get_b) in [
        (
            "{rules: [{to: [{operation: {methods: [GET], paths: [/a]}}]}]}",
            true,
            false,
            false,
        ),
        (
            "{selector: {matchLabels: {app: cart}}, action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}",
            true,
            false,
            true,
        ),
        (
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}",
            true,
            true,
            true,
        ),
        (
            "{targetRefs: [{group: '', kind: Service, name: cart}], rules: [{to: [{operation: {notPaths: ['/{*}']}}]}]}",
            false,
            false,
            false,
        ),
        (
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], action: DENY, rules: [{when: [{key: 'request.headers[x]', notValues: [y]}]}]}",
            false,
            false,
            false,
        ),
        (
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: other}], action: DENY, rules: [{}]}",
            true,
            true,
            true,
        ),
        ("{action: AUDIT, rules: [{}]}", true, true, true),
        // What cannot be checked refuses: an ALLOW allows nothing by it, CUSTOM denies.
        (
            "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
            false,
            false,
            false,
        ),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {methods: [POST]}}]}]}",
            true,
            false,
            true,
        ),
    ] {
        mesh.apply(&policy(spec));
        assert_eq!(allows(&mesh, Method::GET, "/a"), get_a, "{spec}");
        assert_eq!(allows(&mesh, Method::POST, "/a"), post_a, "{spec}");
        assert_eq!(allows(&mesh, Method::GET, "/b"), get_b, "{spec}");
    }
}

#[test]
fn a_strict_workload_takes_nobody_without_an_identity() {
    let mut mesh = Mesh::of(SHOP);
    mesh.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: d, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n");
    let config = config(&mesh);
    let endpoint = config.endpoint_at([10, 244, 1, 1].into()).unwrap();
    let target = l7::policy::Target {
        address: [10, 244, 1, 1].into(),
        port: 8080,
    };
    request("x", &Method::GET, "/", |request| {
        let verdict = config.authorize(request, endpoint, target);
        assert!(matches!(verdict, l7::Verdict::Deny(_)), "{verdict:?}");
    });
}

/// Istio's `waypoint-for`. Without a `Gateway` nobody has said what the waypoint is not for.
#[test]
fn a_waypoint_is_required_for_what_its_gateway_says() {
    let in_namespace = SHOP.replace(
        "labels: {keelson.io/mesh: enabled}}",
        "labels: {keelson.io/mesh: enabled, istio.io/use-waypoint: wp}}",
    );
    let mut mesh = Mesh::of(&in_namespace);
    let required = |mesh: &Mesh| {
        let service = mesh.service("shop/web.shop.svc.cluster.local").waypoint;
        (
            service.is_some(),
            mesh.workload("shop/web-1").waypoint.is_some(),
        )
    };
    let gateway = |class: &str, labels: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
        )
    };
    assert_eq!(required(&mesh), (true, true));
    for (class, labels, expected) in [
        ("keelson-waypoint", "", (true, false)),
        (
            "istio-waypoint",
            "istio.io/waypoint-for: service",
            (true, false),
        ),
        (
            "keelson-waypoint",
            "istio.io/waypoint-for: workload",
            (false, true),
        ),
        (
            "keelson-waypoint",
            "istio.io/waypoint-for: all",
            (true, true),
        ),
        (
            "keelson-waypoint",
            "istio.io/waypoint-for: none",
            (false, false),
        ),
        ("another", "istio.io/waypoint-for: none", (true, true)),
    ] {
        mesh.apply(&gateway(class, labels));
        assert_eq!(required(&mesh), expected, "{class} {labels}");
    }
    mesh.apply(&gateway("keelson-waypoint", ""));
    mesh.remove(&gateway("keelson-waypoint", ""));
    assert_eq!(required(&mesh), (true, true));
}

#[test]
fn f35_a_rule_that_delegates_stands_for_the_rules_of_the_other_object() {
    let other = |namespace: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: inner, namespace: {namespace}}}\n\
             spec: {{http: [{{match: [{{uri: {{prefix: /api/a}}}}, {{uri: {{prefix: /elsewhere}}}}], route: [{{destination: {{host: web.shop.svc.cluster.local}}}}]}}, \
             {{route: [{{destination: {{host: cart.shop.svc.cluster.local}}}}]}}]}}\n"
        )
    };
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&virtual_service(
        "shop",
        "{hosts: [cart], http: [{match: [{uri: {prefix: /api}}], delegate: {name: inner, namespace: bank}}, {route: [{destination: {host: web}}]}]}",
    ));
    assert!(
        decided(&mesh, "x", "/api").contains("Fail"),
        "the other is not there"
    );
    mesh.apply(&other("bank"));
    let rule = |target: &str| decided(&mesh, "x", target);
    assert_eq!(
        rule("/api/a"),
        "VirtualService bank/inner rule 0: 10.244.1.3:80"
    );
    assert!(rule("/api/b").starts_with("VirtualService bank/inner rule 1"));
    // What the outer rule does not take goes on to the next.
    assert!(rule("/elsewhere").starts_with("VirtualService shop/cart rule 1"));
}

#[test]
fn a_rule_that_did_not_change_keeps_its_version() {
    let spec = |timeout: &str| {
        format!(
            "{{hosts: [cart], http: [{{match: [{{uri: {{exact: /a}}}}], route: [{{destination: {{host: cart}}}}]}}, \
             {{timeout: {timeout}, route: [{{destination: {{host: cart}}}}]}}]}}"
        )
    };
    let mut mesh = Mesh::of(SHOP);
    let versions = |mesh: &Mesh| {
        let routes = &mesh.index.snapshot().waypoints["shop/wp"].routes;
        let versions = routes.values().map(|rule| rule.version.to_string());
        versions.collect::<Vec<_>>()
    };
    mesh.apply(&virtual_service("shop", &spec("1s")));
    let before = versions(&mesh);
    mesh.apply(&virtual_service("shop", &spec("2s")));
    let after = versions(&mesh);
    assert_eq!(before.len(), 2);
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
}

#[test]
fn resources_are_read_by_what_reads_them() {
    let error = resource(type_url::L7_SERVICE, "x", b"\xff").expect("a type of waypoints");
    assert!(error.is_err());
    let mesh = Mesh::of(SHOP);
    let service = &mesh.index.snapshot().waypoints["shop/wp"].services;
    let one = service.values().next().expect("one");
    let read = resource(type_url::L7_SERVICE, &one.name, one.body()).expect("a type");
    assert!(matches!(read, Ok(Resource::Service(service)) if service.attached));
}
