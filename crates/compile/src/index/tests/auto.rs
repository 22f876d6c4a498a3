//! `keelson.io/l7: auto`.

use super::*;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled, keelson.io/l7: auto}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop, labels: {istio.io/use-waypoint: theirs}}
spec: {clusterIP: 10.96.0.2, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {clusterIP: 10.96.0.3, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop, labels: {keelson.io/l7: none}}
spec: {clusterIP: 10.96.0.4, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: other}
spec: {clusterIP: 10.96.0.5, ports: [{name: http, port: 80}]}
";

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}], rules: [{}]}
";

fn gateway(labels: &str, annotations: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: keelson-l7, namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}\n\
         spec: {{gatewayClassName: keelson-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
    )
}

/// The name of the waypoint that a service leads to.
fn waypoint(mesh: &Mesh, service: &str) -> Option<String> {
    let name = format!("shop/{service}.shop.svc.cluster.local");
    let address = mesh.service(&name).waypoint?;
    Some(waypoint::named(&address)?.to_string())
}

fn needs(mesh: &Mesh) -> Option<String> {
    let needs = mesh.index.view().needs;
    assert!(needs.keys().all(|namespace| &**namespace == "shop"));
    needs.into_values().next()
}

/// Issue 12 B3: only once its pods have been ready the waypoint is required, and by those alone who say so.
#[test]
fn services_are_attached_once_the_waypoint_has_been_ready_and_by_their_own_word() {
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&gateway("keelson.io/l7: auto", ""));
    assert_eq!(waypoint(&mesh, "cart"), None);
    mesh.apply(&gateway("", "keelson.io/attached: 'true'"));
    assert_eq!(waypoint(&mesh, "cart"), None, "somebody else's Gateway");
    let attached = gateway("keelson.io/l7: auto", "keelson.io/attached: 'true'");
    mesh.apply(&attached);
    assert_eq!(waypoint(&mesh, "cart").as_deref(), Some("shop/keelson-l7"));
    assert_eq!(waypoint(&mesh, "own").as_deref(), Some("shop/theirs"));
    assert_eq!(waypoint(&mesh, "out"), None);
    assert_eq!(waypoint(&mesh, "plain"), None);
    mesh.remove(&attached);
    assert_eq!(waypoint(&mesh, "cart"), None);
}

/// Issue 12 B3: each kind of L7 object that is for such a service is a need, and what nodes do themselves is none.
#[test]
fn a_namespace_needs_a_waypoint_for_what_only_a_waypoint_can_do() {
    let istio = |kind: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let policy = |rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: r, namespace: shop}}\nspec: {rest}\n"
        )
    };
    for (object, expected) in [
        (ROUTE.to_owned(), Some("HTTPRoute shop/r")),
        (ROUTE.replace("name: cart", "name: own"), None),
        (ROUTE.replace("name: cart", "name: plain"), None),
        (
            istio(
                "VirtualService",
                "{hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}",
            ),
            Some("VirtualService shop/r"),
        ),
        (
            istio(
                "VirtualService",
                "{hosts: [cart], gateways: [edge/gw], http: [{route: [{destination: {host: cart}}]}]}",
            ),
            None,
        ),
        (
            istio(
                "DestinationRule",
                "{host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
            ),
            Some("DestinationRule shop/r"),
        ),
        (
            istio(
                "DestinationRule",
                "{host: '*.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
            ),
            None,
        ),
        (
            policy("{rules: [{to: [{operation: {methods: [GET]}}]}]}"),
            Some("AuthorizationPolicy shop/r"),
        ),
        (
            policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"),
            None,
        ),
    ] {
        let mut mesh = Mesh::of(SHOP);
        assert_eq!(needs(&mesh), None);
        mesh.apply(&object);
        assert_eq!(needs(&mesh).as_deref(), expected, "{object}");
        mesh.remove(&object);
        assert_eq!(needs(&mesh), None);
    }
}
