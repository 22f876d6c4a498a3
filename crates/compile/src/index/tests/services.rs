//! What is said of Services, and which waypoints let them in.

use super::*;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled, team: a}}
---
apiVersion: v1
kind: Namespace
metadata: {name: gates, labels: {team: b}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: gates}}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80}]}
";

fn waypoint(listener: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: gates}}\n\
         spec: {{gatewayClassName: keelson-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE{listener}}}]}}\n"
    )
}

fn said(changes: &Changes) -> Option<String> {
    let key = ObjectKey::new(Kind::Service, "shop", "cart");
    let found = changes.diagnostics.iter().find(|(of, _)| *of == key)?;
    let said = found.1.iter();
    let said: Vec<String> = said
        .map(|one| format!("{}: {}", one.field, one.message))
        .collect();
    Some(said.join("; "))
}

/// Issue 12 B3: `use-waypoint-namespace` counts where the waypoint's listener allows it, and else it is said.
#[test]
fn a_waypoint_of_another_namespace_is_used_where_its_listener_allows_it() {
    let mut mesh = Mesh::of(SHOP);
    let is_attached = |mesh: &Mesh| {
        mesh.service("shop/cart.shop.svc.cluster.local")
            .waypoint
            .is_some()
    };
    assert!(is_attached(&mesh), "nobody has refused it");
    for (allowed, expected) in [
        ("", false),
        (", allowedRoutes: {namespaces: {from: All}}", true),
        (", allowedRoutes: {namespaces: {from: Same}}", false),
        (", allowedRoutes: {namespaces: {from: None}}", false),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}",
            true,
        ),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: b}}}}",
            false,
        ),
    ] {
        let changes = mesh.apply(&waypoint(allowed));
        assert_eq!(is_attached(&mesh), expected, "{allowed}");
        let said = said(&changes);
        let is_refused = said
            .as_ref()
            .is_some_and(|text| text.contains("does not let namespace shop use it"));
        assert_eq!(is_refused, !expected, "{allowed}: {said:?}");
    }
    // A label of the namespace comes, with which it is let in.
    let changes =
        mesh.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: b}}\n");
    assert!(is_attached(&mesh));
    assert_eq!(said(&changes).as_deref(), Some(""), "it is taken back");
}

/// A waypoint of the own namespace needs no word.
#[test]
fn the_own_namespace_is_always_let_in_unless_the_listener_says_none() {
    let own = SHOP.replace(", istio.io/use-waypoint-namespace: gates", "");
    let mut mesh = Mesh::of(&own);
    for (allowed, expected) in [
        ("", true),
        (", allowedRoutes: {namespaces: {from: None}}", false),
    ] {
        mesh.apply(&waypoint(allowed).replace("namespace: gates", "namespace: shop"));
        let service = mesh.service("shop/cart.shop.svc.cluster.local");
        assert_eq!(service.waypoint.is_some(), expected, "{allowed}");
    }
}

#[test]
fn addresses_that_the_mesh_does_not_carry_are_named() {
    let mut mesh = Mesh::of(SHOP);
    let with = |more: &str| SHOP.replace("spec: {clusterIP", &format!("spec: {{{more}clusterIP"));
    let changes = mesh.apply(&with("externalIPs: [192.0.2.7], "));
    let said_now = said(&changes).unwrap_or_default();
    assert!(
        said_now.contains("spec.externalIPs: the mesh does not carry connections to 192.0.2.7"),
        "{said_now}"
    );
    let addresses = mesh.service("shop/cart.shop.svc.cluster.local").addresses;
    assert_eq!(
        addresses.len(),
        1,
        "another Service could say the address of this one"
    );
    assert_eq!(said(&mesh.apply(&with(""))).as_deref(), Some(""));
    assert_eq!(said(&mesh.apply(&with(""))), None);
}

/// Issue 12 B3: a backend that has a waypoint of its own is reached at its pods, and this waypoint asks their policies.
#[test]
fn a_waypoint_goes_to_the_pods_of_a_backend_that_has_another_waypoint() {
    let mut mesh = Mesh::of(
        "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop, labels: {istio.io/use-waypoint: another}}
spec: {clusterIP: 10.96.0.2, selector: {app: pay}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pay-1, namespace: shop, labels: {app: pay}, annotations: {keelson.io/pod-ips: 10.244.1.3}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}, annotations: {keelson.io/pod-ips: 10.244.1.9}}
spec: {nodeName: n1}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}], rules: [{backendRefs: [{name: pay, port: 80}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec: {selector: {matchLabels: {app: pay}}, action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}
",
    );
    let config = waypoints::config_of(&mesh, "shop/wp");
    let addresses: Vec<String> = config
        .endpoints()
        .flat_map(|one| one.addresses.iter().map(ToString::to_string))
        .collect();
    assert!(
        addresses.contains(&"10.244.1.3".to_owned()),
        "{addresses:?}"
    );
    assert!(
        !addresses.contains(&"10.96.0.2".to_owned()),
        "{addresses:?}"
    );
    let pod = config
        .endpoint_at([10, 244, 1, 3].into())
        .expect("it is known");
    assert_eq!(pod.policies.len(), 1, "{pod:?}");
    assert_eq!(&*pod.policies[0], "shop/guard");
    // The other waypoint knows it as its own.
    mesh.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: another-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: another}, annotations: {keelson.io/pod-ips: 10.244.1.10}}\nspec: {nodeName: n1}\n");
    let other = waypoints::config_of(&mesh, "shop/another");
    assert!(other.endpoint_at([10, 244, 1, 3].into()).is_some());
}

/// Istio's class means the same, for the pods that are made by us.
#[test]
fn a_gateway_of_class_istio_waypoint_is_a_waypoint_with_pods() {
    let pod = |class: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp-1, namespace: gates, labels: {{gateway.networking.k8s.io/gateway-name: wp, \
             gateway.networking.k8s.io/gateway-class-name: {class}{more}}}, annotations: {{keelson.io/pod-ips: 10.244.1.9}}}}\nspec: {{nodeName: n1}}\n"
        )
    };
    let mut mesh = Mesh::of(SHOP);
    mesh.apply(&waypoint("").replace("keelson-waypoint", "istio-waypoint"));
    for (class, more, expected) in [
        ("keelson-waypoint", "", true),
        ("istio-waypoint", "", true),
        (
            "istio-waypoint",
            ", gateway.istio.io/managed: istio.io-mesh-controller",
            false,
        ),
        ("another", "", false),
    ] {
        mesh.apply(&pod(class, more));
        let tunnel = mesh.workload("gates/wp-1").application_tunnel;
        assert_eq!(tunnel.is_some(), expected, "{class}{more}");
    }
}
