//! What is said of gateways and routes, with the Gateway API's own reasons.

use manifest::{Claim, read_object};
use serde_json::{Value, json};

use super::*;
use crate::index::view::{ListenerView, ParentView, View};

/// An index of objects as an API server has them.
fn index(objects: &[(Kind, &str, &str, Value)]) -> Index {
    let mut index = Index::new(MeshConfig::default());
    for (kind, namespace, name, rest) in objects {
        let mut object = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}"), "generation": 3},
        });
        for (field, value) in rest.as_object().unwrap() {
            match field.as_str() {
                "labels" => object["metadata"]["labels"] = value.clone(),
                field => object[field] = value.clone(),
            }
        }
        let mut read = read_object(*kind, object, "istio-system");
        match read.claims.pop() {
            Some(Claim::Good(upsert)) => index.apply(&upsert),
            other => panic!("{other:?} {:?}", read.findings),
        }
    }
    index.flush();
    index
}

fn namespace(name: &'static str, labels: Value) -> (Kind, &'static str, &'static str, Value) {
    (Kind::Namespace, "", name, json!({"labels": labels}))
}

fn service(
    namespace: &'static str,
    name: &'static str,
) -> (Kind, &'static str, &'static str, Value) {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]});
    (Kind::Service, namespace, name, json!({"spec": spec}))
}

fn gateway(listeners: Value) -> (Kind, &'static str, &'static str, Value) {
    let spec = json!({"gatewayClassName": "keelson", "listeners": listeners});
    (Kind::Gateway, "edge", "gw", json!({"spec": spec}))
}

fn route(
    namespace: &'static str,
    name: &'static str,
    spec: Value,
) -> (Kind, &'static str, &'static str, Value) {
    (Kind::HttpRoute, namespace, name, json!({"spec": spec}))
}

fn parent(view: &View, namespace: &str, name: &str) -> ParentView {
    let key = (Kind::HttpRoute, NamespacedName::new(namespace, name));
    view.routes[&key].parents[0].clone()
}

fn reasons(view: &View, namespace: &str, name: &str) -> (&'static str, &'static str) {
    let parent = parent(view, namespace, name);
    assert_eq!(parent.accepted.holds, parent.accepted.reason == "Accepted");
    assert_eq!(
        parent.resolved.holds,
        parent.resolved.reason == "ResolvedRefs"
    );
    (parent.accepted.reason, parent.resolved.reason)
}

/// Issue 12 B4, B7: each way in which a route is not taken, or leads nowhere, has its reason.
#[test]
fn a_route_is_told_why_a_parent_does_not_take_it_and_what_it_leads_to_is_not() {
    let listeners = json!([
        {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"},
        {"name": "grpc", "port": 81, "protocol": "HTTP", "allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}},
        {"name": "team", "port": 82, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}}},
    ]);
    let under = |section: Option<&str>, backend: Value| json!({"parentRefs": [{"name": "gw", "namespace": "edge", "sectionName": section}], "rules": [{"backendRefs": [backend]}]});
    let cart = || json!({"name": "cart", "port": 80});
    let mut elsewhere = under(Some("http"), cart());
    elsewhere["hostnames"] = json!(["other.org"]);
    let mesh = |port: u16, backend: Value| json!({"parentRefs": [{"group": "", "kind": "Service", "name": "cart", "port": port}], "rules": [{"backendRefs": [backend]}]});
    let theirs = || json!({"name": "pay", "namespace": "shop", "port": 80});
    let index = index(&[
        namespace("edge", json!({"team": "b"})),
        namespace("shop", json!({"team": "a"})),
        service("edge", "cart"),
        service("shop", "cart"),
        service("shop", "pay"),
        gateway(listeners),
        route("edge", "fine", under(Some("http"), cart())),
        route("edge", "no-listener", under(Some("none"), cart())),
        route("edge", "wrong-kind", under(Some("grpc"), cart())),
        route("edge", "wrong-team", under(Some("team"), cart())),
        route("shop", "right-team", under(Some("team"), cart())),
        route("shop", "not-same", under(Some("http"), cart())),
        route("edge", "no-host", elsewhere),
        route(
            "edge",
            "nowhere",
            under(Some("http"), json!({"name": "none", "port": 80})),
        ),
        route(
            "edge",
            "no-service",
            under(
                Some("http"),
                json!({"kind": "Bucket", "group": "x.org", "name": "a"}),
            ),
        ),
        route("edge", "theirs", under(Some("http"), theirs())),
        route("edge", "mesh", mesh(80, theirs())),
        route("edge", "mesh-port", mesh(90, cart())),
        (
            Kind::GrpcRoute,
            "edge",
            "call",
            json!({"spec": under(Some("grpc"), cart())}),
        ),
    ]);
    let view = index.view();
    for (namespace, name, accepted, resolved) in [
        ("edge", "fine", "Accepted", "ResolvedRefs"),
        ("edge", "no-listener", "NoMatchingParent", "ResolvedRefs"),
        (
            "edge",
            "wrong-kind",
            "NotAllowedByListeners",
            "ResolvedRefs",
        ),
        (
            "edge",
            "wrong-team",
            "NotAllowedByListeners",
            "ResolvedRefs",
        ),
        ("shop", "right-team", "Accepted", "ResolvedRefs"),
        ("shop", "not-same", "NotAllowedByListeners", "ResolvedRefs"),
        (
            "edge",
            "no-host",
            "NoMatchingListenerHostname",
            "ResolvedRefs",
        ),
        ("edge", "nowhere", "Accepted", "BackendNotFound"),
        ("edge", "no-service", "Accepted", "InvalidKind"),
        ("edge", "theirs", "Accepted", "RefNotPermitted"),
        // Under a Service no grant is asked for.
        ("edge", "mesh", "Accepted", "ResolvedRefs"),
        ("edge", "mesh-port", "NoMatchingParent", "ResolvedRefs"),
    ] {
        assert_eq!(
            reasons(&view, namespace, name),
            (accepted, resolved),
            "{name}"
        );
    }
    let gateway = &view.gateways[&NamespacedName::new("edge", "gw")];
    let attached: Vec<_> = gateway
        .listeners
        .iter()
        .map(|one| (&*one.name, one.attached))
        .collect();
    assert_eq!(attached, [("http", 4), ("grpc", 1), ("team", 1)]);
    let kinds: Vec<_> = gateway
        .listeners
        .iter()
        .map(|one| one.kinds.clone())
        .collect();
    assert_eq!(kinds[0], ["HTTPRoute", "GRPCRoute"]);
    assert_eq!(kinds[1], ["GRPCRoute"]);
    assert_eq!((&*gateway.uid, gateway.generation), ("uid-of-gw", 3));
}

/// Issue 12 B4, B8: each listener says what is wrong with it, and only that.
#[test]
fn a_listener_says_what_is_wrong_with_it() {
    let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t";
    let secret =
        |namespace, name, data: Value| (Kind::Secret, namespace, name, json!({"data": data}));
    let https = |name: &str, port: u16, secret: Value| json!({"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [secret]}});
    let grant = json!({
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "edge"}],
        "to": [{"group": "", "kind": "Secret", "name": "granted"}],
    });
    let listeners = json!([
        {"name": "fine", "port": 80, "protocol": "HTTP"},
        {"name": "twice", "port": 80, "protocol": "HTTP"},
        {"name": "udp", "port": 53, "protocol": "UDP"},
        https("own", 443, json!({"name": "own"})),
        https("missing", 444, json!({"name": "missing"})),
        https("no-pem", 445, json!({"name": "no-pem"})),
        https("not-granted", 446, json!({"name": "hidden", "namespace": "shop"})),
        https("granted", 447, json!({"name": "granted", "namespace": "shop"})),
        {"name": "kinds", "port": 90, "protocol": "HTTP", "allowedRoutes": {"kinds": [{"kind": "TCPRoute"}, {"kind": "HTTPRoute"}]}},
    ]);
    let index = index(&[
        namespace("edge", json!({})),
        gateway(listeners),
        secret("edge", "own", json!({"tls.crt": pem, "tls.key": pem})),
        secret(
            "edge",
            "no-pem",
            json!({"tls.crt": "eA==", "tls.key": "eA=="}),
        ),
        secret("shop", "granted", json!({"tls.crt": pem, "tls.key": pem})),
        secret("shop", "hidden", json!({"tls.crt": pem, "tls.key": pem})),
        (Kind::ReferenceGrant, "shop", "g", json!({"spec": grant})),
    ]);
    let view = index.view();
    let gateway = &view.gateways[&NamespacedName::new("edge", "gw")];
    let said = |one: &ListenerView| {
        let conflict = one.conflicted.holds.then_some(one.conflicted.reason);
        (
            one.name.clone(),
            one.accepted.reason,
            one.resolved.reason,
            conflict,
        )
    };
    let all: Vec<_> = gateway.listeners.iter().map(said).collect();
    let is =
        |name: &str, accepted, resolved, conflict| (name.to_owned(), accepted, resolved, conflict);
    let expected = [
        is("fine", "Accepted", "ResolvedRefs", None),
        is(
            "twice",
            "HostnameConflict",
            "ResolvedRefs",
            Some("HostnameConflict"),
        ),
        is("udp", "UnsupportedProtocol", "ResolvedRefs", None),
        is("own", "Accepted", "ResolvedRefs", None),
        is("missing", "Accepted", "InvalidCertificateRef", None),
        is("no-pem", "Accepted", "InvalidCertificateRef", None),
        is("not-granted", "Accepted", "RefNotPermitted", None),
        is("granted", "Accepted", "ResolvedRefs", None),
        is("kinds", "Accepted", "InvalidRouteKinds", None),
    ];
    assert_eq!(all, expected);
    let named = index.named_secrets().iter().map(ToString::to_string);
    let named: Vec<String> = named.collect();
    // What is not granted is not even read.
    assert_eq!(
        named,
        ["edge/missing", "edge/no-pem", "edge/own", "shop/granted"]
    );
}

/// Issue 12 B8: Istio's Gateways open ports at the pods that they select.
#[test]
fn ports_of_istios_gateways_are_those_of_the_gateway_whose_pods_they_select() {
    let infrastructure = json!({"labels": {"istio": "ingressgateway"}});
    let spec = json!({
        "gatewayClassName": "keelson", "infrastructure": infrastructure,
        "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
    });
    let servers = |selector: Value| json!({"spec": {"selector": selector, "servers": [{"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}});
    let index = index(&[
        (Kind::Gateway, "edge", "gw", json!({"spec": spec})),
        (
            Kind::IstioGateway,
            "shop",
            "in",
            servers(json!({"istio": "ingressgateway"})),
        ),
        (
            Kind::IstioGateway,
            "shop",
            "other",
            servers(json!({"istio": "other"})),
        ),
    ]);
    let view = index.view();
    let ports = &view.gateways[&NamespacedName::new("edge", "gw")].ports;
    assert_eq!(ports.iter().copied().collect::<Vec<_>>(), [80, 8080]);
}

/// Issue 12 B8: the Gateway whose addresses an Ingress gets, the port that its TLS needs, and what is wrong with it.
#[test]
fn an_ingress_is_told_of_with_its_gateway_and_what_is_wrong() {
    let class = |controller: &str| {
        let spec = json!({
            "controller": controller,
            "parameters": {"apiGroup": "gateway.networking.k8s.io", "kind": "Gateway", "scope": "Namespace", "namespace": "edge", "name": "gw"},
        });
        (Kind::IngressClass, "", "keelson", json!({"spec": spec}))
    };
    let ingress = |tls: Value| {
        let spec = json!({
            "ingressClassName": "keelson", "tls": tls,
            "rules": [{"http": {"paths": [
                {"path": "/", "pathType": "Regex", "backend": {"service": {"name": "cart", "port": {"number": 80}}}},
            ]}}],
        });
        (Kind::Ingress, "shop", "web", json!({"spec": spec}))
    };
    let listeners = |from: &str| {
        gateway(
            json!([{"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": from}}}]),
        )
    };
    let (ours, web) = (
        "keelson.io/ingress-controller",
        NamespacedName::new("shop", "web"),
    );
    let gw = NamespacedName::new("edge", "gw");
    let all = [
        class(ours),
        ingress(json!([])),
        listeners("All"),
        service("shop", "cart"),
    ];
    let view = index(&all).view();
    let found = &view.ingresses[&web];
    assert_eq!(
        (&*found.uid, &found.gateway),
        ("uid-of-web", &Some(gw.clone()))
    );
    assert!(
        found
            .wrong
            .starts_with("spec.rules[0].http.paths[0].pathType: "),
        "{}",
        found.wrong
    );
    assert_eq!(view.gateways[&gw].ports, [80].into());

    let tls = ingress(json!([{"secretName": "cert"}]));
    let view = index(&[class(ours), tls.clone(), listeners("All")]).view();
    assert_eq!(view.gateways[&gw].ports, [80, 443].into());

    let view = index(&[class(ours), tls.clone(), listeners("Same")]).view();
    assert_eq!(view.ingresses[&web].gateway, None);
    assert!(view.ingresses[&web].wrong.contains("allowedRoutes"));
    assert_eq!(view.gateways[&gw].ports, [80].into());

    let view = index(&[class("k8s.io/ingress-nginx"), tls, listeners("All")]).view();
    assert!(
        view.ingresses.is_empty(),
        "another controller speaks for it"
    );
}
