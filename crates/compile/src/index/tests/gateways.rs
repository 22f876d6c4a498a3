//! What a gateway at the edge is told, and what it then decides.

use http::{HeaderMap, Method};
use l7::listener::Reads;
use l7::request::{Client, Destination, Request};
use l7::route::{Action, Backend, Redirect};
use l7::{Config, Decision, Store};
use proto::convert::l7::{TYPES, resource};
use proto::type_url;

use super::*;

pub(super) const EDGE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: edge, labels: {keelson.io/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled, team: retail}}
---
apiVersion: v1
kind: Pod
metadata:
  name: gw-1
  namespace: edge
  labels: {gateway.networking.k8s.io/gateway-name: gw, gateway.networking.k8s.io/gateway-class-name: keelson, istio: ingressgateway}
  annotations: {keelson.io/pod-ips: 10.244.1.9}
spec: {nodeName: n1, serviceAccountName: gw}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}, annotations: {keelson.io/pod-ips: 10.244.1.1}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Service
metadata: {name: productpage, namespace: default}
spec: {clusterIP: 10.96.0.2, selector: {app: productpage}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: page-1, namespace: default, labels: {app: productpage}, annotations: {keelson.io/pod-ips: 10.244.1.2}}
spec: {nodeName: n1}
";

const BOOKINFO: &str =
    include_str!("../../../../../tests/lab/fixtures/bookinfo/networking/bookinfo-gateway.yaml");

pub(super) fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: edge}}\n\
         spec: {{gatewayClassName: keelson, listeners: {listeners}}}\n"
    )
}

fn route(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{name: gw, namespace: edge}}], {spec}}}\n"
    )
}

const TO_CART: &str = "rules: [{backendRefs: [{name: cart, namespace: shop, port: 80}]}]";
pub(super) const HTTP_FROM_ALL: &str =
    "[{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]";

fn config(mesh: &Mesh) -> Arc<Config> {
    let entry = &mesh.index.snapshot().waypoints["edge/gw"];
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
            let read = resource(kind, name, one.body()).expect("a type of gateways");
            store.apply(read.unwrap_or_else(|error| panic!("{kind} {name}: {error}")));
        }
    }
    store.config()
}

/// What becomes of a request at a port: where it goes, or the answer.
pub(super) fn decided(mesh: &Mesh, port: u16, tls: bool, host: &str, target: &str) -> String {
    let config = config(mesh);
    let Some(listener) = config.listener(port, tls, host) else {
        return "no listener".to_owned();
    };
    let Some(key) = listener.virtual_host(host) else {
        return "404".to_owned();
    };
    let (path, headers) = (l7::Path::new(target).unwrap(), HeaderMap::new());
    let request = Request {
        client: Client {
            address: [192, 0, 2, 1].into(),
            identity: None,
            namespace: None,
            labels: None,
        },
        destination: Destination::Service { key, port },
        protocol: l7::Protocol::Http,
        scheme: "http",
        method: &Method::GET,
        authority: host,
        path: &path,
        headers: &headers,
    };
    match config.decide(&request) {
        Decision::Rule { rule, .. } => match &rule.action {
            Action::Forward(forward) => match &forward.backends.first().unwrap().backend {
                Backend::Cluster(key) => config.cluster(key, port).map_or_else(
                    || "503".to_owned(),
                    |cluster| {
                        let ready = cluster.ready().map(|member| member.address.to_string());
                        ready.collect::<Vec<_>>().join(" ")
                    },
                ),
                Backend::Invalid { status, .. } => status.as_u16().to_string(),
            },
            Action::Redirect(Redirect { status, scheme, .. }) => {
                format!(
                    "{} {}",
                    status.as_u16(),
                    scheme.as_deref().unwrap_or_default()
                )
            }
            other => format!("{other:?}"),
        },
        Decision::None(_) => "404".to_owned(),
        other => format!("{other:?}"),
    }
}

pub(super) fn said(changes: &Changes) -> String {
    let all = changes.diagnostics.iter().flat_map(|(_, said)| said);
    all.map(|one| format!("{one:?}\n")).collect()
}

#[test]
fn f47_hosts_paths_and_listeners_decide_and_nothing_else_is_served() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&gateway(
        "[{name: any, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}},
          {name: below, port: 80, protocol: HTTP, hostname: '*.example.com', allowedRoutes: {namespaces: {from: All}}},
          {name: own, port: 81, protocol: HTTP}]",
    ));
    mesh.apply(&route(
        "cart",
        "shop",
        &format!("hostnames: [cart.example.com], {TO_CART}"),
    ));
    let cart = "10.244.1.1:8080";
    assert_eq!(decided(&mesh, 80, false, "cart.example.com", "/x"), cart);
    // In capital letters too, and by another name or port not.
    assert_eq!(decided(&mesh, 80, false, "CART.example.com", "/x"), cart);
    assert_eq!(decided(&mesh, 80, false, "other.example.com", "/"), "404");
    assert_eq!(decided(&mesh, 80, false, "cart.example.org", "/"), "404");
    // The namespace is not allowed there.
    assert_eq!(decided(&mesh, 81, false, "cart.example.com", "/"), "404");
    assert_eq!(
        decided(&mesh, 82, false, "cart.example.com", "/"),
        "no listener"
    );
    // By the listener's name alone.
    mesh.apply(
        &route("cart", "shop", TO_CART)
            .replace("namespace: edge}", "namespace: edge, sectionName: any}"),
    );
    assert_eq!(decided(&mesh, 80, false, "cart.example.org", "/"), cart);
    assert_eq!(decided(&mesh, 80, false, "cart.example.com", "/"), "404");
    mesh.remove(&route("cart", "shop", TO_CART));
    assert_eq!(decided(&mesh, 80, false, "cart.example.org", "/"), "404");
}

#[test]
fn namespaces_are_chosen_by_their_labels() {
    let mut mesh = Mesh::of(EDGE);
    let selector = "[{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: retail}}}}}]";
    mesh.apply(&gateway(selector));
    mesh.apply(&route("cart", "shop", TO_CART));
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "10.244.1.1:8080");
    mesh.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {keelson.io/mesh: enabled}}\n");
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "404");
}

#[test]
fn a_backend_of_another_namespace_needs_a_grant_and_one_that_is_not_there_is_500() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&gateway(HTTP_FROM_ALL));
    mesh.apply(&route("r", "edge", TO_CART));
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "500");
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: edge}]\n  to: [{group: '', kind: Service, name: cart}]\n";
    mesh.apply(grant);
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "10.244.1.1:8080");
    mesh.apply(&grant.replace("name: cart", "name: other"));
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "500");
    mesh.remove(grant);
    mesh.apply(&route(
        "r",
        "edge",
        "rules: [{backendRefs: [{name: nothing, port: 80}]}]",
    ));
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "500");
}

fn secret(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: {namespace}}}\ntype: kubernetes.io/tls\n\
         stringData: {{tls.crt: '-----BEGIN CERTIFICATE-----', tls.key: '-----BEGIN PRIVATE KEY-----'}}\n"
    )
}

#[test]
fn f51_a_listener_with_tls_waits_for_its_secret_and_says_so() {
    let mut mesh = Mesh::of(EDGE);
    let https = |namespace: &str| {
        gateway(&format!(
            "[{{name: https, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: cert{namespace}}}]}}, allowedRoutes: {{namespaces: {{from: All}}}}}}]"
        ))
    };
    let told = said(&mesh.apply(&https("")));
    assert!(told.contains("there is no Secret edge/cert"), "{told}");
    assert!(
        told.contains("spec.listeners[0].tls.certificateRefs"),
        "{told}"
    );
    mesh.apply(&route("cart", "shop", TO_CART));
    assert_eq!(decided(&mesh, 443, true, "x", "/"), "no listener");
    // What was said is taken back.
    let changes = mesh.apply(&secret("edge"));
    assert!(
        said(&changes).is_empty() && !changes.diagnostics.is_empty(),
        "{changes:?}"
    );
    assert_eq!(decided(&mesh, 443, true, "x", "/"), "10.244.1.1:8080");
    assert_eq!(decided(&mesh, 443, false, "x", "/"), "no listener");
    // One of another namespace is not taken without a grant.
    mesh.apply(&secret("shop"));
    let told = said(&mesh.apply(&https(", namespace: shop")));
    assert!(told.contains("is not granted"), "{told}");
    assert_eq!(decided(&mesh, 443, true, "x", "/"), "no listener");
    mesh.apply("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}]\n  to: [{group: '', kind: Secret}]\n");
    assert_eq!(decided(&mesh, 443, true, "x", "/"), "10.244.1.1:8080");
}

#[test]
fn f52_bookinfos_gateway_leads_to_the_product_page_unchanged() {
    let manifest = BOOKINFO
        .replace(
            "name: bookinfo-gateway\n",
            "name: bookinfo-gateway\n  namespace: default\n",
        )
        .replace("name: bookinfo\n", "name: bookinfo\n  namespace: default\n");
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&manifest);
    let page = "10.244.1.2:9080";
    for (path, expected) in [
        ("/productpage", page),
        ("/static/x.css", page),
        ("/login", page),
        ("/logout", page),
        ("/api/v1/products/1", page),
        ("/", "404"),
        ("/productpage/x", "404"),
    ] {
        assert_eq!(
            decided(&mesh, 8080, false, "any.host", path),
            expected,
            "{path}"
        );
    }
    // Pods without the label do not serve it (F52).
    mesh.apply(&manifest.replace("istio: ingressgateway #", "istio: other #"));
    assert_eq!(
        decided(&mesh, 8080, false, "any.host", "/productpage"),
        "no listener"
    );
}

fn istio(servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop}}\n\
         spec: {{selector: {{istio: ingressgateway}}, servers: {servers}}}\n"
    )
}

fn bound(name: &str, http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [cart.example.com], gateways: [g], http: {http}}}\n"
    )
}

#[test]
fn f38_f48_f49_istios_servers_redirect_end_tls_and_merge_what_is_bound() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&istio(
        "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [cart.example.com], tls: {httpsRedirect: true}},
          {port: {number: 443, name: https, protocol: HTTPS}, hosts: [cart.example.com], tls: {mode: SIMPLE, credentialName: cert}},
          {port: {number: 8080, name: other, protocol: HTTP}, hosts: [other/*]}]",
    ));
    mesh.apply(&bound(
        "a",
        "[{match: [{uri: {prefix: /a}}], route: [{destination: {host: cart}}]}]",
    ));
    mesh.apply(&bound(
        "b",
        "[{match: [{uri: {prefix: /b}}], route: [{destination: {host: cart}}]}]",
    ));
    // The Secret is that of the gateway's pods (F51).
    mesh.apply(&secret("shop"));
    assert_eq!(
        decided(&mesh, 443, true, "cart.example.com", "/a"),
        "no listener"
    );
    mesh.apply(&secret("edge"));
    let cart = "10.244.1.1:8080";
    for (port, tls, host, path, expected) in [
        (80, false, "cart.example.com", "/a", "301 https"),
        (80, false, "cart.example.com", "/", "301 https"),
        (80, false, "other.example.com", "/a", "404"),
        (443, true, "cart.example.com", "/a", cart),
        (443, true, "cart.example.com", "/b", cart),
        (443, true, "cart.example.com", "/c", "404"),
        (443, true, "other.example.com", "/a", "no listener"),
        // Only VirtualServices of another namespace are bound there.
        (8080, false, "cart.example.com", "/a", "no listener"),
    ] {
        let seen = decided(&mesh, port, tls, host, path);
        let seen = if port == 8080 && seen == "404" {
            "no listener".to_owned()
        } else {
            seen
        };
        assert_eq!(seen, expected, "{port} {host} {path}");
    }
    // Without the gateway in its list an object is not bound (F37).
    mesh.remove(&bound("b", "[]"));
    mesh.apply(
        &bound("a", "[{route: [{destination: {host: cart}}]}]").replace("gateways: [g], ", ""),
    );
    assert_eq!(decided(&mesh, 443, true, "cart.example.com", "/a"), "404");
}

#[test]
fn a_gateway_asks_the_policies_that_select_it_and_leaves_those_of_endpoints_to_their_nodes() {
    let policy = |name: &str, namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&gateway(HTTP_FROM_ALL));
    mesh.apply(&route("cart", "shop", TO_CART));
    mesh.apply(&policy("own", "edge", "{selector: {matchLabels: {istio: ingressgateway}}, rules: [{to: [{operation: {paths: [/a]}}]}]}"));
    mesh.apply(&policy("target", "edge", "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}], action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}"));
    mesh.apply(&policy(
        "cart",
        "shop",
        "{selector: {matchLabels: {app: cart}}, rules: [{to: [{operation: {paths: [/b]}}]}]}",
    ));
    let entry = &mesh.index.snapshot().waypoints["edge/gw"];
    let names: Vec<&str> = entry.policies.keys().map(|name| &**name).collect();
    assert_eq!(names, ["edge/own", "edge/target"]);
    // Its own node would refuse what it cannot judge.
    assert!(mesh.workload("edge/gw-1").authorization_policies.is_empty());
    assert_eq!(
        mesh.workload("shop/cart-1").authorization_policies,
        ["shop/cart"]
    );
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&gateway(HTTP_FROM_ALL));
    mesh.apply(&route("cart", "shop", TO_CART));
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    assert_eq!(decided(&mesh, 80, false, "x", "/"), "10.96.0.1:80");
}

/// A13 at a gateway: a VirtualService for a gateway names a subset whether the service has a waypoint or not.
#[test]
fn a_subset_of_a_service_with_a_waypoint_has_its_own_endpoints() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: old, namespace: shop}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n");
    mesh.apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: cart, namespace: shop}\nspec: {host: cart, subsets: [{name: one, labels: {app: cart}}, {name: none, labels: {app: other}}]}\n");
    let to = |destination: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\nspec: {{hosts: ['*'], gateways: [old], http: [{{route: [{{destination: {destination}}}]}}]}}\n"
        )
    };
    for (destination, expected) in [
        ("{host: cart}", "10.96.0.1:80"),
        ("{host: cart, subset: one}", "10.244.1.1:8080"),
    ] {
        mesh.apply(&to(destination));
        assert_eq!(decided(&mesh, 80, false, "x", "/"), expected);
    }
    mesh.apply(&to("{host: cart, subset: none}"));
    assert!(!decided(&mesh, 80, false, "x", "/").contains("10."));
}

/// A listener's name is its author's choice, and a plain server of Istio's is named by its port.
#[test]
fn a_listener_of_one_api_takes_no_rules_of_another_that_has_its_name() {
    let servers = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: old, namespace: edge}\n\
                   spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
    let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: pages, namespace: edge}\n\
                 spec: {hosts: [a.example], gateways: [old], http: [{route: [{destination: {host: productpage.default.svc.cluster.local}}]}]}\n";
    let listener =
        "[{name: '80', port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]";
    let cart = route(
        "cart",
        "shop",
        &format!("hostnames: [a.example], {TO_CART}"),
    );
    let gateway = gateway(listener);
    let mesh = Mesh::of(&format!("{EDGE}---\n{gateway}---\n{cart}{servers}{rules}"));
    let at = |port| decided(&mesh, port, false, "a.example", "/");
    assert_eq!([at(8080), at(80)], ["10.244.1.1:8080", "10.244.1.2:9080"]);
}

/// Where a connection goes that asks for this name by TLS, or for none.
fn connected(mesh: &Mesh, port: u16, name: Option<&str>) -> String {
    let config = config(mesh);
    let listener = match name {
        Some(name) => config.listener(port, true, name),
        None => config.listener(port, false, ""),
    };
    let Some(listener) = listener else {
        return "no listener".to_owned();
    };
    let Some(key) = listener.virtual_host(name.unwrap_or_default()) else {
        return "no host".to_owned();
    };
    let client = Client {
        address: [192, 0, 2, 1].into(),
        identity: None,
        namespace: None,
        labels: None,
    };
    let destination = Destination::Service { key, port };
    let decided = config.decide_connection(client, destination, [10, 244, 1, 9].into(), name);
    let Decision::Rule { rule, .. } = decided else {
        return format!("{decided:?}");
    };
    let Action::Forward(forward) = &rule.action else {
        return format!("{:?}", rule.action);
    };
    match &forward.backends[0].backend {
        Backend::Cluster(key) => {
            let cluster = config.cluster(key, port);
            let addresses = cluster.into_iter().flat_map(|all| all.ready());
            let addresses: Vec<_> = addresses.map(|one| one.address.to_string()).collect();
            format!("{}: {}", rule.origin, addresses.join(" "))
        }
        Backend::Invalid { reason, .. } => format!("{}: {reason}", rule.origin),
    }
}

/// Issue 12 B8, F49: TLS passes by its name and other connections by their port, to where a VirtualService says.
#[test]
fn istios_passthrough_and_tcp_lead_where_tls_and_tcp_of_a_virtual_service_say() {
    let mut mesh = Mesh::of(EDGE);
    let changes = mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: doors, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.example.com'], tls: {mode: PASSTHROUGH}}
  - {port: {number: 5432, name: db, protocol: TCP}, hosts: ['*']}
  - {port: {number: 5432, name: web, protocol: HTTP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: edge}
spec:
  hosts: ['a.example.com', 'b.example.com']
  gateways: [doors]
  tls:
  - {match: [{port: 443, sniHosts: [a.example.com]}], route: [{destination: {host: cart.shop.svc.cluster.local, port: {number: 80}}}]}
  tcp:
  - {match: [{port: 5432}], route: [{destination: {host: productpage.default.svc.cluster.local, port: {number: 9080}}}]}
",
    );
    let of = |port, name| connected(&mesh, port, name);
    assert_eq!(
        of(443, Some("a.example.com")),
        "VirtualService edge/v rule tls[0]: 10.244.1.1:8080"
    );
    assert_eq!(of(443, Some("b.example.com")), "None(NoMatch)");
    assert_eq!(of(443, Some("c.example.com")), "no host");
    assert_eq!(of(443, Some("a.example.org")), "no listener");
    assert_eq!(
        of(5432, None),
        "VirtualService edge/v rule tcp[0]: 10.244.1.2:9080"
    );
    // A server for requests cannot be beside one that reads nothing.
    let key = ObjectKey::new(Kind::IstioGateway, "edge", "doors");
    let said = changes
        .diagnostics
        .iter()
        .filter(|(about, _)| *about == key);
    let fields = said.flat_map(|(_, said)| said).map(|one| &*one.field);
    assert_eq!(fields.collect::<Vec<_>>(), ["spec.servers[2]"]);
    let listeners = &mesh.index.snapshot().waypoints["edge/gw"].listeners;
    assert_eq!(listeners.len(), 2);
}

/// Issue 12 B8: the same by the Gateway API, whose backends of other namespaces need a grant.
#[test]
fn tls_and_tcp_routes_lead_connections_of_a_gateway() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&gateway(
        "[{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}, {name: tcp, port: 5432, protocol: TCP}]",
    ));
    let route = |kind: &str, more: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: edge}}\n\
             spec: {{parentRefs: [{{name: gw}}], {more} {TO_CART}}}\n"
        )
    };
    mesh.apply(&route("TLSRoute", "hostnames: [a.example.com],"));
    mesh.apply(&route("TCPRoute", ""));
    let refused = "Service shop/cart is not granted by a ReferenceGrant there";
    assert_eq!(
        connected(&mesh, 443, Some("a.example.com")),
        format!("TLSRoute edge/r rule 0: {refused}")
    );
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: {}, namespace: shop}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: edge}}], to: [{{group: '', kind: Service}}]}}\n",
            kind.to_lowercase()
        )
    };
    mesh.apply(&grant("TLSRoute"));
    assert_eq!(
        connected(&mesh, 443, Some("a.example.com")),
        "TLSRoute edge/r rule 0: 10.244.1.1:8080"
    );
    assert_eq!(connected(&mesh, 443, Some("b.example.com")), "no host");
    assert_eq!(
        connected(&mesh, 5432, None),
        format!("TCPRoute edge/r rule 0: {refused}")
    );
    mesh.apply(&grant("TCPRoute"));
    assert_eq!(
        connected(&mesh, 5432, None),
        "TCPRoute edge/r rule 0: 10.244.1.1:8080"
    );
}

/// Issue 12 B8: TLS ends at the gateway, and what comes in it goes by the rules of connections.
#[test]
fn tls_that_ends_and_is_not_read_leads_where_tcp_and_tls_routes_say() {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&secret("edge"));
    mesh.apply(&gateway(
        "[{name: db, port: 443, protocol: TLS, hostname: '*.db.example.com', tls: {certificateRefs: [{name: cert}]}}, \
          {name: web, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]",
    ));
    let service = "rules: [{backendRefs: [{name: own, port: 80}]}]";
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: edge}\nspec: {clusterIP: 10.96.0.77, ports: [{port: 80}]}\n",
    );
    let route = |kind: &str, name: &str, more: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: edge}}\n\
             spec: {{parentRefs: [{{name: gw}}], {more} {service}}}\n"
        )
    };
    mesh.apply(&route(
        "TLSRoute",
        "named",
        "hostnames: [a.db.example.com],",
    ));
    let of = |mesh: &Mesh, name| connected(mesh, 443, Some(name));
    assert_eq!(
        of(&mesh, "a.db.example.com"),
        "TLSRoute edge/named rule 0: "
    );
    assert_eq!(of(&mesh, "b.db.example.com"), "no host");
    mesh.apply(&route("TCPRoute", "rest", ""));
    assert_eq!(of(&mesh, "b.db.example.com"), "TCPRoute edge/rest rule 0: ");
    let listeners = config(&mesh);
    let reads = |name| listeners.listener(443, true, name).map(|one| one.reads);
    assert_eq!(reads("b.db.example.com"), Some(Reads::Nothing));
    assert_eq!(reads("shop.example.com"), Some(Reads::Requests));
    // The same in Istio's words.
    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: doors, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 5433, name: db, protocol: TLS}, hosts: ['db.example.org'], tls: {mode: SIMPLE, credentialName: cert}}
  - {port: {number: 5433, name: web, protocol: HTTPS}, hosts: ['db.example.org'], tls: {mode: SIMPLE, credentialName: cert}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: edge}
spec:
  hosts: ['db.example.org']
  gateways: [doors]
  tcp: [{route: [{destination: {host: own, port: {number: 80}}}]}]
",
    );
    let at = connected(&mesh, 5433, Some("db.example.org"));
    assert_eq!(at, "VirtualService edge/v rule tcp[0]: ");
    // What one name asks for is read in one way: the first server counts.
    let config = config(&mesh);
    let listener = config.listener(5433, true, "db.example.org");
    let read = listener.map(|one| (one.reads, one.tls.is_some()));
    assert_eq!(read, Some((Reads::Nothing, true)));
}
